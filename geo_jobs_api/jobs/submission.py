"""From requests to queued jobs: allowed sources, quotas, repeated requests."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Header
from uuid_utils.compat import uuid7

from geo_jobs_api.config import Settings
from geo_jobs_api.errors import FieldError, Problem, validation_problem
from geo_jobs_api.hosts import HostList, parse_web_address
from geo_jobs_api.jobs.creation_schemas import CreateJob
from geo_jobs_api.jobs.creation_store import CreationStore, Dependency, NewJob, ParentNotFoundError, Source
from geo_jobs_api.jobs.payload_checks import (
    RequestedJob,
    RequestedOutput,
    check_outputs,
    check_payloads,
    find_rules,
    unknown_task_type,
)
from geo_jobs_api.queue.job_store import QuotaExceededError
from geo_jobs_api.queue.records import Caller, Job, Usage
from geo_jobs_api.queue.rules import FINAL_STATES, InputKind, safe_file_name

# A job with the same key may end between the rejected insert and the lookup.
_TRIES = 5
# Batches and pipelines append the place of each job.
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


@dataclass(frozen=True, slots=True)
class Submission:
    """A job, and whether this request created it."""

    job: Job
    is_new: bool


class JobSubmission:
    """Creates the jobs of requests within their callers' quotas.

    Args:
        creation: the store.
        settings: allowed sources and quotas.
    """

    def __init__(self, creation: CreationStore, settings: Settings) -> None:
        self._creation = creation
        self._settings = settings

    async def submit(
        self,
        caller: Caller,
        bodies: Sequence[CreateJob],
        idempotency_key: str | None,
        *,
        is_batch: bool = False,
    ) -> list[Submission]:
        """Create jobs, all or none. Existing jobs (by either key) are returned instead.

        Raises:
            Problem: `validation`, `source_not_allowed`, `unknown_task_type`, `parent_not_found`, `quota_exceeded`,
                `idempotency_conflict`.
        """

        # Each job of a batch has its own key, the request's key with its place.
        def make() -> list[NewJob]:
            keys = [
                f"{idempotency_key}/{number}" if is_batch and idempotency_key is not None else idempotency_key
                for number in range(len(bodies))
            ]
            return [
                self._new_job(caller, body, keys[number], f"/jobs/{number}" if is_batch else "")
                for number, body in enumerate(bodies)
            ]

        new_jobs = await asyncio.to_thread(make) if is_batch else make()
        places = (f"/jobs/{number}" if is_batch else "" for number in range(len(bodies)))
        await check_payloads(
            self._creation,
            [
                RequestedJob(place, body.task_type, body.input_payload)
                for place, body in zip(places, bodies, strict=True)
            ],
        )
        await self._check_outputs(caller, bodies, is_batch=is_batch)
        found: dict[int, Submission] = {}
        for _ in range(_TRIES):
            missing = {number: new for number, new in enumerate(new_jobs) if number not in found}
            created = await self._create(caller, list(missing.values()))
            found |= {
                number: Submission(created[new.id], is_new=True) for number, new in missing.items() if new.id in created
            }
            missing = {number: new for number, new in missing.items() if number not in found}
            if missing:
                found |= await self._find_earlier(caller, missing)
            if len(found) == len(new_jobs):
                return [found[number] for number in range(len(new_jobs))]
        raise Problem(
            "unavailable",
            "Jobs with these keys are created and ended too quickly. Try again.",
            headers={"Retry-After": "1"},
        )

    async def _check_outputs(self, caller: Caller, bodies: Sequence[CreateJob], *, is_batch: bool) -> None:
        """Check each `inputFrom` against its parent, if the caller owns it. Ended parents follow older rules."""
        inputs = {number: body.input_from for number, body in enumerate(bodies) if body.input_from is not None}
        if not inputs:
            return
        parents = await self._creation.find_jobs([each.job_id for each in inputs.values()], caller.owner_filter)
        by_id = {parent.id: parent for parent in parents if parent.state not in FINAL_STATES}
        outputs = [
            RequestedOutput(
                f"{f'/jobs/{number}' if is_batch else ''}/inputFrom/output",
                each.output,
                by_id[each.job_id].task_type,
                by_id[each.job_id].input_payload,
            )
            for number, each in inputs.items()
            if each.job_id in by_id
        ]
        await check_outputs(self._creation, outputs)

    async def _create(self, caller: Caller, new_jobs: Sequence[NewJob]) -> Mapping[UUID, Job]:
        if len(new_jobs) > 1:
            # Before the insert, since a batch is created whole or not at all.
            await check_task_types(self._creation, new_jobs)
        try:
            return await self._creation.create_jobs(
                new_jobs, parents_of=caller.owner_filter, max_open=self._settings.max_open_jobs_per_caller
            )
        except QuotaExceededError as error:
            raise quota_exceeded(self._settings, error.has) from error
        except ParentNotFoundError as error:
            raise Problem(
                "parent_not_found", f"The parent job {error.parent_id} does not exist, or is not yours."
            ) from error

    async def _find_earlier(self, caller: Caller, missing: Mapping[int, NewJob]) -> dict[int, Submission]:
        keys = [new.idempotency_key for new in missing.values() if new.idempotency_key is not None]
        by_key = await self._creation.find_by_idempotency_keys(caller.subject, keys) if keys else {}
        deduplicated = {number: new for number, new in missing.items() if new.dedup_key is not None}
        by_dedup = await self._creation.find_deduplicated(list(deduplicated.values())) if deduplicated else {}
        found = {}
        for number, new in missing.items():
            job = by_key.get(new.idempotency_key or "")
            if job is not None and job.request_digest != new.request_digest:
                raise Problem("idempotency_conflict", "This Idempotency-Key was used with another body. Use a new one.")
            job = job or by_dedup.get((new.task_type, new.dedup_key))
            if job is not None:
                found[number] = Submission(job, is_new=False)
            else:
                await check_task_types(self._creation, [new])
        return found

    def _new_job(self, caller: Caller, body: CreateJob, key: str | None, pointer: str) -> NewJob:
        dependencies = {
            parent.job_id: Dependency(parent.job_id, parent.on_parent_failure) for parent in body.depends_on
        }
        if body.input_from is not None:
            dependencies.setdefault(body.input_from.job_id, Dependency(body.input_from.job_id))
            source = Source(InputKind.OUTPUT, parent_id=body.input_from.job_id, output=body.input_from.output)
            if "sourceUrl" in body.input_payload:
                raise validation_problem(
                    f"{pointer}/inputFrom", "A job has one input: inputFrom, or inputPayload.sourceUrl."
                )
        else:
            source = source_of(self._settings.sources_allowed, body.input_payload, f"{pointer}/inputPayload/sourceUrl")
            if body.await_upload and source.kind is None:
                source = Source(InputKind.UPLOAD)
        return NewJob(
            id=uuid7(),
            owner=caller.subject,
            task_type=body.task_type,
            priority=body.priority,
            input_payload=body.input_payload,
            idempotency_key=key,
            request_digest=request_digest(body.model_dump(mode="json")),
            source=source,
            dependencies=tuple(dependencies.values()),
            dedup_key=body.dedup_key,
            run_at=body.run_at,
            notify_at=body.notify_at,
        )


async def check_task_types(creation: CreationStore, new_jobs: Sequence[NewJob]) -> None:
    """Check the jobs' task types, and that they fit the inputs.

    Raises:
        Problem: `unknown_task_type`, `validation`.
    """
    rules = await find_rules(creation, (new.task_type for new in new_jobs))
    for new in new_jobs:
        if new.task_type not in rules:
            raise await unknown_task_type(creation, new.task_type, "/taskType")
        if rules[new.task_type].input == "none" and new.source.kind not in {None, InputKind.NONE}:
            raise Problem("validation", f"Task type {new.task_type!r} takes no input. Remove it from the job.")


def request_digest(body: Mapping[str, object]) -> bytes:
    """Return the digest that identifies a repeated request."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()


def source_of(allowed: HostList, payload: Mapping[str, object], pointer: str) -> Source:
    """Return the input of a payload. `allowed`: hosts of downloads.

    Raises:
        Problem: `validation`, `source_not_allowed`.
    """
    url = payload.get("sourceUrl")
    if url is None:
        return Source()
    if not isinstance(url, str):
        raise validation_problem(pointer, "must be text", "sourceUrl must be text.")
    try:
        address = parse_web_address(url)
    except ValueError as error:
        raise validation_problem(pointer, str(error), f"sourceUrl {error}.") from error
    if not allowed.allows(address.host):
        raise Problem(
            "source_not_allowed",
            f"Downloads from {address.host} are not allowed. SOURCE_HOSTS lists the allowed hosts.",
            errors=[FieldError(pointer, "its host is not allowed")],
        )
    name = safe_file_name(address.last_part) if address.last_part.strip(". ") else "source.tif"
    return Source(InputKind.URL, url=url, file_name=name)


def quota_exceeded(settings: Settings, has: Usage) -> Problem:
    """Return the problem of an exceeded quota. `has` includes the rejected addition."""
    limit = settings.max_open_jobs_per_caller
    if limit and has.open_jobs > limit:
        detail, seconds = f"You would have {has.open_jobs} open jobs, more than the limit of {limit}.", 60
    else:
        limit = settings.max_stored_bytes_per_caller
        detail, seconds = f"Your files would have {has.stored_bytes} bytes, more than the limit of {limit}.", 3600
    return Problem("quota_exceeded", detail, headers={"Retry-After": str(seconds)})


def limit_exceeded(noun: str, limit: int) -> Problem:
    """Return the problem of an exceeded limit per caller."""
    detail = f"You have {limit} {noun}, the limit for one caller. Delete one that you do not need."
    return Problem("quota_exceeded", detail, headers={"Retry-After": "3600"})
