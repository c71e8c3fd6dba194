"""`config.py` also finds misspelled names, and the API's settings and their faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from geo_jobs_api.config import Settings as ApiSettings
from geoprocessing_worker.config import Settings
from geoprocessing_worker.neighbors import unknown_names

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {*Settings.model_fields, *ApiSettings.model_fields}
WORKING = {"API_BASE_URL": "https://maps.example.org", "WORKER_AUTH_TOKEN": "a-token-of-enough-letters"}


def config(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)} | WORKING | variables
    command = [sys.executable, str(ROOT / "geoprocessing-worker" / "config.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment, cwd=folder)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("WORKER_AUTH_TOKN", "WORKER_AUTH_TOKEN"),
        ("WORKER_TOKEN", "WORKER_AUTH_TOKEN"),
        ("worker_nam", "WORKER_NAME"),
        ("MAX_FILESIZE", "MAX_FILE_SIZE"),
        ("CONCURENT_JOBS", "CONCURRENT_JOBS"),
        ("SOURCE_HOST", "SOURCE_HOSTS"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("PGUSERNAME", "PGUSER"),
        ("PGSSLL", "PGSSL"),
        ("MAXIMUM_FILE_SIZE", "MAX_FILE_SIZE"),
        ("FILE_SIZE_MAX", "MAX_FILE_SIZE"),
        ("TEMP_DIRECTORY", "TEMP_DIR"),
        ("TEMPORARY_DIR", "TEMP_DIR"),
        ("CONC_JOBS", "CONCURRENT_JOBS"),
        ("DISABLED_WORKERS", "DISABLE_WORKERS"),
        ("THUMB_SIZE", "THUMBNAIL_SIZE"),
        ("COORD_SYSTEM", "COORDINATE_SYSTEM"),
        ("COMPRESS_QUALITY", "COMPRESSION_QUALITY"),
        ("VALIDATE_FILE_HEADER", "VALIDATE_FILE_HEADERS"),
        ("PROCESSING_TIME_MAX", "MAX_PROCESSING_TIME"),
        ("POLLING_INTERVAL", "POLL_INTERVAL"),
        ("API_URL_BASE", "API_BASE_URL"),
        ("MEMORY_MB_MAX", "MAX_MEMORY_MB"),
        ("CLEAN_INTERVAL_SECONDS", "CLEANUP_INTERVAL_SECONDS"),
        ("RETAIN_DAYS", "RETAIN_ENDED_DAYS"),
        ("WORKER_COLOR", None),
        ("GEO_THING", None),
    ],
)
def test_names_in_the_environment_close_to_a_setting_are_reported(name: str, meant: str | None) -> None:
    """With the setting that was probably meant."""
    (line,) = unknown_names([("environment", {name: "x"})], KNOWN)
    assert line.startswith(f"{name} (environment) is no setting.")
    assert line.endswith(f"Did you mean {meant}?") is (meant is not None)


@pytest.mark.parametrize(
    "name",
    ["PATH", "TMPDIR", "PGSSLMODE", "PGPASSFILE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "LOG_DIR", "MAX_JOBS", "DATA",
     "API_SERVICE_HOST", "API_PORT_8000_TCP_ADDR", "VENV_DIR", "LC_ALL", "COMPOSE_PROJECT_NAME"],
)  # fmt: skip
def test_names_of_other_programs_are_left_alone(name: str) -> None:
    assert unknown_names([("environment", {name: "x"})], KNOWN) == []


def test_names_in_the_env_file_with_the_prefix_of_a_setting_are_reported() -> None:
    """More names count as misspelled there, since the file is ours."""
    assert unknown_names([(".env", {"LOG_DIR": "x", "COMPOSE_PROJECT_NAME": "maps"})], KNOWN) == [
        "LOG_DIR (.env) is no setting."
    ]


def test_no_setting_of_either_program_is_called_unknown() -> None:
    assert unknown_names([(".env", {name.upper(): "x" for name in KNOWN})], KNOWN) == []


def test_the_apis_settings_are_known_where_the_api_is_not_installed() -> None:
    """API_HOST and API_PORT are no misspelled PGHOST and PGPORT."""
    environment = {name.upper(): "x" for name in ApiSettings.model_fields}
    assert unknown_names([("environment", environment), (".env", environment)], Settings.model_fields) == []


def test_the_command_prints_settings_of_both_programs_and_misspelled_names(tmp_path: Path) -> None:
    """Each setting has its source. Secrets are masked, and DATA_DIR is not created."""
    (tmp_path / ".env").write_text("RETAIN_ENDED_DAYS=3\nMAX_FILESIZE=1\nSTORAGE_SECRET=" + "s" * 40 + "\n")
    ended = config(tmp_path, DATA_DIR=str(tmp_path / "data"), JWT_LEEWAY_SECONDS="7", WORKER_AUTH_TOKN="x")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = {line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines() if line.split()}
    assert lines["RETAIN_ENDED_DAYS"] == ["3", ".env"]
    assert lines["JWT_LEEWAY_SECONDS"] == ["7", "environment"]
    assert lines["STORAGE_SECRET"] == ["********", ".env"]
    assert {name.upper() for name in KNOWN} <= lines.keys()
    assert "⚠️  MAX_FILESIZE (.env) is no setting. Did you mean MAX_FILE_SIZE?" in ended.stdout
    assert "⚠️  WORKER_AUTH_TOKN (environment) is no setting. Did you mean WORKER_AUTH_TOKEN?" in ended.stdout
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "value", "said", "code"),
    [
        ("PGSSL", "bananas", "❌ PGSSL: must be true, false, disable,", 1),
        ("PGSSL", "Verify-Full", None, 0),
        ("RETAIN_ENDED_DAYS", "-1", "⚠️  The API would not start here: RETAIN_ENDED_DAYS: ", 0),
        ("TASK_TYPES", "geotiff_info", "⚠️  The API would not start here: TASK_TYPES: must be a JSON list", 0),
        ("TASK_TYPES", "null", "⚠️  The API would not start here: TASK_TYPES: Input should be a valid list", 0),
        ("TASK_TYPES", '[{"name": "a", "maxConcurentRuns": 1}]', "Did you mean 'maxConcurrentRuns'?", 0),
    ],
)
def test_a_bad_value_of_either_program_is_reported_once(
    name: str, value: str, said: str | None, code: int, tmp_path: Path
) -> None:
    """A value that stops the worker is an error, one that stops only the API a warning."""
    ended = config(tmp_path, **{name: value})
    assert ended.returncode == code, ended.stdout
    complaints = [line for line in ended.stdout.splitlines() if line.startswith(("❌", "⚠️"))]
    assert len(complaints) == (said is not None)
    assert said is None or said in complaints[0]


def test_the_api_refuses_a_bad_pgssl_too() -> None:
    """The message lists the allowed values. That of libpq does not."""
    with pytest.raises(ValueError, match="must be true, false, disable"):
        ApiSettings(_env_file=None, pgssl="bananas")
