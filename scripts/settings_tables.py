"""Write docs/SETTINGS.md and .env.example from the settings of both programs. A test compares them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from geo_jobs_api.config import Settings as ApiSettings
from geoprocessing_worker.config import Settings as WorkerSettings

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 120
# A worker needs these two, so they are not commented out.
NEEDED = ("api_base_url", "worker_auth_token")

HEAD = """# Settings

Both programs read the environment, then `.env` in the current folder, then `.env` in the checkout.
`python3 geoprocessing-worker/config.py` prints the settings in force with their sources and errors, and names that are
probably misspelled. `make settings` writes this page and `.env.example` from the two `config.py`.

Durations are in seconds and sizes in bytes unless the name has another unit. Lists are comma separated.
"""
EXAMPLE_HEAD = """\
# Copy to .env and fill in. The worker, the API and the scripts read it, and the environment overrides it.
# `python3 geoprocessing-worker/config.py` prints the settings in force. Commented lines show the default, or an example
# if there is none. Written by `make settings`.
"""


def document() -> str:
    """Return docs/SETTINGS.md."""
    parts = [
        HEAD,
        "## The worker\n",
        _table(WorkerSettings.model_fields),
        "## The API\n",
        _table(ApiSettings.model_fields),
    ]
    return "\n".join(parts)


def example() -> str:
    """Return .env.example."""
    worker, api = WorkerSettings.model_fields, ApiSettings.model_fields
    both = [name for name in worker if name in api]
    groups = {
        "the worker": {name: field for name, field in worker.items() if name not in both or name in NEEDED},
        "both programs": {name: worker[name] for name in both if name not in NEEDED},
        "the API": {name: field for name, field in api.items() if name not in both},
    }
    return EXAMPLE_HEAD + "".join(line + "\n" for title, fields in groups.items() for line in _group(title, fields))


def _table(fields: Mapping[str, FieldInfo]) -> str:
    rows = [
        f"| `{name.upper()}` | {_code(shown(field))} | {_described(name, field)} |" for name, field in fields.items()
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows, ""])


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _group(title: str, fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    yield f"\n# --- {title} ---".ljust(WIDTH, "-")
    for name, field in fields.items():
        described = _described(name, field)
        yield from _wrapped(described if described.startswith("`") else described[:1].upper() + described[1:])
        value = shown(field) or str(next(iter(field.examples or ()), ""))
        yield f"{'' if name in NEEDED else '# '}{name.upper()}={value}"


def _wrapped(text: str) -> Iterator[str]:
    line = "#"
    for word in f"{text}.".split():
        if len(line) + 1 + len(word) > WIDTH:
            yield line
            line = "#"
        line += f" {word}"
    yield line


def _described(name: str, field: FieldInfo) -> str:
    if not field.description:
        raise ValueError(f"{name.upper()} has no description: give its Field one")
    return field.description


def shown(field: FieldInfo) -> str:
    """Return the default as written in the environment, or in words if it is only known at run time."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "shown" in extra:
        return str(extra["shown"])
    value: Any = field.default
    if value is None or isinstance(value, SecretStr) or value == ():
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def files() -> dict[Path, str]:
    """Return the content of each file."""
    return {ROOT / "docs" / "SETTINGS.md": document(), ROOT / ".env.example": example()}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(path)
