"""Tiny reward models at work."""
