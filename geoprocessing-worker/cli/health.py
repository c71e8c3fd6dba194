"""The health check of a worker: database, API, file system and dependencies.

Libraries are imported late, since a missing one is a finding.
"""

import io
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from geoprocessing_worker import host

if TYPE_CHECKING:
    from geoprocessing_worker.config import Settings

# Import names of the worker's dependencies. Only an import shows a broken binary.
DEPENDENCIES = (
    "PIL",
    "anyio",
    "clamdpy",
    "cv2",
    "deflate",
    "dotenv",
    "httpx",
    "numpy",
    "pmtiles",
    "py_landlock",
    "pydantic_settings",
    "pyproj",
    "rasterio",
    "rich",
    "rio_cogeo",
    "stamina",
    "structlog",
    "zlib_ng",
)
REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements-worker.txt"
TIMEOUT = 5.0


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    healthy: bool
    message: str

    def __str__(self) -> str:
        return f"{'✅' if self.healthy else '❌'} {self.name}: {self.message}"


class Unhealthy(Exception):  # noqa: N818 - a finding
    """A problem and its remedy, as printed."""


def check() -> list[Finding]:
    """Run the four checks, with the settings of the environment and `.env`, else of the local stack.

    Other trouble that prevents claims follows.
    """
    try:
        settings = _settings()
    except Unhealthy as error:
        skipped = [Finding(name, False, str(error)) for name in ("Database", "Api", "File_System")]
        return [*skipped, _finding("Dependencies", _dependencies)]
    clocks: list[float] = []
    return [
        _finding("Database", lambda: _database(settings)),
        _finding("Api", lambda: _api(settings, clocks.append)),
        _finding("File_System", lambda: _file_system(settings)),
        _finding("Dependencies", lambda: _dependencies_of(settings)),
        *_claiming(settings, clocks[0] if clocks else None),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print the findings. Return 0 when the worker can work, else 1."""
    import argparse  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="health_check.py", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parsed = parser.parse_args(arguments)
    findings = check()
    bad = [finding.name for finding in findings if not finding.healthy]
    if parsed.json:
        checks = {f.name.lower(): {"healthy": f.healthy, "message": f.message} for f in findings}
        report = {"healthy": not bad, "claiming": not _disabled(), "checks": checks, "sandbox": sandbox_layers()}
        _print(json.dumps(report, ensure_ascii=False))
    else:
        for finding in findings:
            _print(str(finding))
        _print("")
        if bad:
            _print(f"💥 Overall Status: UNHEALTHY - {', '.join(bad)} must be fixed before jobs can be processed")
        else:
            state = "up but claims nothing (DISABLE_WORKERS)" if _disabled() else "ready to process jobs"
            _print(f"🎉 Overall Status: HEALTHY - Worker is {state}")
    return 1 if bad else 0


def _print(line: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for terminals without these characters
    sys.stdout.write(line + "\n")


def _finding(name: str, check_one: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check_one())
    except Unhealthy as error:
        return Finding(name, False, str(error))
    except Exception as error:  # noqa: BLE001 - a broken check must not hide the others
        return Finding(name, False, f"cannot be checked ({type(error).__name__}: {error})")


def _disabled() -> bool:
    """Return whether the worker runs without claiming. False if the settings are unreadable."""
    try:
        return _settings().disable_workers
    except Unhealthy:
        return False


def _settings() -> "Settings":
    try:
        config: Any = import_module("geoprocessing_worker.config")
    except ImportError as error:
        raise Unhealthy(f"not checked, since {error.name or error} is missing") from None
    errors: Any = import_module("geoprocessing_worker.errors")
    try:
        settings: Settings = config.load(local_stack=True).settings
    except errors.ConfigurationError as error:
        raise Unhealthy(
            f"not checked, since the configuration is wrong: {'; '.join(str(error).splitlines())}"
        ) from None
    return settings


def _dependencies() -> str:
    missing = []
    for name in DEPENDENCIES:
        try:
            import_module(name)
        except Exception as error:  # noqa: BLE001 - the import of a broken library may raise anything
            missing.append(f"{name} ({error})")
    if missing:
        raise Unhealthy(
            f"cannot be imported: {', '.join(missing)}; run: "
            f"{sys.executable} -m pip install --require-hashes -r {REQUIREMENTS}"
        )
    return "All dependencies available"


def _dependencies_of(settings: "Settings") -> str:
    """Check the libraries and, if configured, the sandbox and the virus scanner."""
    available = _dependencies()
    missing = [layer for layer, state in sandbox_layers().items() if state != "on"]
    if settings.require_sandbox and missing:
        raise Unhealthy(f"the sandbox lacks {', '.join(missing)}; use a newer kernel or unset REQUIRE_SANDBOX")
    if settings.scan_for_malware:
        malware: Any = import_module("geoprocessing_worker.wire.virus_scan")
        try:
            malware.Scanner(settings.clamd_address).ping()
        except OSError as error:
            raise Unhealthy(f"{error}; start clamd, correct CLAMD_ADDRESS or unset SCAN_FOR_MALWARE") from None
    return available


def sandbox_layers() -> dict[str, str]:
    """Return each sandbox layer with "on" or the reason for its absence. Empty if the libraries are missing."""
    try:
        landlock: Any = import_module("geoprocessing_worker.sandbox.landlock")
    except ImportError:
        return {}
    return {layer.name: layer.missing or "on" for layer in landlock.layers()}


def _database(settings: "Settings") -> str:
    url = settings.database_url.get_secret_value()
    if not (url or settings.pghost):
        return "Not checked: PGHOST is not set, and a worker needs no database of its own"
    try:
        psycopg: Any = import_module("psycopg")
    except ImportError as error:
        raise Unhealthy(
            f"not checked, since {error.name or 'psycopg'} is missing; unset PGHOST and DATABASE_URL, since a worker "
            "needs no database, or install geoprocessing-worker[api]"
        ) from None
    named = {
        "host": settings.pghost,
        "port": settings.pgport,
        "dbname": settings.pgdatabase,
        "user": settings.pguser,
        "password": settings.pgpassword.get_secret_value(),
        "sslmode": settings.pgssl,
    }
    try:
        with psycopg.connect(
            url, connect_timeout=int(TIMEOUT), **({} if url else {k: v for k, v in named.items() if v})
        ) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        # The error quotes an invalid connection string with its password.
        reason = re.sub(r"(://[^:@/\s]*:)[^@\s]*@|(password=)\S+", r"\1\2********@", " ".join(str(error).split()))
        raise Unhealthy(f"no connection ({reason}); start PostgreSQL or correct PGHOST and its companions") from None
    return "Database connection successful"


def _api(settings: "Settings", on_clock_offset: Callable[[float], None]) -> str:
    if not settings.api_base_url:
        raise Unhealthy("API_BASE_URL is not set; set it, or start the local stack with ./start_worker.sh")
    token = settings.worker_auth_token.get_secret_value()
    if not token:
        raise Unhealthy("WORKER_AUTH_TOKEN is not set; make one with `python -m geo_jobs_api tokens create NAME`")
    try:
        httpx: Any = import_module("httpx")
    except ImportError as error:
        raise Unhealthy(f"not checked, since {error.name} is missing") from None

    def read_clock(answer: Any) -> None:
        if (offset := host.clock_offset(answer.headers.get("Date", ""), time.time())) is not None:
            on_clock_offset(offset)

    try:
        with httpx.Client(
            base_url=f"{settings.api_base_url}/api/internal/geo-jobs",
            headers={"Authorization": f"Worker {token}"},
            event_hooks={"response": [read_clock]},
            timeout=TIMEOUT,
            verify=settings.trust(),
            # No proxy for loopback.
            trust_env=urlsplit(settings.api_base_url).hostname not in ("127.0.0.1", "localhost", "::1"),
        ) as client:
            status = _token_status(client)
    except httpx.HTTPError as error:
        raise Unhealthy(
            f"{settings.api_base_url} does not answer ({error}); start the API or correct API_BASE_URL"
        ) from None
    if status in (401, 403):
        raise Unhealthy(f"the API refuses the worker token ({status}); correct WORKER_AUTH_TOKEN")
    if status == 404:
        raise Unhealthy(f"{settings.api_base_url} has no worker endpoints (404); correct API_BASE_URL")
    if status >= 300 and status not in (405, 409):
        raise Unhealthy(f"{settings.api_base_url} answered {status}; look at the API's log")
    return "API connection successful"


def _token_status(client: Any) -> int:
    """Return the status of a call that proves the token without a claim. 409 or 405 means accepted.

    A heartbeat for a missing job works on every server of the protocol. If its answer is unclear, a GET follows at the
    address of the claim, where only POST claims jobs.
    """
    answer = client.patch(f"/{uuid.uuid4()}/heartbeat", json={}, headers={"Lease-Token": "health-check"})
    if answer.status_code == 404 and _problem_code(answer) == "job_not_found":
        return 409
    is_final = answer.is_success or answer.status_code in (401, 403, 409) or answer.status_code >= 500
    return int(answer.status_code if is_final else client.get("/claim").status_code)


def _problem_code(answer: Any) -> object:
    try:
        problem = answer.json()
    except ValueError:
        return None
    return problem.get("code") if isinstance(problem, dict) else None


def _file_system(settings: "Settings") -> str:
    trouble = host.disk(settings)
    if trouble is not None:
        raise Unhealthy(trouble.message)
    return "File system accessible"


def _claiming(settings: "Settings", clock_offset: float | None) -> list[Finding]:
    """Return other trouble that prevents claims."""
    troubles = [host.memory(settings), host.clock(clock_offset), _sandbox()]
    return [Finding(one.code.capitalize(), False, one.message) for one in troubles if one is not None]


def _sandbox() -> host.Trouble | None:
    """Try the sandbox layers in a child of this process, which opens nothing."""
    try:
        landlock: Any = import_module("geoprocessing_worker.sandbox.landlock")
    except ImportError:
        return None  # a finding among the dependencies
    sys.stdout.flush()
    try:
        child = os.fork()
    except OSError as error:
        return host.no_process(error.strerror or str(error))
    if child == 0:
        try:
            landlock.restrict(landlock.NO_PATHS)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    return host.no_process(f"the first one ended with {status}") if status else None


if __name__ == "__main__":
    raise SystemExit(main())
