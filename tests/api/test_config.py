"""Settings, and the generated secrets of an installation."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from geo_jobs_api.config import VERBATIM, Settings, ensure_secrets, load_settings
from geo_jobs_api.database.sessions import _SESSION
from geo_jobs_api.errors import ConfigurationError
from tests.support.clients import rows
from tests.support.database import DatabaseServer
from tests.support.markdown import blocks
from tests.support.processes import ROOT
from tests.support.wrong_settings import wrong_values

WRONG = [
    (name, value)
    for name, field in Settings.model_fields.items()
    if name not in {*VERBATIM, "task_types"}
    for value in wrong_values(name, str(field.annotation))
]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine applies."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("geo_jobs_api.config.project_root", lambda: tmp_path)


def test_secrets_are_generated_once_private_and_atomic(tmp_path: Path) -> None:
    """Mode 0600 in a folder of mode 0700. Concurrent processes get the same secrets."""
    data = tmp_path / "data"
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: ensure_secrets(data), range(8)))
    assert all(item == made[0] for item in made)
    assert made[0].keys() == {"JWT_SECRET", "STORAGE_SECRET", "WORKER_AUTH_TOKEN"}
    assert stat.S_IMODE((data / "secrets.env").stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_a_given_secret_wins_over_a_generated_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment wins over `.env`, which wins over generated values."""
    (tmp_path / ".env").write_text("WORKER_AUTH_TOKEN=token-from-the-env-file\nSTORAGE_SECRET=" + "f" * 40 + "\n")
    monkeypatch.setenv("STORAGE_SECRET", "e" * 40)
    settings = load_settings()
    assert settings.storage_secret is not None
    assert settings.storage_secret.get_secret_value() == "e" * 40
    assert settings.worker_auth_token is not None
    assert settings.worker_auth_token.get_secret_value() == "token-from-the-env-file"
    assert settings.jwt_secret is not None
    assert settings.data_dir == tmp_path / ".local"
    assert load_settings() == settings


def test_no_secret_for_tokens_is_generated_beside_a_key_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """With JWKS_URL, tokens signed by a local secret are rejected."""
    monkeypatch.setenv("JWKS_URL", "https://id.example/keys")
    assert load_settings().jwt_secret is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("JWT_SECRET", "short", "JWT_SECRET: .*32 bytes"),
        ("STORAGE_SECRET", "short", "STORAGE_SECRET: .*32 bytes"),
        ("WORKER_AUTH_TOKEN", "short", "WORKER_AUTH_TOKEN: .*16 characters"),
        ("API_PORT", "70000", "API_PORT"),
        ("MAX_FILE_SIZE", "0", "MAX_FILE_SIZE"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL: .*DEBUG"),
        ("API_PUBLIC_URL", "maps.example", "API_PUBLIC_URL: .*http"),
        ("API_PUBLIC_URL", "https://maps.example/?a=1", "API_PUBLIC_URL: .*no query"),
        ("JWKS_URL", "x", "JWKS_URL: must begin with http"),
        ("JWKS_URL", "https://", "JWKS_URL: must have a host"),
        ("DATABASE_URL", "mysql://short", "DATABASE_URL: must be a PostgreSQL URL"),
        ("DATABASE_URL", "short", "DATABASE_URL: must be a PostgreSQL URL"),
        ("DATABASE_LISTEN_URL", "http://short", "DATABASE_LISTEN_URL: must be a PostgreSQL URL"),
        ("SOURCE_HOSTS", "a.b; c.d", "SOURCE_HOSTS: 'a.b; c.d' is not a host name"),
        ("WEBHOOK_HOSTS", "https://a.b", "WEBHOOK_HOSTS: .* is not a host name"),
        ("API_HOST", "http://a.b:1", "API_HOST: must be an address or host name"),
        ("ENABLE_JOB_TIMEOUTS", "bananas", "ENABLE_JOB_TIMEOUTS: must be true or false .1, yes"),
        ("DRAIN_SECONDS", "inf", "DRAIN_SECONDS: .*finite"),
        ("LEASE_SECONDS", "30", "HEARTBEAT_SECONDS must be at most half"),
    ],
)
def test_a_wrong_value_is_named_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    """The message contains the setting and the rule, but not a secret's value."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=words) as caught:
        load_settings()
    assert "short" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_no_setting_accepts_an_impossible_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Blank, malformed, infinite and out-of-range values for each kind of setting. The message names it."""
    monkeypatch.setenv(name.upper(), value)
    with pytest.raises(ConfigurationError, match=f"{name.upper()}: "):
        load_settings()


def test_white_space_around_a_value_does_not_count_but_in_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets that other programs sign with are used byte by byte."""
    for name, value in (("WORKER_AUTH_TOKEN", "a-token-of-a-worker\n"), ("JWT_SECRET", "s" * 32 + "\n")):
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.worker_auth_token is not None
    assert settings.jwt_secret is not None
    assert settings.worker_auth_token.get_secret_value() == "a-token-of-a-worker"
    assert settings.jwt_secret.get_secret_value() == "s" * 32 + "\n"


def test_the_settings_in_the_documents_work_as_pasted(tmp_path: Path) -> None:
    """Each block of settings in docs/OPERATIONS.md, in a .env with a database."""
    found = blocks((ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8"), "ini")
    assert found
    for block in found:
        (tmp_path / ".env").write_text("DATABASE_URL=postgresql://geo_jobs@bouncer.internal/geo_jobs\n" + block.text)
        settings = load_settings()
        names = [line.partition("=")[0] for line in block.text.splitlines() if not line.startswith("#")]
        assert {name.lower() for name in names} <= settings.model_fields_set


def test_the_statements_in_the_documents_run_as_pasted(postgres: DatabaseServer, postgres_url: str) -> None:
    """Each block of SQL in docs/OPERATIONS.md, by a superuser. The role then has the settings of a session."""
    postgres.execute("CREATE ROLE geo_jobs")
    try:
        for block in blocks((ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8"), "sql"):
            for statement in block.text.split(";"):
                if statement.strip():
                    postgres.execute(statement)
        (role,) = rows(postgres_url, "SELECT setconfig FROM pg_db_role_setting WHERE setrole = 'geo_jobs'::regrole")
        assert {one.partition("=")[0].lower() for one in role["setconfig"]} == set(_SESSION)
    finally:
        postgres.execute("DROP ROLE geo_jobs")


def test_a_secret_and_a_key_set_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """With both algorithm families, a public key would be accepted as a secret."""
    monkeypatch.setenv("JWKS_URL", "https://id.example/keys")
    monkeypatch.setenv("JWT_SECRET", "x" * 40)
    with pytest.raises(ConfigurationError, match="not both"):
        load_settings()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"DATABASE_URL": "postgresql://u@h/d"}, "postgresql://u@h/d"),
        (
            {"PGHOST": "db", "PGUSER": "u", "PGPASSWORD": "p w"},
            "host=db port=5432 dbname=postgres user=u password='p w'",
        ),
        ({"PGHOST": "db", "PGSSL": "true"}, "host=db port=5432 dbname=postgres sslmode=require"),
        ({"PGHOST": "db", "PGSSL": "verify-full"}, "host=db port=5432 dbname=postgres sslmode=verify-full"),
    ],
)
def test_the_database_is_the_one_that_the_environment_names_else_the_embedded_one(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    """DATABASE_URL, or PGHOST and related settings."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings().conninfo == expected


def test_a_data_folder_that_cannot_be_created_is_one_clear_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message names the setting."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "file" / "data"))
    with pytest.raises(ConfigurationError, match="DATA_DIR"):
        load_settings()
