"""The paper's claims and open questions as runs, and what they measure."""
