"""Coordinates and CRSs, without pixels."""
