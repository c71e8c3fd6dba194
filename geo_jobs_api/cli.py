"""The command line: all command groups, and its exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import psycopg
from pydantic import ValidationError

from geo_jobs_api.commands import jobs, pipelines, schedules, service, settings, stats, task_types, tokens, webhooks
from geo_jobs_api.commands.frame import Group
from geo_jobs_api.commands.output import print_line, sanitize
from geo_jobs_api.config import load_settings
from geo_jobs_api.database.sessions import describe
from geo_jobs_api.errors import ConfigurationError, Problem
from geo_jobs_api.fields import field_errors
from geo_jobs_api.log import configure

_GROUPS = (service, settings, jobs, pipelines, schedules, webhooks, task_types, stats, tokens)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m geo_jobs_api", description="The job API.")
    parser.set_defaults(needs_settings=True)
    commands = Group(parser)
    for group in _GROUPS:
        group.add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Return the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        in_force = load_settings() if parsed.needs_settings else None
        configure("INFO" if in_force is None else in_force.log_level)
        code: int = parsed.run(in_force, parsed)
    except BrokenPipeError:
        return 1  # The reader of the output has closed the pipe.
    except KeyboardInterrupt:
        return 130
    except (ConfigurationError, Problem, ValidationError, OSError, psycopg.Error) as error:
        print_line(_describe_error(error), to_error=True)
        return 1
    return code


def _describe_error(error: Exception) -> str:
    """Return an error as one sentence for the terminal."""
    if isinstance(error, Problem):
        return sanitize(error.detail) + "".join(
            f"\n  {sanitize(f'{item.pointer}: {item.message}')}" for item in error.errors
        )
    if isinstance(error, ValidationError):
        items = field_errors(error.errors())
        return sanitize("; ".join(f"{item.pointer.lstrip('/') or 'This'}: {item.message}" for item in items))
    if isinstance(error, psycopg.Error):
        return describe(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'This'} cannot be used: {error.strerror or error}."
    return str(error)
