"""The settings, read once: environment, then `.env`, then the secrets that this installation made for itself."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from psycopg.conninfo import make_conninfo
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.hosts import HostList, parse_hosts
from geo_jobs_api.jobs import MOST_INLINE_BYTES

_PACKAGE_PARENT = Path(__file__).resolve().parent.parent
# HS256 is only as strong as its key; shorter ones can be guessed offline from one token (RFC 7518 §3.2).
_MINIMUM_SECRET_BYTES = 32
_SSL_MODES = dict.fromkeys(("true", "1", "yes", "on"), "require")
_SSL_MODES |= dict.fromkeys(("false", "0", "no", "off"), "disable")


def project_root() -> Path:
    """The checkout that this package stands in, or the working directory when it was installed elsewhere."""
    return _PACKAGE_PARENT if (_PACKAGE_PARENT / "pyproject.toml").is_file() else Path.cwd()


class Settings(BaseSettings):
    """All settings of the API. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    database_url: SecretStr | None = None
    pghost: str | None = None
    pgport: int = 5432
    pgdatabase: str = "postgres"
    pguser: str | None = None
    pgpassword: SecretStr | None = None
    pgssl: str | None = None
    database_pool_size: int = Field(default=8, ge=2, le=100)
    database_timeout_seconds: float = Field(default=10, gt=0)

    data_dir: Path = Field(default_factory=lambda: project_root() / ".local")

    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8000, ge=0, le=65535)
    api_public_url: str | None = None
    # Shorter than the 30 s that container platforms wait before they kill.
    drain_seconds: float = Field(default=20, gt=0)

    jwt_secret: SecretStr | None = None
    jwks_url: str | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    jwt_leeway_seconds: float = Field(default=10, ge=0, le=300)
    storage_secret: SecretStr | None = None
    worker_auth_token: SecretStr | None = None

    # Hosts that `inputPayload.sourceUrl` may name; empty: none.
    source_hosts: str = ""
    # Hosts of one's own network that webhooks may lead to, also without TLS; all others must be public.
    webhook_hosts: str = ""
    # To one destination, in the mean.
    webhook_deliveries_per_second: float = Field(default=10, gt=0)

    max_file_size: int = Field(default=104_857_600, gt=0)
    signed_url_seconds: float = Field(default=3600, ge=1)

    lease_seconds: float = Field(default=60, gt=0)
    first_lease_seconds: float = Field(default=15, gt=0)
    heartbeat_seconds: float = Field(default=20, gt=0)
    cancel_grace_seconds: float = Field(default=10, ge=0)
    max_worker_losses: int = Field(default=3, ge=1)
    # Task types as they are to be at first; one that somebody has changed since stays as it is.
    task_types: list[dict[str, Any]] = Field(default_factory=list)
    enable_job_timeouts: bool = True
    # Workers end jobs at their timeout by themselves; after so much longer the server does.
    timeout_grace_seconds: float = Field(default=60, ge=0)
    # A worker that lives may have been unheard while the API or the database was away: it gets a lease's time.
    rescue_grace_seconds: float | None = Field(default=None, ge=0)
    rescue_interval_seconds: float = Field(default=0.2, gt=0)
    # Covers a lost notification; a parked claim is otherwise woken at once.
    backstop_seconds: float = Field(default=5, gt=0)
    # A transaction that has been open for longer is named by /health.
    vacuum_warning_seconds: float = Field(default=60, gt=0)
    # How long the listening connection may be silent before it is asked for a sign of life.
    listen_check_seconds: float = Field(default=15, gt=0)
    # Results of so many bytes in all may come with their report; 0: each is uploaded.
    max_inline_bytes: int = Field(default=MOST_INLINE_BYTES, ge=0, le=MOST_INLINE_BYTES)
    # Ended jobs go with their events and objects after so many days; 0 keeps them for ever.
    retain_ended_days: float = Field(default=30, ge=0)
    retain_failed_days: float = Field(default=90, ge=0)
    # A job whose file never came is cancelled.
    retain_unused_days: float = Field(default=7, ge=0)
    cleanup_interval_seconds: float = Field(default=600, gt=0)
    events_interval_seconds: float = Field(default=0.25, gt=0)

    # For each caller and, of requests, each process; 0: no limit. Counting what a caller has looks at all of its jobs.
    requests_per_minute: int = Field(default=6000, ge=0)
    max_open_jobs_per_caller: int = Field(default=0, ge=0)
    max_stored_bytes_per_caller: int = Field(default=0, ge=0)

    log_level: str = "INFO"

    @field_validator("data_dir")
    @classmethod
    def _of_the_project(cls, value: Path) -> Path:
        # The same folder whatever the working directory is, or each would get secrets of its own.
        return project_root() / value.expanduser()

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        level = value.upper()
        if level not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
            raise ValueError("must be DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return level

    @field_validator("jwt_secret", "storage_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < _MINIMUM_SECRET_BYTES:
            raise ValueError(f"must have at least {_MINIMUM_SECRET_BYTES} bytes")
        return value

    @field_validator("worker_auth_token")
    @classmethod
    def _not_trivial(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("must have at least 16 characters")
        return value

    @field_validator("source_hosts", "webhook_hosts")
    @classmethod
    def _is_host_list(cls, value: str) -> str:
        parse_hosts(value)
        return value

    @field_validator("api_public_url")
    @classmethod
    def _is_base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("HEARTBEAT_SECONDS must be at most half of LEASE_SECONDS, or one lost call loses a job")
        if self.jwt_secret is not None and self.jwks_url is not None:
            raise ValueError("set JWT_SECRET or JWKS_URL, not both: each accepts another family of algorithms")
        return self

    @property
    def sources_allowed(self) -> HostList:
        """The hosts that files are fetched from."""
        return parse_hosts(self.source_hosts)

    @property
    def conninfo(self) -> str | None:
        """The database to use, as libpq reads it; None means the embedded one."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        if self.pghost is None:
            return None
        parts: dict[str, Any] = {
            "host": self.pghost,
            "port": self.pgport,
            "dbname": self.pgdatabase,
            "user": self.pguser,
            "password": None if self.pgpassword is None else self.pgpassword.get_secret_value(),
            "sslmode": None if self.pgssl is None else _SSL_MODES.get(self.pgssl.lower(), self.pgssl),
        }
        return make_conninfo("", **{name: value for name, value in parts.items() if value is not None})

    @property
    def object_dir(self) -> Path:
        """Where the local object store keeps its files."""
        return self.data_dir / "objects"

    @property
    def postgres_dir(self) -> Path:
        """Where the embedded database keeps its files."""
        return self.data_dir / "postgres"

    @property
    def rescue_rest_seconds(self) -> float:
        """Longest time between two looks for lost workers: no lease given after a look runs out before the next."""
        return min(self.first_lease_seconds, self.lease_seconds, 50 * self.rescue_interval_seconds)

    @property
    def effective_rescue_grace(self) -> float:
        """Seconds after a start or an outage before leases are declared lost."""
        return self.lease_seconds if self.rescue_grace_seconds is None else self.rescue_grace_seconds


# The metrics library itself reads this when it is imported; processes that share the folder share their counters.
_METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def share_metrics(folder: str) -> None:
    """Have the processes that are started from now on count together, in an empty folder."""
    os.environ[_METRICS_DIR] = folder


def shared_metrics_dir() -> str | None:
    """The folder in which several processes count together; None when this one counts alone."""
    return os.environ.get(_METRICS_DIR)


def _make_private_dir(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def ensure_secrets(data_dir: Path) -> dict[str, str]:
    """Read the secrets that this installation made for itself; make those that are missing.

    The file is `secrets.env` (mode 0600) in `data_dir` (mode 0700), and appears whole. Safe for two processes at once.

    Returns:
        JWT_SECRET, STORAGE_SECRET and WORKER_AUTH_TOKEN.
    """
    try:
        _make_private_dir(data_dir)
        path = data_dir / "secrets.env"
        with (data_dir / ".secrets.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = {name: value for name, value in dotenv_values(path, interpolate=False).items() if value}
            wanted = ("JWT_SECRET", "STORAGE_SECRET", "WORKER_AUTH_TOKEN")
            missing = [name for name in wanted if name not in known]
            if missing:
                known |= {name: secrets.token_urlsafe(48) for name in missing}
                temporary = path.with_suffix(".tmp")
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                    file.writelines(f"{name}={value}\n" for name, value in known.items())
                temporary.replace(path)
    except OSError as error:
        raise ConfigurationError(f"DATA_DIR {data_dir} cannot be used: {error.strerror}: {error.filename}") from error
    return known


def _complain(error: ValidationError) -> ConfigurationError:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]).upper()
        lines.append(f"{name}: {item['msg']}" if name else item["msg"])
    return ConfigurationError("The settings cannot be used. " + "; ".join(lines))


def load_settings(**overrides: Any) -> Settings:
    """The settings in force, complete with secrets.

    Args:
        overrides: values that win over everything, by field name.

    Raises:
        ConfigurationError: a value is wrong, or DATA_DIR cannot be written.
    """
    env_files = (project_root() / ".env", Path(".env"))
    try:
        settings = Settings(_env_file=env_files, **overrides)
        generated = ensure_secrets(settings.data_dir)
        missing = {
            name.lower(): generated[name]
            for name in ("JWT_SECRET", "STORAGE_SECRET", "WORKER_AUTH_TOKEN")
            if getattr(settings, name.lower()) is None
        }
        if settings.jwks_url is not None:
            missing.pop("jwt_secret", None)
        return Settings(_env_file=env_files, **(missing | overrides))
    except ValidationError as error:
        raise _complain(error) from error
