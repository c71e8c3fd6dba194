"""Coordinates and coordinate systems. No pixels."""
