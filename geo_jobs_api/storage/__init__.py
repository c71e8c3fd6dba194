"""Stored objects: uploads and results."""
