"""Schedules, whose fires each create jobs exactly once."""
