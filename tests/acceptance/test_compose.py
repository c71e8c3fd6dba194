"""docker-compose.yml: each setting of `.env` reaches both programs, except for addresses and folders of the host."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from geo_jobs_api.config import Settings as ApiSettings
from geoprocessing_worker.config import Settings as WorkerSettings
from tests.support.processes import ROOT

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
KNOWN = {name.upper() for name in (*ApiSettings.model_fields, *WorkerSettings.model_fields)}
DATABASE = {"DATABASE_URL", "PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGSSL"}
# Settings that a container does not take from .env unchanged.
OVERRIDDEN = {
    "api": {"API_HOST", "API_PORT", "DATA_DIR", "WORKER_AUTH_TOKEN", *DATABASE},
    "worker": {
        "API_BASE_URL",
        "WORKER_AUTH_TOKEN",
        "TEMP_DIR",
        "LOG_FILE",
        "DATABASE_URL",
        "PGHOST",
        "PGPASSWORD",
        "JWT_SECRET",
        "STORAGE_SECRET",
    },
}
DOTENV = {
    "WORKER_AUTH_TOKEN": "worker-token-of-some-length",
    "PGPASSWORD": "database-password",
    "JWKS_URL": "https://login.example.org/keys",
    "DATABASE_URL": "postgresql://host.example.org/elsewhere",
    "API_BASE_URL": "https://maps.example.org",
    "API_HOST": "127.0.0.1",
    "API_PORT": "9000",
    "DATA_DIR": "/srv/geo-jobs",
    "TEMP_DIR": "/srv/jobs",
    "PGSSL": "true",
    "MAX_IMAGE_SIZE": "777",
    "SOURCE_HOSTS": "data.example.org",
    "REQUESTS_PER_MINUTE": "7",
    "RETAIN_ENDED_DAYS": "3",
}


def environment_of(service: str) -> dict[str, str]:
    """The variables of a container as compose sets them: env_file, then `environment`, interpolated from .env."""

    def interpolated(found: re.Match[str]) -> str:
        return DOTENV.get(found["name"]) or found["default"] or ""

    own = {
        name: re.sub(r"\$\{(?P<name>\w+)(?::[-?](?P<default>[^}]*))?\}", interpolated, str(value))
        for name, value in SERVICES[service]["environment"].items()
    }
    assert SERVICES[service]["env_file"] == ".env"
    return DOTENV | own


@pytest.mark.parametrize("service", ["api", "worker"])
def test_every_setting_but_a_known_few_reaches_the_container(service: str) -> None:
    """All of `.env` is passed. Only settings without meaning or use in a container are replaced."""
    assert set(SERVICES[service]["environment"]) == OVERRIDDEN[service]
    assert OVERRIDDEN[service] <= KNOWN


def test_images_are_pinned_by_digest() -> None:
    """The database's image has a digest, and so has the base that both builds pass to the Dockerfile."""
    images = [SERVICES["postgres"]["image"]]
    images += [SERVICES[name]["build"]["args"]["PYTHON_IMAGE"] for name in ("api", "worker")]
    assert [image for image in images if not re.fullmatch(r"[a-z]+:[\w.-]+@sha256:[0-9a-f]{64}", image)] == []
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {base for base, _ in stages} - {name for _, name in stages} == {"${PYTHON_IMAGE}"}


def test_each_program_has_its_own_image() -> None:
    """Each target installs the pins of its program. A plain `docker build` makes the worker's."""
    stages = (ROOT / "Dockerfile").read_text(encoding="utf-8").split("\nFROM ")[1:]
    pins = {stage.split()[2]: re.findall(r"-r (requirements\S+)", stage) for stage in stages}
    for name in ("api", "worker"):
        assert SERVICES[name]["build"]["target"] == name
        assert pins[f"{name}-environment"] == [f"requirements-{name}.txt"]
    assert stages[-1].split()[2] == "worker"


@pytest.mark.parametrize("service", ["postgres", "api", "worker"])
def test_containers_drop_unneeded_capabilities(service: str) -> None:
    """PostgreSQL's image changes its account at the start. The project's own has none, and writes to /data and /tmp."""
    container = SERVICES[service]
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert 0 < container["pids_limit"] <= 1024
    if service != "postgres":
        assert (container["read_only"], container["tmpfs"]) == (True, ["/tmp"])  # noqa: S108
        assert "cap_add" not in container
        assert [volume for volume in container.get("volumes", ()) if not volume.endswith(":/data")] == []


def shown(service: str, code: str, folder: Path) -> dict[str, str]:
    """The settings of a program in the container's environment."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **environment_of(service)}
    # The image has /data, this machine does not.
    environment |= {"DATA_DIR": str(folder / "data")} if service == "api" else {"LOG_FILE": str(folder / "worker.log")}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return dict(line.split("=", 1) for line in ran.stdout.splitlines())


def test_the_api_gets_its_settings_and_the_compose_database(tmp_path: Path) -> None:
    code = (
        "from geo_jobs_api.config import load_settings as load; s = load()\n"
        "for n in ('requests_per_minute', 'retain_ended_days', 'source_hosts', 'api_host', 'api_port', 'jwks_url'):\n"
        "    print(n, getattr(s, n), sep='=')\n"
        "print('conninfo', s.conninfo, sep='=')"
    )
    settings = shown("api", code, tmp_path)
    assert settings == {
        "requests_per_minute": "7",
        "retain_ended_days": "3.0",
        "source_hosts": "data.example.org",
        "api_host": "0.0.0.0",  # noqa: S104 - within the container
        "api_port": "8000",
        "jwks_url": "https://login.example.org/keys",
        "conninfo": "host=postgres port=5432 dbname=geo_jobs user=geo_jobs password=database-password",
    }
    assert SERVICES["api"]["environment"]["DATA_DIR"] == "/data/api"
    assert SERVICES["api"]["ports"] == ["127.0.0.1:${API_PORT:-8000}:8000"]


def test_the_worker_gets_its_settings_but_no_secret_of_the_api(tmp_path: Path) -> None:
    code = (
        "from geoprocessing_worker import config, config_report; s = config.load().settings\n"
        "for n in ('max_image_size', 'source_hosts', 'api_base_url', 'temp_dir', 'pghost'):\n"
        "    print(n, getattr(s, n), sep='=')\n"
        "print('problems', config_report.problems(s), sep='=')"
    )
    settings = shown("worker", code, tmp_path)
    assert settings == {
        "max_image_size": "777",
        "source_hosts": "('data.example.org',)",
        "api_base_url": "http://api:8000",
        "temp_dir": "/data/jobs",
        "pghost": "",
        "problems": "[]",
    }
    for secret in ("JWT_SECRET", "STORAGE_SECRET", "PGPASSWORD", "DATABASE_URL"):
        assert environment_of("worker")[secret] == ""
