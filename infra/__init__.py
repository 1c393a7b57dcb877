"""What makes tinyrm a tool, and a reader of the paper can skip: files, the Hub, runs, flags."""
