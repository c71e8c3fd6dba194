"""The settings: read once from the environment, then `.env`, then the generated secrets of this installation."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal

import psycopg
from dotenv import dotenv_values
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.hosts import (
    BaseUrl,
    HostList,
    HostNames,
    ListenHost,
    Networks,
    WebUrl,
    parse_hosts,
)
from geo_jobs_common.setting_values import (
    Bytes,
    Count,
    DatabaseHosts,
    Days,
    PossiblePath,
    Seconds,
    SslMode,
    check_token,
    strip_text,
)

_PACKAGE_PARENT = Path(__file__).resolve().parent.parent
# A short HS256 key can be guessed offline from one token (RFC 7518 §3.2).
_MINIMUM_SECRET_BYTES = 32
# In base64 and beside the largest metadata, such results still fit into a JSON body (1 MiB).
MAX_INLINE_BYTES = 256 * 1024
_GENERATED = ("JWT_SECRET", "STORAGE_SECRET", "WORKER_AUTH_TOKEN")
# Other programs sign with these too, so they are used byte by byte.
VERBATIM = frozenset({"jwt_secret", "storage_secret", "pgpassword"})


def project_root() -> Path:
    """Return the checkout with this package, or the working directory when installed elsewhere."""
    return _PACKAGE_PARENT if (_PACKAGE_PARENT / "pyproject.toml").is_file() else Path.cwd()


def default_data_dir() -> Path:
    """Return `.local` of the checkout or, if it is not writable, a folder below XDG_STATE_HOME."""
    own = project_root() / ".local"
    if os.access(own if own.exists() else own.parent, os.W_OK):
        return own
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - keeps an unknown ~
    return Path(state) / "geoprocessing-worker"


def _decoded(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"must be a JSON list ({error})") from None


class Settings(BaseSettings):
    """All settings of the API. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    database_url: SecretStr | None = Field(
        None, description="the database as a URL, instead of PGHOST and related settings"
    )
    pghost: DatabaseHosts | None = Field(
        None,
        description="host of the database (without it and DATABASE_URL: an embedded database in DATA_DIR)",
    )
    pgport: int = Field(5432, gt=0, lt=65536, description="port of the database")
    pgdatabase: str = Field("postgres", description="name of the database")
    pguser: str | None = Field(None, description="role at the database, which must own its schema")
    pgpassword: SecretStr | None = Field(None, description="password of the role")
    pgssl: SslMode | None = Field(None, description="`true`, `false`, or one of libpq's `sslmode` values")
    database_pooling: Literal["session", "transaction"] = Field(
        "session",
        description="`transaction` behind a pooler that assigns sessions to transactions (PgBouncer's `pool_mode`), "
        "which needs DATABASE_LISTEN_URL",
    )
    database_listen_url: SecretStr | None = Field(
        None,
        description="a direct address of the same database for LISTEN, which transaction pooling does not support",
    )
    database_pool_size: int = Field(
        8, ge=2, le=100, description="maximum connections of a process, without four for batches of worker calls"
    )
    database_timeout_seconds: Seconds = Field(10, gt=0, description="seconds to wait for a free connection")

    data_dir: PossiblePath = Field(
        default_factory=default_data_dir,
        description="folder of the files, the generated secrets and the embedded database",
        json_schema_extra={"shown": ".local"},
    )

    api_host: ListenHost = Field("127.0.0.1", description="address to listen on")
    api_port: int = Field(8000, ge=0, le=65535, description="port to listen on (0: any free port)")
    api_public_url: BaseUrl | None = Field(
        None, description="base of signed URLs (default: the address that the caller used)"
    )
    trusted_proxies: Networks = Field(
        "",
        description="addresses or networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` count",
        examples=["10.0.0.5,10.1.0.0/24"],
    )
    # Container platforms kill after 30 s.
    drain_seconds: Seconds = Field(20, gt=0, description="seconds that running requests get after SIGTERM")

    jwt_secret: SecretStr | None = Field(
        None, description="signs people's tokens (HS256), at least 32 bytes (default: generated)"
    )
    jwks_url: WebUrl | None = Field(None, description="URL of an identity provider's keys, instead of JWT_SECRET")
    jwt_audience: str | None = Field(None, description="`aud` that tokens must have")
    jwt_issuer: str | None = Field(None, description="`iss` that tokens must have")
    jwt_leeway_seconds: Seconds = Field(10, ge=0, le=300, description="tolerated clock difference")
    storage_secret: SecretStr | None = Field(
        None, description="signs URLs and encrypts webhook secrets, at least 32 bytes (default: generated)"
    )
    worker_auth_token: SecretStr | None = Field(
        None, description="a worker's token (more by `python -m geo_jobs_api tokens create NAME`)"
    )

    source_hosts: HostNames = Field(
        "",
        description="allowed hosts of `inputPayload.sourceUrl` (`*.example.org`: all subdomains, `*`: any)",
        examples=["data.example.org,*.example.com"],
    )
    webhook_hosts: HostNames = Field(
        "",
        description="allowed webhook hosts in private networks, also without TLS (others must be public)",
    )
    webhook_deliveries_per_second: float = Field(
        10, gt=0, le=1_000_000, description="mean rate of deliveries to one destination"
    )
    webhook_renewal_days: Days = Field(
        90,
        ge=0,
        description="days until a webhook with `allOwners` pauses, unless an administrator stores it again (0: never)",
    )

    max_file_size: Bytes = Field(104_857_600, gt=0, description="largest file, in bytes")
    signed_url_seconds: Seconds = Field(3600, ge=1, description="lifetime of a signed URL")

    lease_seconds: Seconds = Field(60, gt=0, description="lease duration after a heartbeat")
    first_lease_seconds: Seconds = Field(15, gt=0, description="lease duration until the first heartbeat")
    heartbeat_seconds: Seconds = Field(20, gt=0, description="maximum seconds between heartbeats")
    cancel_grace_seconds: Seconds = Field(10, ge=0, description="seconds that a worker gets to stop a cancelled job")
    max_worker_losses: Count = Field(3, ge=1, description="lost workers after which a job fails as `worker_lost`")
    task_types: Annotated[list[dict[str, object]], NoDecode, BeforeValidator(_decoded)] = Field(
        default_factory=list,
        description="initial task types, a JSON list as printed by `task-types list --json` (operators' changes win)",
        examples=['[{"name": "geotiff_to_tiles", "maxConcurrentRuns": 2}]'],
        json_schema_extra={"shown": ""},
    )
    enable_job_timeouts: bool = Field(True, description="whether jobs have timeouts")
    timeout_grace_seconds: Seconds = Field(
        60, ge=0, description="time beyond its timeout after which the API ends a job"
    )
    # A live worker could not report while the API or the database was down.
    rescue_grace_seconds: Seconds | None = Field(
        None,
        ge=0,
        description="seconds after a start or an outage before leases count as lost (default: LEASE_SECONDS)",
    )
    rescue_interval_seconds: Seconds = Field(0.2, gt=0, description="minimum seconds between two rescue rounds")
    backstop_seconds: Seconds = Field(
        5, gt=0, description="maximum seconds between two polls for parked claims, in case of a lost notification"
    )
    vacuum_warning_seconds: Seconds = Field(
        60,
        gt=0,
        description="age from which `/health` counts a transaction that holds back vacuum",
    )
    listen_check_seconds: Seconds = Field(
        15, gt=0, description="silence after which the listening connection is checked"
    )
    max_inline_bytes: int = Field(
        MAX_INLINE_BYTES,
        ge=0,
        le=MAX_INLINE_BYTES,
        description="total bytes of results that may be part of a job's `complete` (0: all are uploaded)",
    )
    retain_ended_days: Days = Field(
        30,
        ge=0,
        description="days until succeeded and cancelled jobs are deleted, with events and files (0: never)",
    )
    retain_failed_days: Days = Field(90, ge=0, description="the same for failed jobs")
    retain_unused_days: Days = Field(7, ge=0, description="days until a job without its upload is cancelled (0: never)")
    cleanup_interval_seconds: Seconds = Field(600, gt=0, description="seconds between two rounds of deletion")
    events_interval_seconds: Seconds = Field(0.25, gt=0, description="seconds between two polls for new events")

    # Counting a caller's jobs reads all of them.
    requests_per_minute: Count = Field(
        6000, ge=0, description="requests of one caller per process, before 429 (0: no limit)"
    )
    max_open_jobs_per_caller: Count = Field(
        0, ge=0, description="open jobs of one caller, schedules included (0: no limit)"
    )
    max_stored_bytes_per_caller: Bytes = Field(0, ge=0, description="bytes of one caller's files (0: no limit)")

    metrics_seconds: Seconds = Field(
        5, ge=0, description="maximum age of the open jobs in `/metrics`, since counting reads each"
    )

    log_level: str = Field("INFO", description="`DEBUG`, `INFO`, `WARNING` or `ERROR`")

    @field_validator("*", mode="before")
    @classmethod
    def _strip(cls, value: object, info: ValidationInfo) -> object:
        return value if info.field_name in VERBATIM else strip_text(value)

    @field_validator("data_dir")
    @classmethod
    def _resolve_data_dir(cls, value: Path) -> Path:
        # Independent of the working directory, since each folder gets its own secrets.
        return project_root() / value.expanduser()

    @field_validator("log_level")
    @classmethod
    def _check_level(cls, value: str) -> str:
        level = value.upper()
        if level not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
            raise ValueError("must be DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return level

    @field_validator("jwt_secret", "storage_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < _MINIMUM_SECRET_BYTES:
            raise ValueError(f"must have at least {_MINIMUM_SECRET_BYTES} bytes")
        return value

    @field_validator("worker_auth_token")
    @classmethod
    def _check_worker_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("must have at least 16 characters")
        if value is not None:
            check_token(value.get_secret_value())
        return value

    @field_validator("database_url", "database_listen_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            conninfo_to_dict(value.get_secret_value())
        except psycopg.ProgrammingError:
            # libpq's message repeats the URL with the password.
            raise ValueError("must be a PostgreSQL URL such as postgresql://USER@HOST:5432/DATABASE") from None
        return value

    @model_validator(mode="after")
    def _check_combination(self) -> Settings:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("HEARTBEAT_SECONDS must be at most half of LEASE_SECONDS, or one lost call loses a job")
        if self.jwt_secret is not None and self.jwks_url is not None:
            raise ValueError("set JWT_SECRET or JWKS_URL, not both: each accepts another family of algorithms")
        if self.database_pooling == "transaction" and (self.conninfo is None or self.listen_conninfo is None):
            raise ValueError("DATABASE_POOLING=transaction needs DATABASE_LISTEN_URL, and DATABASE_URL or PGHOST")
        return self

    @property
    def listen_conninfo(self) -> str | None:
        """Return the address to LISTEN at, if it differs from `conninfo`."""
        return None if self.database_listen_url is None else self.database_listen_url.get_secret_value()

    @property
    def sources_allowed(self) -> HostList:
        """Return the hosts that inputs may come from."""
        return parse_hosts(self.source_hosts)

    @property
    def conninfo(self) -> str | None:
        """Return the libpq connection string, or None for the embedded database."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        if self.pghost is None:
            return None
        parts: dict[str, str | int | None] = {
            "host": self.pghost,
            "port": self.pgport,
            "dbname": self.pgdatabase,
            "user": self.pguser,
            "password": None if self.pgpassword is None else self.pgpassword.get_secret_value(),
            "sslmode": self.pgssl,
        }
        return make_conninfo("", **{name: value for name, value in parts.items() if value is not None})

    @property
    def object_dir(self) -> Path:
        """Return the folder of the local object store."""
        return self.data_dir / "objects"

    @property
    def postgres_dir(self) -> Path:
        """Return the folder of the embedded database."""
        return self.data_dir / "postgres"

    @property
    def rescue_rest_seconds(self) -> float:
        """Return the longest pause between two rescue rounds. No lease granted after one expires before the next."""
        return min(self.first_lease_seconds, self.lease_seconds, 50 * self.rescue_interval_seconds)

    @property
    def effective_rescue_grace(self) -> float:
        """Return the seconds after a start or an outage before leases count as lost."""
        return self.lease_seconds if self.rescue_grace_seconds is None else self.rescue_grace_seconds


def _make_private_dir(path: Path) -> None:
    # New parents too. A umask of 002 makes them group-writable, and a worker rejects a TEMP_DIR below such folders.
    for folder in (*reversed(path.parents), path):
        if folder == path or not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)


def ensure_secrets(data_dir: Path) -> dict[str, str]:
    """Return the secrets of this installation. Generate missing ones.

    The file is `secrets.env` (mode 0600) in `data_dir` (mode 0700). It is written atomically and under a lock.

    Returns:
        JWT_SECRET, STORAGE_SECRET and WORKER_AUTH_TOKEN.
    """
    try:
        _make_private_dir(data_dir)
        path = data_dir / "secrets.env"
        with (data_dir / ".secrets.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = {name: value for name, value in dotenv_values(path, interpolate=False).items() if value}
            if missing := [name for name in _GENERATED if name not in known]:
                known |= {name: secrets.token_urlsafe(48) for name in missing}
                temporary = path.with_suffix(".tmp")
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                    file.writelines(f"{name}={value}\n" for name, value in known.items())
                temporary.replace(path)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise ConfigurationError(f"DATA_DIR {data_dir} cannot be used: {reason}. Choose another folder.") from error
    return known


def setting_errors(error: ValidationError) -> list[str]:
    """Return one sentence for each invalid setting."""
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]).upper()
        message = "must be true or false (1, yes, on, 0, no, off)" if item["type"] == "bool_parsing" else item["msg"]
        lines.append(": ".join(filter(None, (name, message.removeprefix("Value error, ")))))
    return lines


def env_files() -> tuple[Path, ...]:
    """Return the readable `.env` files. The last one wins. A service may have its settings in the environment alone.

    Raises:
        ConfigurationError: a file cannot be read, and the environment names no database.
    """
    paths = (project_root() / ".env", Path(".env"))
    unreadable = [path for path in paths if os.access(path, os.F_OK) and not os.access(path, os.R_OK)]
    if unreadable and not (os.environ.get("DATABASE_URL") or os.environ.get("PGHOST")):
        raise ConfigurationError(
            f"{unreadable[0].absolute()} cannot be read by this user. Let its group read it (chgrp GROUP, chmod 640), "
            "or give the settings in the environment."
        )
    return tuple(path for path in paths if os.access(path, os.R_OK) and path.is_file())


def load_settings(**overrides: Any) -> Settings:
    """Return the effective settings, complete with secrets.

    Args:
        overrides: values by field name, which override all other sources.

    Raises:
        ConfigurationError: a value is invalid, or DATA_DIR is not writable.
    """
    try:
        settings = Settings(_env_file=env_files(), **overrides)
        generated = ensure_secrets(settings.data_dir)
        missing = {name.lower(): generated[name] for name in _GENERATED if getattr(settings, name.lower()) is None}
        if settings.jwks_url is not None:
            missing.pop("jwt_secret", None)
        return Settings(_env_file=env_files(), **(missing | overrides))
    except ValidationError as error:
        raise ConfigurationError("The settings cannot be used. " + "; ".join(setting_errors(error))) from error
