"""The commands of `python -m geo_jobs_api`, a module for each group."""
