"""Parked claims and event streams: the requests that wait, and what wakes them."""
