"""Commands use the settings of the running API instead of those of their shell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from geo_jobs_api.cli import main
from tests.support.api import RunningApi
from tests.support.clients import Person, rows

SCHEDULE = {
    "name": "hourly",
    "cron": "0 * * * *",
    "template": {"taskType": "geotiff_info", "inputPayload": {"sourceUrl": "https://maps.example.org/a.tif"}},
}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set this process's environment to that of a shell, for the API's database."""
    monkeypatch.setattr("geo_jobs_api.cli.configure", lambda _: None)

    def enter(api: RunningApi, **variables: str) -> None:
        usual = {"DATABASE_URL": api.settings.conninfo or "", "DATA_DIR": str(api.settings.data_dir)}
        for name, value in (usual | variables).items():
            monkeypatch.setenv(name, value)

    return enter


@pytest.mark.parametrize(("of_the_api", "of_the_shell"), [("maps.example.org", ""), ("", "maps.example.org")])
def test_a_schedule_is_created_and_run_with_the_apis_source_hosts(
    of_the_api: str,
    of_the_shell: str,
    api_server: Callable[..., RunningApi],
    shell: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without the setting in the shell nothing is rejected, and with it nothing more is allowed."""
    shell(api_server(source_hosts="maps.example.org"), SOURCE_HOSTS="")
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps(SCHEDULE))
    assert main(["schedules", "create", str(file), "--owner", "ada", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)["id"]
    # The API is restarted with other settings.
    shell(api_server(source_hosts=of_the_api), SOURCE_HOSTS=of_the_shell)
    allowed = bool(of_the_api)
    assert main(["schedules", "run", made]) == (0 if allowed else 1)
    told = capsys.readouterr()
    assert ("Created job " in told.out) is allowed
    assert ("SOURCE_HOSTS" in told.err) is not allowed


def test_a_cleanup_uses_the_apis_settings(
    api_server: Callable[..., RunningApi], shell: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell with a tiny retention period removes no job that the API keeps for 30 days."""
    api = api_server()
    person = Person(api)
    job_id = str(person.create()["id"])
    person.cancel(job_id).raise_for_status()
    rows(api.settings.conninfo or "", "UPDATE jobs SET finished_at = now() - interval '1 day'")
    shell(api, RETAIN_ENDED_DAYS="0.001")
    assert main(["cleanup", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["jobsRemoved"] == 0
    assert person.look(job_id)["state"] == "cancelled"


def test_no_secret_is_recorded(api: RunningApi) -> None:
    (row,) = rows(api.settings.conninfo or "", "SELECT settings::text AS text FROM service_settings")
    assert not any(word in row["text"] for word in ("secret", "token", "password", "://", "dir"))
