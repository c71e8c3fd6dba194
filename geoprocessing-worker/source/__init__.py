"""From an untrusted file to its header and a sample of its values."""
