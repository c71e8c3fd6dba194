"""Which job runs when, and exactly once."""
