"""The settings of the running API in PostgreSQL. Commands use them instead of those of their own environment."""

from __future__ import annotations

from psycopg.types.json import Jsonb

from geo_jobs_api.config import Settings
from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import load_queries

_maintenance = load_queries("maintenance.sql")

# Permissions and periods. No secrets, and no settings of one machine.
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
    """Record the settings of this process. The last process wins."""
    async with pool.connection() as connection:
        await _maintenance.record_settings(
            connection, settings=Jsonb(settings.model_dump(mode="json", include=_RECORDED))
        )


async def settings_in_force(pool: Pool, own: Settings) -> Settings:
    """Return the own settings with those of the API on top, if an API has run on this database."""
    async with pool.connection() as connection:
        row = await _maintenance.get_recorded_settings(connection)
    recorded = {} if row is None else row["settings"]
    return own.model_copy(update={name: value for name, value in recorded.items() if name in _RECORDED})
