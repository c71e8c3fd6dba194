"""The commands of `python -m geo_jobs_api`, one module per group."""
