"""config: the effective settings with their sources and errors. Read-only."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from dotenv import dotenv_values
from pydantic import SecretStr, ValidationError

from geo_jobs_api.commands.frame import Group, add_json_option
from geo_jobs_api.commands.output import print_json, print_line
from geo_jobs_api.config import Settings, env_files, setting_errors
from geo_jobs_api.errors import Problem
from geo_jobs_api.task_types.schemas import parse_task_type


def add_commands(commands: Group) -> None:
    """Declare the commands."""
    command = commands.add("config", "Print the effective settings, and their errors.", _config)
    add_json_option(command)
    # The command reports invalid settings.
    command.set_defaults(needs_settings=False)


def _config(_: Settings | None, arguments: argparse.Namespace) -> int:
    rows, errors = report()
    if arguments.json:
        print_json({"settings": rows, "problems": errors})
        return 1 if errors else 0
    for row in rows:
        print_line(f"{row['name']:<32}{row['value']:<44}{row['source']}")
    for line in errors:
        print_line(f"❌ {line}")
    return 1 if errors else 0


def report() -> tuple[list[dict[str, str]], list[str]]:
    """Return name, value and source of each setting, with secrets masked, and the errors."""
    layers = [("environment", dict(os.environ))]
    # Nearest first.
    layers += [(".env", _dotenv(path)) for path in reversed(env_files())]
    upper = [(place, {name.upper() for name, value in layer.items() if value}) for place, layer in layers]
    sources = {
        name: next((place for place, names in upper if name.upper() in names), "default")
        for name in Settings.model_fields
    }
    try:
        settings = Settings(_env_file=env_files())
    except ValidationError as error:
        # The names are known without valid settings.
        return [
            {"name": name.upper(), "value": "", "source": place} for name, place in sources.items()
        ], setting_errors(error)
    rows = [
        {"name": name.upper(), "value": _format_value(getattr(settings, name)), "source": place}
        for name, place in sources.items()
    ]
    return rows, _task_type_errors(settings)


def _dotenv(path: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(path).items() if value} if path.is_file() else {}


def _format_value(value: object) -> str:
    if isinstance(value, SecretStr):
        return "********"
    if value is None or value == []:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _task_type_errors(settings: Settings) -> list[str]:
    errors = []
    for given in settings.task_types:
        try:
            parse_task_type(given)
        except Problem as problem:
            errors += [f"TASK_TYPES: {given.get('name')}: {error.pointer} {error.message}" for error in problem.errors]
    return errors
