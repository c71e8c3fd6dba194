"""The settings that the API runs with, in PostgreSQL: commands judge by them and not by those of the caller's shell."""

from __future__ import annotations

from psycopg.types.json import Jsonb

from geo_jobs_api.config import Settings
from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import load_queries

_maintenance = load_queries("maintenance.sql")

# What is allowed, and for how long it is kept. No secrets, and nothing that belongs to one machine.
_RECORDED = {
    "source_hosts",
    "webhook_hosts",
    "max_file_size",
    "max_open_jobs_per_caller",
    "max_stored_bytes_per_caller",
    "lease_seconds",
    "retain_ended_days",
    "retain_failed_days",
    "retain_unused_days",
}


async def record_settings(pool: Pool, settings: Settings) -> None:
    """Write down what this process runs with; of several processes the last one counts."""
    async with pool.connection() as connection:
        await _maintenance.record_settings(
            connection, settings=Jsonb(settings.model_dump(mode="json", include=_RECORDED))
        )


async def settings_in_force(pool: Pool, own: Settings) -> Settings:
    """Return this process's settings with those of the API; its own alone where no API has run on this database."""
    async with pool.connection() as connection:
        row = await _maintenance.get_recorded_settings(connection)
    recorded = {} if row is None else row["settings"]
    return own.model_copy(update={name: value for name, value in recorded.items() if name in _RECORDED})
