"""One job from its claim to its accepted report."""
