"""The configuration in force, printed with its sources, and the problems that prevent a start."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from geo_jobs_common.addresses import is_local_name
from geoprocessing_worker import config
from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import ConfigurationError
from geoprocessing_worker.neighbors import ApiSettings, api_settings, start_problems, unknown_names


def problems(settings: Settings) -> list[str]:
    """Return the problems that keep a worker with these settings from working, each with its remedy."""
    lines = []
    if not settings.api_base_url:
        lines.append("API_BASE_URL is not set: give the address of the job API, for example https://maps.example.org")
    if (
        settings.api_base_url.startswith("http://")
        and not is_local_name(settings.api_host)
        and not settings.allow_plain_http
    ):
        lines.append(
            "API_BASE_URL would send the worker's token unencrypted: use https://, or set ALLOW_PLAIN_HTTP=true"
        )
    if not settings.worker_auth_token.get_secret_value():
        lines.append("WORKER_AUTH_TOKEN is not set: make one with `python -m geo_jobs_api tokens create NAME`")
    if settings.thumbnail_size > settings.max_image_size:
        lines.append("THUMBNAIL_SIZE is larger than MAX_IMAGE_SIZE: make it smaller")
    return lines + _path_problems(settings)


def _path_problems(settings: Settings) -> list[str]:
    lines = []
    try:
        settings.trust()
    except ConfigurationError as error:
        lines.append(str(error))
    if settings.log_file.is_dir() or not settings.log_file.absolute().parent.is_dir():
        lines.append(f"LOG_FILE: {settings.log_file} must be a file in a folder that exists: create the folder")
    if _is_below_file(settings.temp_dir):
        lines.append(f"TEMP_DIR: {settings.temp_dir} is a file or lies below one: name a folder")
    return lines


def _is_below_file(path: Path) -> bool:
    whole = path.absolute()
    nearest = next(place for place in (whole, *whole.parents) if os.access(place, os.F_OK))
    return not nearest.is_dir()


def main() -> int:
    """Print the settings in force, the worker's and those of an API here. Return 1 if the worker cannot start."""
    try:
        configuration = config.load(local_stack=True)
    except ConfigurationError as error:
        faults = str(error).splitlines()
    else:
        for name, source in configuration.sources.items():
            print(f"{name.upper():<24}{_text(configuration.settings, name):<44}{source}")  # noqa: T201 - a command's output
        faults = problems(configuration.settings)
        faults += [line for line in start_problems() if line not in faults]
    api = api_settings()
    _print_api(api, faults)
    known = [*Settings.model_fields, *(name for name, _, _ in api.rows)] if api else Settings.model_fields
    for line in unknown_names(_layers(), known):
        print(f"⚠️  {line}")  # noqa: T201
    return 1 if faults else 0


def _print_api(api: ApiSettings | None, faults: list[str]) -> None:
    """Print the API's settings, the worker's faults, and then the faults of the API alone."""
    if api is not None and not api.problems:
        print("\nThe API, if it runs here:")  # noqa: T201
        for name, value, source in api.rows:
            print(f"{name:<32}{value:<44}{source}")  # noqa: T201
    for line in faults:
        print(f"❌ {line}")  # noqa: T201
    names = {line.partition(":")[0] for line in faults}
    for line in () if api is None else api.problems:
        if line.partition(":")[0] not in names:
            print(f"⚠️  The API would not start here: {line}")  # noqa: T201


def _layers() -> list[tuple[str, Mapping[str, str]]]:
    files = {path.resolve() for path in (Path(".env"), config.project_root() / ".env")}
    return [("environment", dict(os.environ)), *((".env", config.read_dotenv(path)) for path in sorted(files))]


def _text(settings: Settings, name: str) -> str:
    value = getattr(settings, name)
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value if value is not None else "")


if __name__ == "__main__":
    raise SystemExit(main())
