"""What the service does without a request."""
