"""The settings: read once from the environment, then `.env`, then the generated secrets of this installation."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import secrets
from pathlib import Path
from typing import Any, Literal

import psycopg
from dotenv import dotenv_values
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.hosts import HostList, is_host_name, parse_hosts, parse_web_address
from geo_jobs_common.addresses import parse_address
from geo_jobs_common.setting_values import Bytes, Count, Days, PossiblePath, Seconds, check_token, tidied

_PACKAGE_PARENT = Path(__file__).resolve().parent.parent
# A short HS256 key can be guessed offline from one token (RFC 7518 §3.2).
_MINIMUM_SECRET_BYTES = 32
# In base64 and beside the largest metadata, such results still fit into a JSON body (1 MiB).
MOST_INLINE_BYTES = 256 * 1024
# Other programs sign with these too, so they are used byte by byte.
VERBATIM = frozenset({"jwt_secret", "storage_secret", "pgpassword"})
_SSL_MODES = dict.fromkeys(("true", "1", "yes", "on"), "require")
_LIBPQ_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SSL_MODES |= dict.fromkeys(("false", "0", "no", "off"), "disable")


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


class Settings(BaseSettings):
    """All settings of the API. Sizes are in bytes, times in seconds."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    database_url: SecretStr | None = Field(None, description="the database as a URL, instead of PGHOST and the like")
    pghost: str | None = Field(
        None,
        description="host of the database; without it and DATABASE_URL, the API runs an embedded one below DATA_DIR",
    )
    pgport: int = Field(5432, gt=0, lt=65536, description="port of the database")
    pgdatabase: str = Field("postgres", description="name of the database")
    pguser: str | None = Field(None, description="role at the database, which must own its schema")
    pgpassword: SecretStr | None = Field(None, description="password of the role")
    pgssl: str | None = Field(None, description="`true`, `false`, or one of libpq's `sslmode` values")
    database_pooling: Literal["session", "transaction"] = Field(
        "session",
        description="`transaction` behind a pooler that assigns sessions to transactions (PgBouncer's `pool_mode`), "
        "which needs DATABASE_LISTEN_URL",
    )
    database_listen_url: SecretStr | None = Field(
        None,
        description="a direct address of the same database to LISTEN at, which transaction pooling cannot carry",
    )
    database_pool_size: int = Field(
        8, ge=2, le=100, description="most connections of a process, without those of claims"
    )
    database_timeout_seconds: Seconds = Field(10, gt=0, description="seconds to wait for a free connection")

    data_dir: PossiblePath = Field(
        default_factory=default_data_dir,
        description="files, secrets that were made at the first start, and the embedded database",
        json_schema_extra={"shown": ".local"},
    )

    api_host: str = Field("127.0.0.1", description="address to listen on")
    api_port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any that is free")
    api_public_url: str | None = Field(
        None, description="base of signed URLs; without it, the address at which a caller reached the API"
    )
    trusted_proxies: str = Field(
        "",
        description="addresses or networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` count, "
        "comma separated",
        examples=["10.0.0.5,10.1.0.0/24"],
    )
    # Container platforms kill after 30 s.
    drain_seconds: Seconds = Field(20, gt=0, description="seconds that running requests get after SIGTERM")

    jwt_secret: SecretStr | None = Field(
        None, description="signs people's tokens (HS256), at least 32 bytes; made at the first start"
    )
    jwks_url: str | None = Field(None, description="keys of an identity provider, instead of JWT_SECRET")
    jwt_audience: str | None = Field(None, description="`aud` that tokens must have")
    jwt_issuer: str | None = Field(None, description="`iss` that tokens must have")
    jwt_leeway_seconds: Seconds = Field(10, ge=0, le=300, description="how far clocks may be apart")
    storage_secret: SecretStr | None = Field(
        None, description="signs URLs and encrypts secrets of webhooks, at least 32 bytes; made at the first start"
    )
    worker_auth_token: SecretStr | None = Field(
        None, description="a worker's token; `python -m geo_jobs_api tokens create NAME` makes further ones"
    )

    source_hosts: str = Field(
        "",
        description="hosts that `inputPayload.sourceUrl` may name, comma separated; `*.example.org` for all below, "
        "`*` for any",
        examples=["data.example.org,*.example.com"],
    )
    webhook_hosts: str = Field(
        "",
        description="hosts in one's own network that webhooks may lead to, also without TLS; others must be public",
    )
    webhook_deliveries_per_second: float = Field(
        10, gt=0, le=1_000_000, description="most deliveries to one destination, in the mean"
    )
    webhook_renewal_days: Days = Field(
        90,
        ge=0,
        description="days after which a webhook with `allOwners` pauses unless an administrator stores it again; "
        "0: never",
    )

    max_file_size: Bytes = Field(104_857_600, gt=0, description="largest file, in bytes")
    signed_url_seconds: Seconds = Field(3600, ge=1, description="how long a signed URL holds")

    lease_seconds: Seconds = Field(60, gt=0, description="how long a job is a worker's after its last sign of life")
    first_lease_seconds: Seconds = Field(15, gt=0, description="the same until its first sign of life")
    heartbeat_seconds: Seconds = Field(20, gt=0, description="most seconds between a worker's signs of life")
    cancel_grace_seconds: Seconds = Field(10, ge=0, description="seconds that a worker gets to stop a cancelled job")
    max_worker_losses: Count = Field(3, ge=1, description="after so many lost workers a job is failed as `worker_lost`")
    task_types: list[dict[str, Any]] = Field(
        default_factory=list,
        description="task types as they are to be at first, a JSON list as `task-types list --json` prints it; one "
        "that an operator has changed stays as it is",
        examples=['[{"name": "geotiff_to_tiles", "maxConcurrentRuns": 2}]'],
        json_schema_extra={"shown": ""},
    )
    enable_job_timeouts: bool = Field(True, description="whether jobs have timeouts")
    timeout_grace_seconds: Seconds = Field(
        60, ge=0, description="how much longer than its timeout a job may run, if its worker does not end it"
    )
    # A live worker could not report while the API or the database was down.
    rescue_grace_seconds: Seconds | None = Field(
        None, ge=0, description="seconds after a start or an outage before leases count as lost; unset: LEASE_SECONDS"
    )
    rescue_interval_seconds: Seconds = Field(0.2, gt=0, description="least seconds between two looks for lost workers")
    backstop_seconds: Seconds = Field(5, gt=0, description="covers a lost notification: parked claims look again")
    vacuum_warning_seconds: Seconds = Field(
        60,
        gt=0,
        description="age from which `/health` counts a transaction that holds back vacuum, and the log names it",
    )
    listen_check_seconds: Seconds = Field(
        15, gt=0, description="silence after which the listening connection is asked for a sign of life"
    )
    max_inline_bytes: int = Field(
        MOST_INLINE_BYTES,
        ge=0,
        le=MOST_INLINE_BYTES,
        description="results of so many bytes in all come with a job's `complete`; 0: each is uploaded",
    )
    retain_ended_days: Days = Field(
        30,
        ge=0,
        description="days after which jobs go that succeeded or were cancelled, with events and files; 0: never",
    )
    retain_failed_days: Days = Field(90, ge=0, description="the same for jobs that failed")
    retain_unused_days: Days = Field(
        7, ge=0, description="days after which a job whose file never came is cancelled; 0: never"
    )
    cleanup_interval_seconds: Seconds = Field(600, gt=0, description="seconds between two rounds of that")
    events_interval_seconds: Seconds = Field(0.25, gt=0, description="seconds between two looks for new events")

    # Counting a caller's jobs reads all of them.
    requests_per_minute: Count = Field(
        6000, ge=0, description="requests of one caller, in each process; more are answered 429; 0: no limit"
    )
    max_open_jobs_per_caller: Count = Field(
        0, ge=0, description="jobs of one caller that have not ended, also those of schedules; 0: no limit"
    )
    max_stored_bytes_per_caller: Bytes = Field(0, ge=0, description="bytes of one caller's files; 0: no limit")

    metrics_seconds: Seconds = Field(
        5, ge=0, description="how old the open jobs in `/metrics` may be; counting them looks at each"
    )

    log_level: str = Field("INFO", description="`DEBUG`, `INFO`, `WARNING` or `ERROR`")

    @field_validator("*", mode="before")
    @classmethod
    def _is_tidy(cls, value: object, info: ValidationInfo) -> object:
        return value if info.field_name in VERBATIM else tidied(value)

    @field_validator("data_dir")
    @classmethod
    def _of_the_project(cls, value: Path) -> Path:
        # Independent of the working directory, since each folder gets its own secrets.
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
        if value is not None:
            check_token(value.get_secret_value())
        return value

    @field_validator("pghost")
    @classmethod
    def _is_host_or_socket(cls, value: str | None) -> str | None:
        for host in (value or "").split(","):
            if host and not host.startswith(("/", "@")) and parse_address(host) is None and not is_host_name(host):
                raise ValueError(
                    f"{host!r} is no host name, address or folder of a socket: give it without scheme and port"
                )
        return value

    @field_validator("pgssl")
    @classmethod
    def _is_ssl_mode(cls, value: str | None) -> str | None:
        if value is not None and value.lower() not in {*_SSL_MODES, *_LIBPQ_MODES}:
            raise ValueError(f"must be true, false, {', '.join(_LIBPQ_MODES[:-1])} or {_LIBPQ_MODES[-1]}")
        return value

    @field_validator("source_hosts", "webhook_hosts")
    @classmethod
    def _is_host_list(cls, value: str) -> str:
        parse_hosts(value)
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _is_list_of_networks(cls, value: str) -> str:
        for proxy in filter(None, (part.strip() for part in value.split(","))):
            try:
                ipaddress.ip_network(proxy)
            except ValueError:
                raise ValueError(f"{proxy!r} is no address or network, such as 10.0.0.5 or 10.0.0.0/24") from None
        return value

    @field_validator("api_public_url")
    @classmethod
    def _is_base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parse_web_address(value)
        if "?" in value or "#" in value:
            raise ValueError("must have no query and no fragment, such as https://maps.example.org")
        return value.rstrip("/")

    @field_validator("jwks_url")
    @classmethod
    def _is_web_address(cls, value: str | None) -> str | None:
        if value is not None:
            parse_web_address(value)
        return value

    @field_validator("api_host")
    @classmethod
    def _is_host(cls, value: str) -> str:
        if parse_address(value) is None and not is_host_name(value):
            raise ValueError("must be an address or host name without scheme and port, such as 127.0.0.1 or 0.0.0.0")
        return value

    @field_validator("database_url", "database_listen_url")
    @classmethod
    def _is_of_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            conninfo_to_dict(value.get_secret_value())
        except psycopg.ProgrammingError:
            # libpq's message repeats the URL with the password.
            raise ValueError("must be a PostgreSQL URL such as postgresql://USER@HOST:5432/DATABASE") from None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("HEARTBEAT_SECONDS must be at most half of LEASE_SECONDS, or one lost call loses a job")
        if self.jwt_secret is not None and self.jwks_url is not None:
            raise ValueError("set JWT_SECRET or JWKS_URL, not both: each accepts another family of algorithms")
        if self.database_pooling == "transaction" and (self.conninfo is None or self.listen_conninfo is None):
            raise ValueError(
                "DATABASE_POOLING=transaction needs DATABASE_URL or PGHOST, and in DATABASE_LISTEN_URL a direct address"
                " of the same database"
            )
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
        parts: dict[str, Any] = {
            "host": self.pghost,
            "port": self.pgport,
            "dbname": self.pgdatabase,
            "user": self.pguser,
            "password": None if self.pgpassword is None else self.pgpassword.get_secret_value(),
            "sslmode": None if self.pgssl is None else _SSL_MODES.get(self.pgssl.lower(), self.pgssl.lower()),
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


# The metrics library reads this variable on import. Processes with the same folder share their counters.
_METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def share_metrics(folder: str) -> None:
    """Share counters among the processes started from now on, in an empty folder."""
    os.environ[_METRICS_DIR] = folder


def shared_metrics_dir() -> str | None:
    """Return the folder of the shared counters, or None if this process counts alone."""
    return os.environ.get(_METRICS_DIR)


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
            wanted = ("JWT_SECRET", "STORAGE_SECRET", "WORKER_AUTH_TOKEN")
            missing = [name for name in wanted if name not in known]
            if missing:
                known |= {name: secrets.token_urlsafe(48) for name in missing}
                temporary = path.with_suffix(".tmp")
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                    file.writelines(f"{name}={value}\n" for name, value in known.items())
                temporary.replace(path)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise ConfigurationError(
            f"DATA_DIR {data_dir} cannot be used: {reason}. Set DATA_DIR to a folder of your own."
        ) from error
    return known


BOOLEAN_WORDS = "must be true or false (1, yes, on and 0, no, off count as well)"


def complaints(error: ValidationError | SettingsError) -> list[str]:
    """Return one sentence for each invalid setting."""
    if isinstance(error, SettingsError):
        return [f"TASK_TYPES: must be a JSON list ({error.__cause__})"]
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]).upper()
        message = BOOLEAN_WORDS if item["type"] == "bool_parsing" else item["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {message}" if name else message)
    return lines


def env_files() -> tuple[Path, ...]:
    """Return the readable `.env` files. The last one wins.

    Raises:
        ConfigurationError: as `_readable`.
    """
    return _readable((project_root() / ".env", Path(".env")))


def _readable(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the existing, readable files of these. A service may have its settings in the environment alone.

    Raises:
        ConfigurationError: a file cannot be read, and the environment names no database.
    """
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
        missing = {
            name.lower(): generated[name]
            for name in ("JWT_SECRET", "STORAGE_SECRET", "WORKER_AUTH_TOKEN")
            if getattr(settings, name.lower()) is None
        }
        if settings.jwks_url is not None:
            missing.pop("jwt_secret", None)
        return Settings(_env_file=env_files(), **(missing | overrides))
    except (ValidationError, SettingsError) as error:
        raise ConfigurationError("The settings cannot be used. " + "; ".join(complaints(error))) from error
