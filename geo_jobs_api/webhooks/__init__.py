"""Signed messages to other programs about ended jobs."""
