"""The API's settings on the same host, and names that are probably misspelled settings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

# By name: the worker does not import the API.
_API = "geo_jobs_api"
_SECONDS = 30
# Letters of an abbreviation: MAX for MAXIMUM.
_SHORTEST_STEM = 3

# Prefixes of our names in the environment. In `.env`, those of all settings count.
_OWN = tuple(
    f"{word}_"
    for word in (
        "API", "CLAMD", "GEO", "GEOPROCESSING", "HEARTBEAT", "JWKS", "JWT", "LEASE", "OUTBOX", "RESCUE", "RETAIN",
        "SOURCE", "STORAGE", "WEBHOOK", "WORKER",
    )
)  # fmt: skip
# Read by libpq itself.
_LIBPQ = re.compile(
    r"PG(HOSTADDR|PASSFILE|REQUIREAUTH|CHANNELBINDING|SERVICE|SERVICEFILE|OPTIONS|APPNAME|REQUIRESSL|REQUIREPEER|KRBSRVNAME|"
    r"GSS\w+|CONNECT_TIMEOUT|CLIENTENCODING|TARGETSESSIONATTRS|LOADBALANCEHOSTS|DATESTYLE|TZ|GEQO|SYSCONFDIR|LOCALEDIR|DATA|"
    r"SSL(MODE|COMPRESSION|CERT|CERTMODE|KEY|ROOTCERT|CRL|CRLDIR|SNI|NEGOTIATION|MINPROTOCOLVERSION|MAXPROTOCOLVERSION))"
)
# Kubernetes and Docker add these for each service.
_OF_SERVICES = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)")
# The API's settings by name, for a host where the API is not installed or does not answer.
_OF_API = frozenset(
    """
    API_HOST API_PORT API_PUBLIC_URL BACKSTOP_SECONDS CANCEL_GRACE_SECONDS CLEANUP_INTERVAL_SECONDS
    DATABASE_LISTEN_URL DATABASE_POOLING DATABASE_POOL_SIZE DATABASE_TIMEOUT_SECONDS DATA_DIR DRAIN_SECONDS
    EVENTS_INTERVAL_SECONDS FIRST_LEASE_SECONDS HEARTBEAT_SECONDS JWKS_URL JWT_AUDIENCE JWT_ISSUER
    JWT_LEEWAY_SECONDS JWT_SECRET LEASE_SECONDS LISTEN_CHECK_SECONDS MAX_INLINE_BYTES MAX_OPEN_JOBS_PER_CALLER
    MAX_STORED_BYTES_PER_CALLER MAX_WORKER_LOSSES REQUESTS_PER_MINUTE RESCUE_GRACE_SECONDS RESCUE_INTERVAL_SECONDS
    RETAIN_ENDED_DAYS RETAIN_FAILED_DAYS RETAIN_UNUSED_DAYS SIGNED_URL_SECONDS STORAGE_SECRET TASK_TYPES
    TIMEOUT_GRACE_SECONDS TRUSTED_PROXIES VACUUM_WARNING_SECONDS WEBHOOK_DELIVERIES_PER_SECOND WEBHOOK_HOSTS
    WEBHOOK_RENEWAL_DAYS
    """.split()  # noqa: SIM905 - one name a word is shorter
)
_OF_OTHERS = frozenset({"TMPDIR", "VENV_DIR", "INVOKED_FROM", "PROMETHEUS_MULTIPROC_DIR"})


@dataclass(frozen=True)
class ApiSettings:
    """The API's settings in force, as name, value and source, and their problems."""

    rows: tuple[tuple[str, str, str], ...]
    problems: tuple[str, ...]


def api_settings() -> ApiSettings | None:
    """Return the output of the API's own command, None if the API is missing or fails."""
    if find_spec(_API) is None:
        return None
    try:
        command = [sys.executable, "-m", _API, "config", "--json"]
        completed = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
        answer = json.loads(completed.stdout)
        rows = tuple((str(row["name"]), str(row["value"]), str(row["source"])) for row in answer["settings"])
        return ApiSettings(rows, tuple(map(str, answer["problems"])))
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
        return None


def start_problems() -> list[str]:
    """Return the problems that only handlers find: unknown task types and invalid defaults of payloads.

    Handlers are loaded in a separate process, since they import the raster libraries.
    """
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), "tasks", "--json"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.removeprefix("❌ ") for line in completed.stderr.splitlines() if line.startswith("❌ ")]


def unknown_names(layers: Iterable[tuple[str, Mapping[str, str]]], known: Iterable[str]) -> list[str]:
    """Return a sentence for each name that resembles a setting but is none.

    Args:
        layers: sources with their names and values. One is `environment`, the others are files.
        known: the names of all settings.
    """
    names = sorted({name.upper() for name in known} | _OF_API)
    return [
        line
        for place, layer in layers
        for name in sorted(layer)
        if (line := _complaint(name, place, names, from_file=place != "environment")) is not None
    ]


def _complaint(name: str, place: str, known: list[str], *, from_file: bool) -> str | None:
    upper = name.upper()
    if upper in known or upper in _OF_OTHERS or _LIBPQ.fullmatch(upper) or _OF_SERVICES.fullmatch(upper):
        return None
    same = [setting for setting in known if _has_same_words(upper, setting)]
    is_near = bool(same or get_close_matches(upper, known, n=1, cutoff=0.87))
    if not is_near and not upper.startswith(_prefixes(known, from_file=from_file)):
        return None
    near = same or get_close_matches(upper, known, n=1, cutoff=0.7)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{name} ({place}) is no setting.{hint}"


def _has_same_words(name: str, setting: str) -> bool:
    """Return whether two names have the same words in any order, some abbreviated, and at least one in full."""
    words, wanted = sorted(name.split("_")), sorted(setting.split("_"))
    if len(words) != len(wanted) or len(words) < 2 or not set(words) & set(wanted):
        return False
    return all(
        one == other
        or (min(len(one), len(other)) >= _SHORTEST_STEM and (one.startswith(other) or other.startswith(one)))
        for one, other in zip(words, wanted, strict=True)
    )


def _prefixes(known: list[str], *, from_file: bool) -> tuple[str, ...]:
    of_settings = {f"{name.partition('_')[0]}_" for name in known if "_" in name} if from_file else set()
    return (*_OWN, *of_settings, "PG")
