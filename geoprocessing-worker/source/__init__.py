"""Reads the header of an untrusted file, and a sample of its values."""
