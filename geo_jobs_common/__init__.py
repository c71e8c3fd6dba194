"""Checks of settings and addresses that the worker and the API share. They need pydantic only."""
