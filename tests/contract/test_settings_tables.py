"""docs/SETTINGS.md and `.env.example` match the settings, and the example is usable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from dotenv import dotenv_values

from geo_jobs_api.config import Settings as ApiSettings
from geoprocessing_worker.config import Settings as WorkerSettings
from scripts import settings_tables

ROOT = Path(__file__).resolve().parents[2]
BOTH = {name.upper() for name in (*WorkerSettings.model_fields, *ApiSettings.model_fields)}
# Fixed names that users rely on.
PROMISED = """
API_BASE_URL WORKER_AUTH_TOKEN WORKER_NAME POLL_INTERVAL HEARTBEAT_INTERVAL MAX_PROCESSING_TIME MAX_FILE_SIZE
CONCURRENT_JOBS LOG_LEVEL TEMP_DIR VALIDATE_FILE_HEADERS SCAN_FOR_MALWARE DISABLE_WORKERS ENABLE_JOB_TIMEOUTS
PGHOST PGPORT PGDATABASE PGUSER PGPASSWORD PGSSL MAX_IMAGE_SIZE COMPRESSION_QUALITY GENERATE_THUMBNAILS
THUMBNAIL_SIZE COORDINATE_SYSTEM
"""


def test_the_settings_documents_are_up_to_date() -> None:
    """Run `make settings` after a change of settings."""
    for path, text in settings_tables.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run `make settings`"


def test_both_documents_have_every_setting_of_both_programs() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=", example, re.MULTILINE)) == BOTH
    page = (ROOT / "docs" / "SETTINGS.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([A-Z0-9_]+)` \|", page, re.MULTILINE)) == BOTH


@pytest.mark.parametrize("name", PROMISED.split())
def test_a_fixed_setting_exists_and_is_in_the_readme(name: str) -> None:
    assert name in BOTH
    assert f"`{name}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("settings", [WorkerSettings, ApiSettings])
def test_both_programs_accept_the_example_with_every_line_active(
    settings: type[WorkerSettings] | type[ApiSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each default and example can be read back, and each shown default is the real one."""
    for name in BOTH:
        monkeypatch.delenv(name, raising=False)
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    file = tmp_path / ".env"
    file.write_text(re.sub(r"^# (?=[A-Z][A-Z0-9_]*=)", "", example, flags=re.MULTILINE))
    assert set(dotenv_values(file)) == BOTH
    given, bare = settings(_env_file=file), settings(_env_file=None)
    for name, field in type(given).model_fields.items():
        if not field.examples and not field.json_schema_extra:
            assert getattr(given, name) == getattr(bare, name), name
