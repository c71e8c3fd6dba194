"""Parked claims and event streams, and the wake-ups that end their waits."""
