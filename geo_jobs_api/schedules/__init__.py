"""Schedules. Each fire creates its jobs exactly once."""
