"""Task types in PostgreSQL. Each change notifies all waiting claims."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from psycopg import AsyncConnection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from geo_jobs_api.database.pool import Pool
from geo_jobs_api.database.queries import load_queries
from geo_jobs_api.task_types.schemas import TaskType, parse_task_type

_task_types = load_queries("task_types.sql")


async def _put(connection: AsyncConnection[DictRow], task_type: TaskType, *, by_operator: bool) -> None:
    row = task_type.as_row()
    schema = row["payload_schema"]
    values = {"outputs": Jsonb(row["outputs"]), "payload_schema": None if schema is None else Jsonb(schema)}
    await _task_types.put_task_type(connection, **row | values, by_operator=by_operator)


class TaskTypeStore:
    """The stored task types."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list_task_types(self) -> list[TaskType]:
        """Return all task types, by name."""
        rows = await self._pool.fetch_rows(_task_types.list_task_types)
        # Checking the payload schemas takes 6 ms for a large one.
        return await asyncio.to_thread(lambda: [TaskType.from_row(row) for row in rows])

    async def find_task_type(self, name: str) -> TaskType | None:
        """Return one task type."""
        return next((one for one in await self.list_task_types() if one.name == name), None)

    async def put_task_type(self, task_type: TaskType) -> None:
        """Create or replace a task type."""
        async with self._pool.connection() as connection:
            await _put(connection, task_type, by_operator=True)

    async def change_task_type(
        self, name: str, given: Mapping[str, object], *, may_create: bool = False
    ) -> TaskType | None:
        """Change some fields, by JSON name.

        Returns:
            The new task type. None: it does not exist, and `may_create` is false.

        Raises:
            Problem: `validation`.
        """
        async with self._pool.connection() as connection, connection.transaction():
            row = await _task_types.lock_task_type(connection, name=name)
            if row is None and not may_create:
                return None
            changed = parse_task_type({**given, "name": name}) if row is None else TaskType.from_row(row).changed(given)
            await _put(connection, changed, by_operator=True)
        return changed

    async def apply_environment(self, given: Sequence[Mapping[str, object]]) -> None:
        """Apply the environment's task types, except to types that operators have changed.

        Raises:
            Problem: `validation`.
        """
        for one in given:
            async with self._pool.connection() as connection, connection.transaction():
                row = await _task_types.lock_task_type(connection, name=one.get("name"))
                if row is not None and row["changed_at"] is not None:
                    continue
                now = None if row is None else TaskType.from_row(row)
                target = parse_task_type(one) if now is None else now.changed(one)
                if target != now:
                    await _put(connection, target, by_operator=False)
