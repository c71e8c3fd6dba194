"""Pipelines: named stages of jobs in sequence."""
