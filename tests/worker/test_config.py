"""Settings: their sources, and the messages for invalid ones."""

import os
from pathlib import Path

import pytest

from geoprocessing_worker import config, config_report
from geoprocessing_worker.errors import ConfigurationError
from tests.support.wrong_settings import wrong_values

NAMES = [name.upper() for name in config.Settings.model_fields]


WRONG = [
    (name, value)
    for name, field in config.Settings.model_fields.items()
    if name not in config.VERBATIM
    for value in wrong_values(name, str(field.annotation))
]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in (*NAMES, "DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "project_root", lambda: tmp_path)
    return tmp_path


def test_the_environment_wins_over_dotenv_and_dotenv_over_the_default(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare / ".env").write_text("POLL_INTERVAL=7\nCONCURRENT_JOBS=3\n")
    monkeypatch.setenv("POLL_INTERVAL", "9")
    got = config.load()
    assert (got.settings.poll_interval, got.settings.concurrent_jobs, got.settings.max_image_size) == (9, 3, 4096)
    places = [got.sources[name] for name in ("poll_interval", "concurrent_jobs", "max_image_size")]
    assert places == ["environment", ".env", "default"]


def test_job_folders_lie_in_the_folder_for_state_of_the_service_or_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STATE_DIRECTORY wins, then XDG_STATE_HOME, whatever HOME is, then the home folder."""
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert config.load().settings.temp_dir == tmp_path / ".local" / "state" / "geoprocessing-worker"
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert config.load().settings.temp_dir == tmp_path / "xdg" / "geoprocessing-worker"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/worker:/var/lib/other")
    assert config.load().settings.temp_dir == Path("/var/lib/worker")


def test_the_local_stack_is_used_as_a_whole_or_not_at_all(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / ".local").mkdir()
    (bare / ".local" / "stack.env").write_text("API_BASE_URL='http://127.0.0.1:1'\nWORKER_AUTH_TOKEN='stack-token'\n")
    assert config.load(local_stack=True).settings.worker_auth_token.get_secret_value() == "stack-token"
    assert not config.load().settings.is_configured
    monkeypatch.setenv("API_BASE_URL", "https://production.example")
    # The stack's token must not be sent to another API.
    assert config.load(local_stack=True).settings.worker_auth_token.get_secret_value() == ""


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("API_BASE_URL", "ftp://x", "API_BASE_URL: must begin with http:// or https:// (it is 'ftp://x')"),
        ("CONCURRENT_JOBS", "0", "CONCURRENT_JOBS: input should be greater than or equal to 1 (it is '0')"),
        ("LOG_LEVEL", "LOUD", "LOG_LEVEL: input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR' (it is 'LOUD')"),
        ("API_BASE_URL", "https://x.org/api", "API_BASE_URL: must be scheme, host and port alone"),
        ("API_BASE_URL", "https://x.org?a=1", "API_BASE_URL: must be scheme, host and port alone"),
        ("API_BASE_URL", "https://u:p@x.org:8/#a", "API_BASE_URL: must be scheme, host and port alone"),
        ("STORAGE_HOSTS", "a.b; c.d", "STORAGE_HOSTS: 'a.b; c.d' is not a host name. Give names without scheme"),
        ("STORAGE_HOSTS", "https://a.b", "STORAGE_HOSTS: 'https://a.b' is not a host name"),
        ("STORAGE_HOSTS", "a.b:9000", "STORAGE_HOSTS: 'a.b:9000' is not a host name"),
        ("SOURCE_HOSTS", "a.b,*.", "SOURCE_HOSTS: '*.' is not a host name"),
        ("SOURCE_HOSTS", "a.b c.d", "SOURCE_HOSTS: 'a.b c.d' is not a host name"),
        ("STORAGE_NETWORKS", "10.0.0.1/8", "STORAGE_NETWORKS: "),
        ("DATABASE_URL", "mysql://x", "DATABASE_URL: must be a PostgreSQL URL such as postgresql://"),
        ("DATABASE_URL", "db.example.org", "DATABASE_URL: must be a PostgreSQL URL"),
        ("SHUTDOWN_GRACE", "inf", "SHUTDOWN_GRACE: input should be a finite number"),
        ("MAX_PROCESSING_TIME", "nan", "MAX_PROCESSING_TIME: input should be a finite number"),
        ("SCAN_FOR_MALWARE", "bananas", "SCAN_FOR_MALWARE: must be true or false (1, yes, on, 0, no, off)"),
        ("CLAMD_ADDRESS", "x", "CLAMD_ADDRESS: must be the path of a socket, or host:port (it is 'x')"),
    ],
)
def test_an_invalid_value_is_named_with_the_valid_ones(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        config.load()
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_no_setting_takes_a_value_that_it_cannot_mean(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank, broken, endless and out of range, for each setting by its kind. The message begins with its name."""
    monkeypatch.setenv(name.upper(), value)
    with pytest.raises(ConfigurationError) as caught:
        config.load()
    assert {line.partition(":")[0] for line in str(caught.value).splitlines()} == {name.upper()}


def test_white_space_around_a_value_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets from files end with a line break. Passwords are taken as they are."""
    for name, value in (("WORKER_AUTH_TOKEN", "a-token\n"), ("WORKER_NAME", " north "), ("PGPASSWORD", " p \n")):
        monkeypatch.setenv(name, value)
    settings = config.load().settings
    assert (settings.worker_auth_token.get_secret_value(), settings.worker_name) == ("a-token", "north")
    assert settings.pgpassword.get_secret_value() == " p \n"


@pytest.mark.parametrize("value", ["db", "10.0.0.5", "::1", "/run/postgresql", "@socket", "a.example,b.example"])
def test_every_host_that_libpq_takes_is_taken(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", value)
    assert config.load().settings.pghost == value


def test_hosts_are_names_addresses_and_endings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every form that the documents show is taken."""
    monkeypatch.setenv("SOURCE_HOSTS", "*, *.Example.org, 10.0.0.5, ::1, bücher.example, minio, a-b.c1.org.")
    assert config.load().settings.source_hosts[:3] == ("*", "*.example.org", "10.0.0.5")
    monkeypatch.setenv("DATABASE_URL", "host=db dbname=x")
    assert config.load().settings.database_url.get_secret_value() == "host=db dbname=x"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("COORDINATE_SYSTEM", "EPSG:99999", "❌ COORDINATE_SYSTEM: Unknown coordinate system 'EPSG:99999'"),
        ("WORKER_TASK_TYPES", "typo", "❌ WORKER_TASK_TYPES: no handler is installed for typo; installed: "),
        ("CA_BUNDLE", "none.pem", "❌ CA_BUNDLE: none.pem has no certificates"),
        ("LOG_FILE", "nowhere/worker.log", "❌ LOG_FILE: nowhere/worker.log must be a file in a folder that exists"),
        ("TEMP_DIR", "/dev/null/jobs", "❌ TEMP_DIR: /dev/null/jobs is a file or lies below one"),
    ],
)
def test_config_reports_settings_that_stop_the_worker(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also settings that only handlers or the file system can check."""
    monkeypatch.setenv("API_BASE_URL", "https://maps.example")
    monkeypatch.setenv("WORKER_AUTH_TOKEN", "a-token")
    monkeypatch.setenv(name, value)
    assert config_report.main() == 1
    assert said in capsys.readouterr().out


def test_the_configuration_is_printed_with_secrets_masked_and_problems_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKER_AUTH_TOKEN", "very-secret")
    monkeypatch.setenv("PGPASSWORD", "also-secret")
    assert config_report.main() == 1
    printed = capsys.readouterr().out
    assert "secret" not in printed
    assert "❌ API_BASE_URL is not set" in printed
    monkeypatch.setenv("API_BASE_URL", "https://maps.example/")
    assert config_report.main() == 0
    printed = capsys.readouterr().out
    assert [name for name in NAMES if name not in printed] == []


def test_children_inherit_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        for name in list(os.environ):
            patched.setenv(name, os.environ[name])  # so that all of them come back
        patched.setenv("WORKER_AUTH_TOKEN", "very-secret")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
        patched.delenv("OPENBLAS_NUM_THREADS", raising=False)
        config.keep_harmless_environment()
        left = dict(os.environ)
    assert "very-secret" not in left.values()
    assert "PATH" in left
