"""Every setting of the worker, read once: from the environment, then `.env`, then the local stack's own file.

Run by path, `python3 geoprocessing-worker/config.py` prints the configuration in force, where each value came from and
what is wrong with it, the API's settings on this host, and names that are probably misspelled.
"""

if __name__ == "__main__" and not __package__:
    from importlib import import_module

    import_module("bootstrap").exec_module("geoprocessing_worker.config")

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

from geo_jobs_common.addresses import is_local_name, parse_address
from geo_jobs_common.setting_values import (
    Bytes,
    Count,
    PossiblePath,
    Seconds,
    check_token,
    is_short_enough,
    tidied,
)
from geoprocessing_worker.errors import ConfigurationError
from geoprocessing_worker.neighbors import ApiSettings, api_settings, start_problems, unknown_names

# A local stack leaves its addresses and secrets in this file of its DATA_DIR, for the health check.
LOCAL_STACK_FILE = "stack.env"

# What a process that opens strangers' files may see of the environment: nothing secret is among it.
HARMLESS_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")

# A password may have any characters, and a coordinate system in WKT may have several lines.
VERBATIM = frozenset({"pgpassword", "coordinate_system"})
LARGEST_MEMORY = 1 << 24  # MiB, which are 16 TiB

BOOLEAN_WORDS = "must be true or false (1, yes, on and 0, no, off count as well)"

SSL_MODES = (
    *("true", "1", "yes", "on", "false", "0", "no", "off"),
    *("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
)

# Letters beyond ASCII are sent in their ASCII form.
_HOST_NAME = re.compile(r"[^\W_](?:[\w-]*\w)?(?:\.\w(?:[\w-]*\w)?)*\.?")

LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]


def _is_host_name(text: str) -> bool:
    return _HOST_NAME.fullmatch(text) is not None and is_short_enough(text)


def _host(text: str) -> str:
    """Return an entry of a list of hosts.

    Raises:
        ValueError: it is no host name, no address, not `*` and not `*.name`.
    """
    name = text.removeprefix("*.")
    if text != "*" and parse_address(name) is None and not _is_host_name(name):
        raise ValueError(
            f"{text!r} is no host name: give names without scheme, port and path, separated by commas, "
            "for example maps.example.org,*.example.org"
        )
    return text


def _split(value: object) -> object:
    return tuple(part.strip().lower() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], NoDecode, BeforeValidator(_split)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_split)]


def _user_state() -> Path:
    """Return the user's folder for state, which the local stack uses too."""
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
    """The worker's settings; the name of a field in capitals is the name of its variable.

    Durations are in seconds and sizes in bytes unless the name says otherwise.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, allow_inf_nan=False)

    # The API
    api_base_url: str = Field("", description="address of the job API", examples=["https://maps.example.org"])
    worker_auth_token: SecretStr = Field(
        SecretStr(""), description="the worker's token; `python -m geo_jobs_api tokens create NAME` makes one"
    )
    worker_name: str = Field("geoprocessing-worker", min_length=1, max_length=100, description="shown in events")
    poll_interval: float = Field(
        5, gt=0, le=3600, description="least seconds between two claims that found nothing, where the API parks none"
    )
    heartbeat_interval: float = Field(
        30, gt=0, le=600, description="most seconds between signs of life; the server may ask for less"
    )
    allow_plain_http: bool = Field(False, description="let the token go unencrypted to an API outside one's network")
    ca_bundle: PossiblePath | None = Field(
        None, description="certificates to trust instead of the system's", examples=["/etc/ssl/own.pem"]
    )

    # Storage
    storage_hosts: Hosts = Field(
        (),
        description="hosts of signed URLs besides the API's own, comma separated; `*.example.org` for all below",
        examples=["storage.example.org,*.s3.example.org"],
    )
    storage_networks: Networks = Field(
        (),
        description="private networks in which storage may lie under a public name",
        examples=["10.0.0.0/8"],
    )
    allow_any_storage_host: bool = Field(False, description="signed URLs may lead anywhere but to private addresses")

    source_hosts: Hosts = Field(
        (),
        description="hosts that `inputPayload.sourceUrl` may name, comma separated; `*.example.org` for all below, "
        "`*` for any; redirects are followed only among them",
        examples=["data.example.org,*.example.com"],
    )

    # Jobs
    worker_task_types: Names = Field(
        (),
        description="task types to claim, comma separated; none: all that handlers are installed for",
        examples=["geotiff_to_png"],
    )
    concurrent_jobs: int = Field(1, ge=1, le=64, description="jobs computed at once, each in a process of its own")
    max_processing_time: Seconds = Field(
        7200, gt=0, description="seconds per job, or less where its task type says less"
    )
    enable_job_timeouts: bool = Field(True, description="whether jobs have timeouts")
    max_file_size: Bytes = Field(100 * 1024 * 1024, gt=0, description="largest file, in bytes")
    max_memory_mb: int = Field(4096, ge=512, le=LARGEST_MEMORY, description="address space of a job's process, in MiB")
    min_free_memory_mb: int = Field(
        256, ge=0, le=LARGEST_MEMORY, description="memory that must be free before a claim, in MiB"
    )
    shutdown_grace: Seconds = Field(30, ge=0, description="seconds that running jobs get after SIGTERM")
    temp_dir: PossiblePath = Field(
        default_factory=_state_dir,
        description="job folders, mode 0700, always removed; reports that wait for the API, in `outbox`; "
        "by default below `STATE_DIRECTORY` or the user's state folder",
        json_schema_extra={"shown": "~/.local/state/geoprocessing-worker"},
    )
    outbox_max_age: Seconds = Field(86400, gt=0, description="seconds that a report may wait for the API to come back")
    outbox_max_reports: Count = Field(100, ge=1, description="reports that may wait; of more, the oldest goes")
    validate_file_headers: bool = Field(
        True, description="look at a file's structure before GDAL does; its metadata are looked at in any case"
    )
    scan_for_malware: bool = Field(
        False, description="have ClamAV's daemon look at each file first; without its word none is processed"
    )
    clamd_address: str = Field(
        "/run/clamav/clamd.ctl", description="ClamAV's daemon: the path of its socket, or host:port"
    )
    require_sandbox: bool = Field(False, description="refuse to run where the kernel lacks a layer of the sandbox")
    disable_workers: bool = Field(False, description="stay up and healthy without claiming")

    # Processing: what a job's inputPayload does not say
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
    log_file: PossiblePath = Field(Path("worker.log"), description="the log: JSON lines, rotated at 10 MB, five kept")

    # The database: only the health check looks at it
    database_url: SecretStr = Field(SecretStr(""), description="the database as a URL, instead of PGHOST and the like")
    pghost: str = Field("", description="host of the database; the worker's health check looks at it")
    pgport: int = Field(5432, gt=0, lt=65536, description="port of the database")
    pgdatabase: str = Field("postgres", description="name of the database")
    pguser: str = Field("", description="role at the database")
    pgpassword: SecretStr = Field(SecretStr(""), description="password of the role")
    pgssl: str = Field("", description="`true`, `false`, or one of libpq's `sslmode` values")

    @field_validator("*", mode="before")
    @classmethod
    def _is_tidy(cls, value: object, info: ValidationInfo) -> object:
        return value if info.field_name in VERBATIM else tidied(value)

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

    @field_validator("pghost")
    @classmethod
    def _is_host_or_socket(cls, value: str) -> str:
        for host in value.split(","):
            if host and not host.startswith(("/", "@")) and parse_address(host) is None and not _is_host_name(host):
                raise ValueError(
                    f"{host!r} is no host name, address or folder of a socket: give it without scheme and port"
                )
        return value

    @field_validator("pgssl")
    @classmethod
    def _is_ssl_mode(cls, value: str) -> str:
        if value.lower() not in ("", *SSL_MODES):
            raise ValueError(f"must be {', '.join(SSL_MODES[:-1])} or {SSL_MODES[-1]}")
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
        """Whether there is an API to work for."""
        return bool(self.api_base_url and self.worker_auth_token.get_secret_value())

    @property
    def api_host(self) -> str:
        """The API's host, in lower case."""
        return (urlsplit(self.api_base_url).hostname or "").rstrip(".")

    def trust(self) -> ssl.SSLContext | bool:
        """Whose certificates a client believes: `CA_BUNDLE`'s, else those of the library."""
        if self.ca_bundle is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.ca_bundle)
        except OSError as error:
            raise ConfigurationError(f"CA_BUNDLE: {self.ca_bundle} holds no certificates ({error})") from None


@dataclass(frozen=True)
class Configuration:
    """The settings in force and, for each, the place that it came from."""

    settings: Settings
    sources: Mapping[str, str]


def load(*, local_stack: bool = False) -> Configuration:
    """Read the settings, from this process's environment and `.env` of the current folder or the checkout.

    Args:
        local_stack: where neither the environment nor `.env` names an API, use the local stack's file, as a whole.

    Raises:
        ConfigurationError: a value cannot be used; the message has one line for each.
    """
    files = [(".env", path) for path in _readable(Path(".env"), project_root() / ".env")]
    layers = [("environment", dict(os.environ)), *((place, _dotenv(path)) for place, path in files)]
    if local_stack and not any(layer.get("API_BASE_URL") for _, layer in layers):
        folder = next((layer["DATA_DIR"] for _, layer in layers if layer.get("DATA_DIR")), None)
        folders = _local_stack_folders() if folder is None else (project_root() / folder,)
        files += [
            ("local stack", place / LOCAL_STACK_FILE) for place in folders if _can_read(place / LOCAL_STACK_FILE)
        ][:1]
        layers += [(place, _dotenv(path)) for place, path in files if place == "local stack"]
    # Two names for one thing: PGHOST in a nearer place hides a DATABASE_URL in a farther one.
    nearest = next((layer for _, layer in layers if layer.get("PGHOST") or layer.get("DATABASE_URL")), {})
    try:
        # Of several files pydantic-settings lets the last win; here the nearest comes first.
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
    """The checkout that this package stands in, or the current folder when it was installed elsewhere."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else Path.cwd()


def keep_harmless_environment() -> None:
    """Take everything secret out of this process's environment, and so out of that of the processes it will start."""
    for name in set(os.environ) - set(HARMLESS_VARIABLES):
        del os.environ[name]
    # A process that forks must have no other threads running, and OpenBLAS starts some when it is imported.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def problems(settings: Settings) -> list[str]:
    """What keeps a worker with these settings from working, each with what to do."""
    found = []
    if not settings.api_base_url:
        found.append("API_BASE_URL is not set: give the address of the job API, for example https://maps.example.org")
    if (
        settings.api_base_url.startswith("http://")
        and not is_local_name(settings.api_host)
        and not settings.allow_plain_http
    ):
        found.append(
            "API_BASE_URL would send the worker's token unencrypted: use https://, or set ALLOW_PLAIN_HTTP=true"
        )
    if not settings.worker_auth_token.get_secret_value():
        found.append("WORKER_AUTH_TOKEN is not set: make one with `python -m geo_jobs_api tokens create NAME`")
    if settings.thumbnail_size > settings.max_image_size:
        found.append("THUMBNAIL_SIZE is larger than MAX_IMAGE_SIZE: make it smaller")
    return found + _wrong_paths(settings)


def _wrong_paths(settings: Settings) -> list[str]:
    """Return the paths that name something of another kind."""
    found = []
    try:
        settings.trust()
    except ConfigurationError as error:
        found.append(str(error))
    if settings.log_file.is_dir() or not settings.log_file.absolute().parent.is_dir():
        found.append(f"LOG_FILE: {settings.log_file} must be a file in a folder that exists: create the folder")
    if _is_file_above(settings.temp_dir):
        found.append(f"TEMP_DIR: {settings.temp_dir} is a file or lies below one: name a folder")
    return found


def _is_file_above(path: Path) -> bool:
    whole = path.absolute()
    nearest = next(place for place in (whole, *whole.parents) if os.access(place, os.F_OK))
    return not nearest.is_dir()


def _dotenv(path: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(path).items() if value}


def _can_read(path: Path) -> bool:
    return os.access(path, os.R_OK) and path.is_file()


def _readable(*paths: Path) -> list[Path]:
    """The files that are there and can be read. A service may get its settings from the environment alone.

    Raises:
        ConfigurationError: a file cannot be read, and the environment names no API in its place.
    """
    unreadable = [path for path in paths if os.access(path, os.F_OK) and not os.access(path, os.R_OK)]
    if unreadable and not os.environ.get("API_BASE_URL"):
        raise ConfigurationError(
            f"{unreadable[0].absolute()} cannot be read by this user: let its group read it (chgrp GROUP, chmod 640), "
            "or give the settings in the environment"
        )
    return [path for path in paths if _can_read(path)]


def _local_stack_folders() -> tuple[Path, ...]:
    """The default places of the local stack's state: the checkout, and the user's own where that cannot be written."""
    return project_root() / ".local", _user_state()


def _in_words(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        name = str(item["loc"][0])
        given = "" if Settings.model_fields[name].annotation is SecretStr else f" (it is {item['input']!r})"
        reason = BOOLEAN_WORDS if item["type"] == "bool_parsing" else item["msg"].removeprefix("Value error, ")
        lines.append(f"{name.upper()}: {reason[:1].lower()}{reason[1:]}{given}")
    return lines


def _shown(settings: Settings, name: str) -> str:
    value = getattr(settings, name)
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value if value is not None else "")


def main() -> int:
    """Print the settings in force, the worker's and those of an API here; 1 if the worker cannot work with its own."""
    try:
        configuration = load(local_stack=True)
    except ConfigurationError as error:
        wrong = str(error).splitlines()
    else:
        for name, source in configuration.sources.items():
            print(f"{name.upper():<24}{_shown(configuration.settings, name):<44}{source}")  # noqa: T201 - a command's output
        wrong = problems(configuration.settings)
        wrong += [line for line in start_problems() if line not in wrong]
    api = api_settings()
    _print_api(api, wrong)
    known = [*Settings.model_fields, *(name for name, _, _ in api.rows)] if api else Settings.model_fields
    for line in unknown_names(_layers(), known):
        print(f"⚠️  {line}")  # noqa: T201
    return 1 if wrong else 0


def _print_api(api: ApiSettings | None, wrong: list[str]) -> None:
    """Print the API's settings, then what is wrong with the worker's, then what is wrong only to the API."""
    if api is not None and not api.problems:
        print("\nThe API, if it runs here:")  # noqa: T201
        for name, value, source in api.rows:
            print(f"{name:<32}{value:<44}{source}")  # noqa: T201
    for line in wrong:
        print(f"❌ {line}")  # noqa: T201
    told = {line.partition(":")[0] for line in wrong}
    for line in () if api is None else api.problems:
        if line.partition(":")[0] not in told:
            print(f"⚠️  The API would not start here: {line}")  # noqa: T201


def _layers() -> list[tuple[str, Mapping[str, str]]]:
    files = {path.resolve() for path in (Path(".env"), project_root() / ".env")}
    return [("environment", dict(os.environ)), *((".env", _dotenv(path)) for path in sorted(files))]


if __name__ == "__main__":
    raise SystemExit(main())
