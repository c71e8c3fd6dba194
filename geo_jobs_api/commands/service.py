"""serve, migrate, cleanup, jwt: run the service."""

from __future__ import annotations

import argparse
import asyncio
import socket
import time

from geo_jobs_api.app import local_storage, retention
from geo_jobs_api.commands.frame import Group, add_json_option, with_pool
from geo_jobs_api.commands.output import print_json, print_line
from geo_jobs_api.config import Settings
from geo_jobs_api.database import embedded
from geo_jobs_api.database.migrate import build_indexes, migrate
from geo_jobs_api.database.pool import Pool
from geo_jobs_api.http.auth import make_jwt
from geo_jobs_api.http.server import bind, serve

_DAY_SECONDS = 86_400.0


def add_commands(commands: Group) -> None:
    """Declare the commands."""
    command = commands.add("serve", "Serve the API until SIGTERM.", _serve)
    command.add_argument("--host", help="address to listen on (default: API_HOST)")
    command.add_argument("--port", type=int, help="port to listen on, 0 for any (default: API_PORT)")
    command.add_argument("--workers", type=int, default=1, metavar="N", help="number of processes (default: 1)")
    commands.add("migrate", "Update the database's schema.", with_pool(_migrate))
    command = commands.add("cleanup", "Remove expired data, and report it.", with_pool(_cleanup))
    command.add_argument(
        "days",
        metavar="DAYS",
        type=float,
        nargs="?",
        help="remove all jobs that ended this many days ago, regardless of the settings",
    )
    command.add_argument("--lost-objects", action="store_true", help="also objects of unknown jobs")
    add_json_option(command)
    command = commands.add("jwt", "Print a token for a person.", _jwt)
    command.add_argument("--sub", required=True, metavar="NAME", help="subject of the token")
    command.add_argument("--admin", action="store_true", help="allow access to all owners' jobs")
    command.add_argument("--ttl", type=float, default=3600, metavar="SECONDS", help="lifetime")


def _serve(settings: Settings, arguments: argparse.Namespace) -> int:
    host = arguments.host or settings.api_host
    listener = bind(host, settings.api_port if arguments.port is None else arguments.port)

    # In this process, so that an unusable database is reported in one sentence, and the embedded one runs as long as
    # any serving process.
    share = embedded.start(settings.postgres_dir) if settings.conninfo is None else None
    try:
        conninfo = share.conninfo if share is not None else settings.conninfo or ""
        asyncio.run(migrate(conninfo, settings.database_pooling))
        asyncio.run(build_indexes(settings.listen_conninfo or conninfo))
        return _announce_and_serve(settings, listener, host, arguments.workers)
    finally:
        if share is not None:
            share.close()


def _announce_and_serve(settings: Settings, listener: socket.socket, host: str, workers: int) -> int:
    port = listener.getsockname()[1]
    print_line(f"Serving on http://{host if ':' not in host else f'[{host}]'}:{port}", to_error=True)
    return serve(settings, [listener], workers=workers)


async def _migrate(_settings: Settings, _pool: Pool, _arguments: argparse.Namespace) -> int:
    print_line("The schema is up to date.")
    return 0


async def _cleanup(settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    keeper = retention(settings, pool, local_storage(settings))
    ended_seconds = None if arguments.days is None else max(0.0, arguments.days) * _DAY_SECONDS
    done = await keeper.run_once(ended_seconds)
    lost = await keeper.find_lost_objects()
    if lost and arguments.lost_objects:
        await keeper.remove_objects(lost)
    if arguments.json:
        print_json(
            done.model_dump(by_alias=True)
            | {"jobsWithLostObjects": len(lost), "lostObjectsRemoved": bool(lost and arguments.lost_objects)}
        )
        return 0
    print_line(done.sentence())
    if lost and arguments.lost_objects:
        print_line(f"Removed the objects of {len(lost)} jobs that are not in the database.")
    elif lost:
        print_line(
            f"The storage has objects of {len(lost)} jobs that are not in the database, such as {lost[0]}."
            " If this is the right database, remove them with --lost-objects."
        )
    return 0


def _jwt(settings: Settings, arguments: argparse.Namespace) -> int:
    token = make_jwt(settings, subject=arguments.sub, admin=arguments.admin, ttl_seconds=arguments.ttl, now=time.time())
    print_line(token)
    return 0
