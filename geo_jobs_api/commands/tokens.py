"""tokens: worker tokens."""

from __future__ import annotations

import argparse
from uuid import UUID

from uuid_utils.compat import uuid7

from geo_jobs_api.commands.frame import Group
from geo_jobs_api.commands.output import print_line, print_result, print_table
from geo_jobs_api.config import Settings
from geo_jobs_api.database.pool import Pool
from geo_jobs_api.http.auth import new_worker_token, worker_token_sha256
from geo_jobs_api.queue.job_store import JobStore
from geo_jobs_api.queue.records import WorkerToken


def add_commands(commands: Group) -> None:
    """Declare the commands."""
    tokens = commands.group("tokens", "Tokens of workers.")
    command = tokens.add_action("create", "Create a token and print it. Only its hash is stored.", _create)
    command.add_argument("name", metavar="NAME", help="purpose")
    tokens.add_action("list", "List the tokens.", _list)
    command = tokens.add_action("delete", "Delete a token. It is rejected from now on.", _delete)
    command.add_argument("id", type=UUID, metavar="ID", help="its id, as listed")


async def _create(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    token, token_id = new_worker_token(), uuid7()
    await JobStore(pool).add_worker_token(token_id, arguments.name, worker_token_sha256(token))
    print_result(token, {"id": str(token_id), "name": arguments.name, "token": token}, as_json=arguments.json)
    return 0


def _state(token: WorkerToken) -> str:
    return "valid" if token.revoked_at is None else f"revoked {token.revoked_at:%Y-%m-%d %H:%M}"


async def _list(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    columns = {
        "ID": lambda token: token.id,
        "CREATED": lambda token: token.created_at,
        "STATE": _state,
        "NAME": lambda token: token.name,
    }
    print_table(await JobStore(pool).list_worker_tokens(), columns, as_json=arguments.json)
    return 0


async def _delete(_settings: Settings, pool: Pool, arguments: argparse.Namespace) -> int:
    if await JobStore(pool).revoke_worker_token(arguments.id):
        print_result("Deleted. It is rejected from now on.", {"deleted": str(arguments.id)}, as_json=arguments.json)
        return 0
    print_line(f"There is no valid token {arguments.id}.", to_error=True)
    return 1
