"""Every setting of the worker, read once: from the environment, then `.env`, then the file of the local stack.

`python3 geoprocessing-worker/config.py` prints the configuration in force with sources and problems, the API's settings
on this host, and names that are probably misspelled. See `config_report`.
"""

if __name__ == "__main__" and not __package__:
    from importlib import import_module

    import_module("bootstrap").exec_module("geoprocessing_worker.config_report")

import os
import re
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from geo_jobs_common.setting_values import (
    Bytes,
    Count,
    DatabaseHosts,
    PossiblePath,
    Seconds,
    SslMode,
    check_host_entry,
    check_token,
    strip_text,
)
from geoprocessing_worker.errors import ConfigurationError

# The local stack writes its addresses and secrets to this file of its DATA_DIR, for the health check.
LOCAL_STACK_FILE = "stack.env"

# The environment of processes that open untrusted files. It contains no secrets.
HARMLESS_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")

# Passwords may contain any character, and WKT may have several lines.
VERBATIM = frozenset({"pgpassword", "coordinate_system"})
LARGEST_MEMORY = 1 << 24  # MiB: 16 TiB

BOOLEAN_WORDS = "must be true or false (1, yes, on, 0, no, off)"

LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]


def _split(value: object) -> object:
    return tuple(part.strip().lower() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(check_host_entry)], ...], NoDecode, BeforeValidator(_split)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split)]


def _user_state() -> Path:
    """Return the user's state folder, which the local stack uses too."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - keeps an unknown ~
    return Path(state) / "geoprocessing-worker"


def _state_dir() -> Path:
    """Return the default TEMP_DIR: systemd's STATE_DIRECTORY, else the user's state folder, else one below /tmp."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    own = _user_state()
    nearest = next(path for path in (own, *own.parents) if os.access(path, os.F_OK))
    if own.is_absolute() and os.access(nearest, os.W_OK):
        return own
    return Path(tempfile.gettempdir()) / f"geoprocessing-worker-{os.getuid()}"


class Settings(BaseSettings):
    """The worker's settings. The variable of a field is its name in capitals.

    Durations are in seconds and sizes in bytes, unless the name has another unit.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, allow_inf_nan=False)

    # The API
    api_base_url: str = Field("", description="address of the job API", examples=["https://maps.example.org"])
    worker_auth_token: SecretStr = Field(
        SecretStr(""), description="the worker's token (made by `python -m geo_jobs_api tokens create NAME`)"
    )
    worker_name: str = Field("geoprocessing-worker", min_length=1, max_length=100, description="shown in events")
    poll_interval: float = Field(
        5, gt=0, le=3600, description="minimum seconds between two claims without a job, if the API parks no claims"
    )
    heartbeat_interval: float = Field(
        30, gt=0, le=600, description="maximum seconds between heartbeats (the API can require less)"
    )
    allow_plain_http: bool = Field(False, description="allow to send the token unencrypted to a public API")
    ca_bundle: PossiblePath | None = Field(
        None, description="file of trusted certificates, instead of the system's", examples=["/etc/ssl/own.pem"]
    )

    # Storage
    storage_hosts: Hosts = Field(
        (),
        description="allowed hosts of signed URLs besides the API's (`*.example.org`: all subdomains)",
        examples=["storage.example.org,*.s3.example.org"],
    )
    storage_networks: Networks = Field(
        (),
        description="private networks in which storage with a public name is allowed",
        examples=["10.0.0.0/8"],
    )
    allow_any_storage_host: bool = Field(False, description="allow signed URLs to all hosts with public addresses")

    source_hosts: Hosts = Field(
        (),
        description="allowed hosts of `inputPayload.sourceUrl` and of its redirects (`*.example.org`: all subdomains, "
        "`*`: any)",
        examples=["data.example.org,*.example.com"],
    )

    # Jobs
    worker_task_types: Names = Field(
        (),
        description="task types to claim (default: all with a handler)",
        examples=["geotiff_to_png"],
    )
    concurrent_jobs: int = Field(1, ge=1, le=64, description="jobs computed at once, each in its own process")
    max_processing_time: Seconds = Field(7200, gt=0, description="maximum seconds per job (task types can set less)")
    enable_job_timeouts: bool = Field(True, description="whether jobs have timeouts")
    max_file_size: Bytes = Field(100 * 1024 * 1024, gt=0, description="largest file, in bytes")
    max_memory_mb: int = Field(4096, ge=512, le=LARGEST_MEMORY, description="address space of a job's process, in MiB")
    min_free_memory_mb: int = Field(
        256, ge=0, le=LARGEST_MEMORY, description="memory required to be free before a claim, in MiB"
    )
    shutdown_grace: Seconds = Field(30, ge=0, description="seconds for running jobs after SIGTERM")
    temp_dir: PossiblePath = Field(
        default_factory=_state_dir,
        description="parent of job folders (mode 0700, always removed) and of waiting reports (`outbox`), "
        "by default below `STATE_DIRECTORY` or the user's state folder",
        json_schema_extra={"shown": "~/.local/state/geoprocessing-worker"},
    )
    outbox_max_age: Seconds = Field(86400, gt=0, description="maximum seconds that a report waits for the API")
    outbox_max_reports: Count = Field(100, ge=1, description="maximum waiting reports (of more, the oldest is dropped)")
    validate_file_headers: bool = Field(
        True, description="check a file's structure before GDAL opens it (its metadata are always checked)"
    )
    scan_for_malware: bool = Field(
        False, description="scan each file by ClamAV's daemon (without an answer no file is processed)"
    )
    clamd_address: str = Field(
        "/run/clamav/clamd.ctl", description="address of ClamAV's daemon: path of its socket, or host:port"
    )
    require_sandbox: bool = Field(False, description="refuse to run if the kernel lacks a layer of the sandbox")
    disable_workers: bool = Field(False, description="stay up and healthy without claiming")

    # Processing: defaults of a job's inputPayload
    max_image_size: int = Field(4096, ge=1, le=16384, description="longest side of a picture, in pixels (`maxSize`)")
    compression_quality: int = Field(85, ge=1, le=100, description="quality of JPEG and WebP (`quality`)")
    generate_thumbnails: bool = Field(True, description="whether pictures get a thumbnail (`generateThumbnails`)")
    thumbnail_size: int = Field(
        256, ge=16, le=1024, description="longest side of a thumbnail, in pixels (`thumbnailSize`)"
    )
    coordinate_system: str = Field(
        "EPSG:4326",
        min_length=1,
        description="system of pictures: a code, WKT, PROJJSON or `native` (`coordinateSystem`)",
    )

    # Log
    log_level: LogLevel = Field("INFO", description="`DEBUG`, `INFO`, `WARNING` or `ERROR`")
    log_file: PossiblePath = Field(
        Path("worker.log"), description="the log: JSON lines, rotated at 10 MB, five old files"
    )

    # The database: only for the health check
    database_url: SecretStr = Field(
        SecretStr(""), description="the database as a URL, instead of PGHOST and related settings"
    )
    pghost: DatabaseHosts = Field("", description="host of the database, for the health check")
    pgport: int = Field(5432, gt=0, lt=65536, description="port of the database")
    pgdatabase: str = Field("postgres", description="name of the database")
    pguser: str = Field("", description="role at the database")
    pgpassword: SecretStr = Field(SecretStr(""), description="password of the role")
    pgssl: SslMode | None = Field(None, description="`true`, `false`, or one of libpq's `sslmode` values")

    @field_validator("*", mode="before")
    @classmethod
    def _is_tidy(cls, value: object, info: ValidationInfo) -> object:
        return value if info.field_name in VERBATIM else strip_text(value)

    @field_validator("api_base_url")
    @classmethod
    def _http_only(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    @field_validator("api_base_url")
    @classmethod
    def _has_a_host_and_a_possible_port(cls, value: str) -> str:
        if value and not urlsplit(value).hostname:
            raise ValueError("must name a host")
        if value:
            _ = urlsplit(value).port  # raises where there can be no such port
        return value

    @field_validator("api_base_url")
    @classmethod
    def _is_an_origin(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.username is not None or parts.path or parts.query or parts.fragment or re.search(r"[\s\\]", value):
            origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
            raise ValueError(f"must be scheme, host and port alone; the worker adds /api/… itself: use {origin}")
        return value

    @field_validator("database_url")
    @classmethod
    def _is_of_postgresql(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if url and not url.startswith(("postgresql://", "postgres://")) and ("://" in url or "=" not in url):
            raise ValueError("must be a PostgreSQL URL such as postgresql://USER@HOST:5432/DATABASE")
        return value

    @field_validator("worker_auth_token")
    @classmethod
    def _fits_into_a_header(cls, value: SecretStr) -> SecretStr:
        check_token(value.get_secret_value())
        return value

    @field_validator("clamd_address")
    @classmethod
    def _is_a_socket_or_a_host_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not value.startswith("/") and not (host and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError("must be the path of a socket, or host:port")
        return value

    @property
    def is_configured(self) -> bool:
        """Whether the API and its token are set."""
        return bool(self.api_base_url and self.worker_auth_token.get_secret_value())

    @property
    def api_host(self) -> str:
        """The API's host, in lower case."""
        return (urlsplit(self.api_base_url).hostname or "").rstrip(".")

    def trust(self) -> ssl.SSLContext | bool:
        """Return the certificates that clients trust: those in `CA_BUNDLE`, else the library's."""
        if self.ca_bundle is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.ca_bundle)
        except OSError as error:
            raise ConfigurationError(f"CA_BUNDLE: {self.ca_bundle} has no certificates ({error})") from None


@dataclass(frozen=True)
class Configuration:
    """The settings in force, and the source of each."""

    settings: Settings
    sources: Mapping[str, str]


def load(*, local_stack: bool = False) -> Configuration:
    """Read the settings, from this process's environment and `.env` of the current folder or the checkout.

    Args:
        local_stack: read the whole file of the local stack if neither the environment nor `.env` has an API.

    Raises:
        ConfigurationError: unusable values. The message has one line for each.
    """
    files = [(".env", path) for path in _readable(Path(".env"), project_root() / ".env")]
    layers = [("environment", dict(os.environ)), *((place, read_dotenv(path)) for place, path in files)]
    if local_stack and not any(layer.get("API_BASE_URL") for _, layer in layers):
        folder = next((layer["DATA_DIR"] for _, layer in layers if layer.get("DATA_DIR")), None)
        # By default in the checkout, else the user's own.
        folders = (project_root() / ".local", _user_state()) if folder is None else (project_root() / folder,)
        files += [
            ("local stack", place / LOCAL_STACK_FILE) for place in folders if _can_read(place / LOCAL_STACK_FILE)
        ][:1]
        layers += [(place, read_dotenv(path)) for place, path in files if place == "local stack"]
    # PGHOST and DATABASE_URL name the same database, so a nearer PGHOST hides a farther DATABASE_URL.
    nearest = next((layer for _, layer in layers if layer.get("PGHOST") or layer.get("DATABASE_URL")), {})
    try:
        # In pydantic-settings the last file wins. Here the nearest comes first.
        settings = Settings(
            _env_file=[path for _, path in reversed(files)], database_url=SecretStr(nearest.get("DATABASE_URL") or "")
        )
    except ValidationError as error:
        raise ConfigurationError("\n".join(_in_words(error))) from None
    sources = {
        name: next((place for place, layer in layers if layer.get(name.upper())), "default")
        for name in Settings.model_fields
    }
    return Configuration(settings, sources)


def project_root() -> Path:
    """Return the checkout of this package, or the current folder if the package is installed elsewhere."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def keep_harmless_environment() -> None:
    """Remove all secrets from the environment of this process and of those that it starts."""
    for name in set(os.environ) - set(HARMLESS_VARIABLES):
        del os.environ[name]
    # A process that forks must have no other threads, and OpenBLAS starts some on import.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # Arrays in pages of 2 MB, if the system allows it: half of the page faults, and 10 ms less for a small job.
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"


def read_dotenv(path: Path) -> dict[str, str]:
    """Return the names in a file that have a value."""
    return {name: value for name, value in dotenv_values(path).items() if value}


def _can_read(path: Path) -> bool:
    return os.access(path, os.R_OK) and path.is_file()


def _readable(*paths: Path) -> list[Path]:
    """Return the existing files. An unreadable one is skipped if the environment has an API.

    Raises:
        ConfigurationError: a file is unreadable, and the environment has no API.
    """
    unreadable = [path for path in paths if os.access(path, os.F_OK) and not os.access(path, os.R_OK)]
    if unreadable and not os.environ.get("API_BASE_URL"):
        raise ConfigurationError(
            f"{unreadable[0].absolute()} cannot be read by this user: let its group read it (chgrp GROUP, chmod 640), "
            "or give the settings in the environment"
        )
    return [path for path in paths if _can_read(path)]


def _in_words(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        name = str(item["loc"][0])
        given = "" if Settings.model_fields[name].annotation is SecretStr else f" (it is {item['input']!r})"
        reason = BOOLEAN_WORDS if item["type"] == "bool_parsing" else item["msg"].removeprefix("Value error, ")
        lines.append(f"{name.upper()}: {reason[:1].lower()}{reason[1:]}{given}")
    return lines
