"""The command line: all groups of commands, and how a command may end."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import psycopg

from geo_jobs_api.commands import figures, jobs, pipelines, schedules, service, task_types, tokens, webhooks
from geo_jobs_api.commands.frame import Group
from geo_jobs_api.commands.output import harmless, say
from geo_jobs_api.config import load_settings
from geo_jobs_api.errors import ConfigurationError, Problem
from geo_jobs_api.log import configure

_GROUPS = (service, jobs, pipelines, schedules, webhooks, task_types, figures, tokens)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m geo_jobs_api", description="The job API.")
    commands = Group(parser)
    for group in _GROUPS:
        group.add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        settings = load_settings()
        configure(settings.log_level)
        code: int = parsed.run(settings, parsed)
    except ConfigurationError as error:
        say(str(error), to_error=True)
        return 1
    except Problem as problem:
        said = "".join(f"\n  {error.pointer}: {error.message}" for error in problem.errors)
        say(harmless(problem.detail) + said, to_error=True)
        return 1
    except OSError as error:
        # Whoever read what we print may have seen enough.
        if not isinstance(error, BrokenPipeError):
            say(f"{error.filename or 'This'} cannot be used: {error.strerror or error}.", to_error=True)
        return 1
    except psycopg.Error as error:
        # A connection string that cannot be read is quoted in the error, password and all.
        said = re.sub(r"(://[^:@/\s]*:)[^@\s]*@|(password=)\S+", r"\1\2********@", " ".join(str(error).split()))
        say(f"The database does not do what is needed: {said}. The role must own its schema.", to_error=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return code
