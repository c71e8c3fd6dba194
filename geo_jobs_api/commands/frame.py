"""The frame of all commands: their declaration, and their access to the database."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable

from geo_jobs_api.app import database
from geo_jobs_api.config import Settings
from geo_jobs_api.database.pool import Pool, open_pool
from geo_jobs_api.queue.settings_store import settings_in_force

Run = Callable[[Settings, argparse.Namespace], int]
Action = Callable[[Settings, Pool, argparse.Namespace], Awaitable[int]]


class Group:
    """A group of commands, each with its `--help`.

    Args:
        parser: the parent parser.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, text: str, run: Run) -> argparse.ArgumentParser:
        """Declare a command. Return its parser for the arguments. `text` is its line in the list and in its help."""
        command = self._commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    def add_action(self, name: str, text: str, act: Action) -> argparse.ArgumentParser:
        """Declare a command on the database that can print JSON."""
        command = self.add(name, text, with_pool(act))
        add_json_option(command)
        return command

    def group(self, name: str, text: str) -> Group:
        """Declare a group of commands."""
        return Group(self._commands.add_parser(name, help=text, description=text))


def add_json_option(command: argparse.ArgumentParser) -> None:
    """Let the command print JSON."""
    command.add_argument("--json", action="store_true", help="print JSON as in the API's responses")


def with_pool(act: Action) -> Run:
    """Return a command on the database, after updating the schema. `act` returns the exit code.

    It uses the permissions in the settings of the running API.
    """

    def run(settings: Settings, arguments: argparse.Namespace) -> int:
        async def work() -> int:
            async with (
                database(settings) as conninfo,
                open_pool(
                    conninfo,
                    size=2,
                    wait_seconds=settings.database_timeout_seconds,
                    pooling=settings.database_pooling,
                ) as pool,
            ):
                return await act(await settings_in_force(pool, settings), pool, arguments)

        return asyncio.run(work())

    return run
