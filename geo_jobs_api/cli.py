"""The command line: serve, migrate, tokens of workers, tokens of people."""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import psycopg
from uuid_utils.compat import uuid7

from geo_jobs_api import embedded
from geo_jobs_api.app import database, local_storage, retention
from geo_jobs_api.auth import make_jwt, new_worker_token, worker_token_sha256
from geo_jobs_api.config import Settings, load_settings
from geo_jobs_api.database import migrate, open_pool
from geo_jobs_api.errors import ConfigurationError
from geo_jobs_api.log import configure
from geo_jobs_api.server import bind, serve
from geo_jobs_api.store import JobStore


def _say(text: str, *, to_error: bool = False) -> None:
    print(text, file=sys.stderr if to_error else sys.stdout, flush=True)


def _serve(settings: Settings, arguments: argparse.Namespace) -> int:
    host = arguments.host or settings.api_host
    listener = bind(host, settings.api_port if arguments.port is None else arguments.port)

    # In this process, so that a database that cannot be used is told in one sentence, and so that the embedded one
    # runs as long as any of the serving processes does.
    share = embedded.start(settings.postgres_dir) if settings.conninfo is None else None
    try:
        asyncio.run(migrate(share.conninfo if share is not None else settings.conninfo or ""))
        return _announce_and_serve(settings, listener, host, arguments.workers)
    finally:
        if share is not None:
            share.close()


def _announce_and_serve(settings: Settings, listener: socket.socket, host: str, workers: int) -> int:
    port = listener.getsockname()[1]
    _say(f"Serving on http://{host if ':' not in host else f'[{host}]'}:{port}", to_error=True)
    return serve(settings, [listener], workers=workers)


def _migrate(settings: Settings, _: argparse.Namespace) -> int:
    async def run() -> None:
        async with database(settings):
            pass

    asyncio.run(run())
    _say("The schema is up to date.")
    return 0


def _with_jobs(settings: Settings, act: Callable[[JobStore], object]) -> int:
    async def run() -> int:
        async with (
            database(settings) as conninfo,
            open_pool(conninfo, size=2, wait_seconds=settings.database_timeout_seconds) as pool,
        ):
            result = act(JobStore(pool))
            return await result if asyncio.iscoroutine(result) else 0

    return asyncio.run(run())


def _cleanup(settings: Settings, arguments: argparse.Namespace) -> int:
    async def run() -> None:
        async with (
            database(settings) as conninfo,
            open_pool(conninfo, size=2, wait_seconds=settings.database_timeout_seconds) as pool,
        ):
            keeper = retention(settings, pool, local_storage(settings))
            _say((await keeper.run_once()).sentence())
            lost = await keeper.find_lost_objects()
            if lost and arguments.lost_objects:
                await keeper.remove_objects(lost)
                _say(f"Removed the objects of {len(lost)} jobs that the database does not know.")
            elif lost:
                _say(
                    f"There are objects of {len(lost)} jobs that the database does not know, such as {lost[0]}."
                    " If it is the right database, --lost-objects removes them."
                )

    asyncio.run(run())
    return 0


def _create_token(settings: Settings, arguments: argparse.Namespace) -> int:
    async def act(jobs: JobStore) -> int:
        token = new_worker_token()
        await jobs.add_worker_token(uuid7(), arguments.name, worker_token_sha256(token))
        _say(token)
        return 0

    return _with_jobs(settings, act)


def _list_tokens(settings: Settings, _: argparse.Namespace) -> int:
    async def act(jobs: JobStore) -> int:
        for token in await jobs.list_worker_tokens():
            state = "valid" if token.revoked_at is None else f"revoked {token.revoked_at:%Y-%m-%d %H:%M}"
            _say(f"{token.id}  {token.created_at:%Y-%m-%d %H:%M}  {state:24}  {token.name}")
        return 0

    return _with_jobs(settings, act)


def _revoke_token(settings: Settings, arguments: argparse.Namespace) -> int:
    async def act(jobs: JobStore) -> int:
        if await jobs.revoke_worker_token(arguments.id):
            return 0
        _say(f"There is no valid token {arguments.id}.", to_error=True)
        return 1

    return _with_jobs(settings, act)


def _jwt(settings: Settings, arguments: argparse.Namespace) -> int:
    token = make_jwt(settings, subject=arguments.sub, admin=arguments.admin, ttl_seconds=arguments.ttl, now=time.time())
    _say(token)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m geo_jobs_api", description="The job API.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, run: Callable[[Settings, argparse.Namespace], int]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    command = add("serve", "Serve the API until SIGTERM.", _serve)
    command.add_argument("--host", help="address to listen on (default: API_HOST)")
    command.add_argument("--port", type=int, help="port to listen on, 0 for any (default: API_PORT)")
    command.add_argument("--workers", type=int, default=1, metavar="N", help="number of processes (default: 1)")
    add("migrate", "Bring the database's schema up to date.", _migrate)
    command = add("cleanup", "Remove what has been kept for long enough, and say what it was.", _cleanup)
    command.add_argument("--lost-objects", action="store_true", help="also objects of jobs that are not known")
    command = add("jwt", "Print a token for a person.", _jwt)
    command.add_argument("--sub", required=True, metavar="NAME", help="whose token it is")
    command.add_argument("--admin", action="store_true", help="may see everybody's jobs")
    command.add_argument("--ttl", type=float, default=3600, metavar="SECONDS", help="how long it is valid")
    tokens = commands.add_parser("token", help="Tokens of workers.", description="Tokens of workers.")
    commands = tokens.add_subparsers(required=True, metavar="COMMAND")
    command = add("create", "Make a token and print it; only its hash is kept.", _create_token)
    command.add_argument("name", metavar="NAME", help="what it is for")
    add("list", "List the tokens.", _list_tokens)
    command = add("revoke", "Refuse a token from now on.", _revoke_token)
    command.add_argument("id", type=UUID, metavar="ID", help="its id, as listed")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        settings = load_settings()
        configure(settings.log_level)
        code: int = parsed.run(settings, parsed)
    except ConfigurationError as error:
        _say(str(error), to_error=True)
        return 1
    except psycopg.Error as error:
        # A connection string that cannot be read is quoted in the error, password and all.
        said = re.sub(r"(://[^:@/\s]*:)[^@\s]*@|(password=)\S+", r"\1\2********@", " ".join(str(error).split()))
        _say(f"The database does not do what is needed: {said}. The role must own its schema.", to_error=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return code
