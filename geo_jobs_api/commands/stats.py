"""stats and workers: the state of the queue and of its workers."""

from __future__ import annotations

import argparse
from typing import Any

from geo_jobs_api.commands.frame import Group
from geo_jobs_api.commands.output import print_table
from geo_jobs_api.config import Settings
from geo_jobs_api.database.pool import Pool
from geo_jobs_api.queue.operator_store import OperatorStore


def add_commands(commands: Group) -> None:
    """Declare the commands."""
    command = commands.add_action(
        "stats", "Show statistics of each task type: the queue now, and outcomes of jobs.", _stats
    )
    command.add_argument("--hours", type=float, default=24, metavar="N", help="period (default: 24)")
    commands.add_action("workers", "Show workers: version, jobs, last call.", _workers)


async def _stats(settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    found = await OperatorStore(pool, settings.lease_seconds).list_stats(arguments.hours * 3600)
    columns = {
        "TYPE": lambda one: f"{one.task_type} (paused)" if one.paused else one.task_type,
        "WAITING": lambda one: one.waiting,
        "RUNNING": lambda one: one.running,
        "SUCCEEDED": lambda one: one.succeeded,
        "FAILED": lambda one: one.failed,
        "TIMED OUT": lambda one: one.timed_out,
        "RETRIED": lambda one: one.retried,
        "P50 s": lambda one: one.seconds_p50,
        "P95 s": lambda one: one.seconds_p95,
        "JOBS/h": lambda one: one.jobs_per_hour,
        "OLDEST WAITING s": lambda one: one.oldest_waiting_seconds,
    }
    print_table(found, columns, as_json=arguments.json)
    return 0


async def _workers(settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    found = await OperatorStore(pool, settings.lease_seconds).list_workers()
    columns = {
        "NAME": lambda one: one.name,
        "ID": lambda one: one.id,
        "VERSION": lambda one: one.version,
        "SINCE": lambda one: one.first_seen_at,
        "LAST SEEN": lambda one: one.last_seen_at,
        "TYPES": lambda one: " ".join(one.task_types),
        "TAKES": lambda one: _takes(one.capabilities or {}),
        "TROUBLE": lambda one: " ".join(trouble["message"] for trouble in one.trouble or ()),
        "JOBS": lambda one: " ".join(str(job) for job in one.jobs),
    }
    print_table(found, columns, as_json=arguments.json)
    return 0


def _takes(capabilities: dict[str, Any]) -> str:
    parts = []
    if "maxFileSize" in capabilities:
        parts.append(f"≤ {capabilities['maxFileSize'] / 1e6:.0f} MB")
    if "memoryMb" in capabilities:
        parts.append(f"{capabilities['memoryMb']} MiB")
    if "sourceHosts" in capabilities:
        parts.append(f"from {' '.join(capabilities['sourceHosts']) or 'no hosts'}")
    return ", ".join(parts)
