"""The API's own object store: signed PUT and GET."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from geo_jobs_api.errors import Problem
from geo_jobs_api.http.services import Services, ServicesOf
from geo_jobs_api.queue.rules import JobState, input_key, output_key
from geo_jobs_api.storage.local_storage import PIECE_BYTES, StagedObject
from geo_jobs_api.storage.storage import SignatureQuery, SizeRule

router = APIRouter(prefix="/storage", tags=["files"])

# Minimum time limit of an upload. Large ones also get the time that the slowest supported link needs.
UPLOAD_SECONDS = 60.0
UPLOAD_BYTES_PER_SECOND = 10_000
_BYTES: dict[str, object] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_INPUT_KEY = re.compile(r"^jobs/(?P<job>[0-9a-f-]{36})/input/(?P<name>[^/]+)$")
_SLOT_KEY = re.compile(r"^jobs/(?P<job>[0-9a-f-]{36})/outputs/(?P<lease_seq>\d{1,18})/(?P<name>[^/]+)$")


class _ObjectResponse(FileResponse):
    chunk_size = PIECE_BYTES  # Each read is a trip to a thread.


async def signature_query(
    expires: Annotated[int, Query(ge=0, lt=2**53)],
    signature: Annotated[str, Query(max_length=100)],
    size: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
    max_size: Annotated[int | None, Query(alias="maxSize", ge=0, lt=2**53)] = None,
) -> SignatureQuery:
    """Return the query of a signed URL."""
    return SignatureQuery(expires, signature, size, max_size)


Signature = Annotated[SignatureQuery, Depends(signature_query)]


@router.put(
    "/{key:path}",
    status_code=201,
    # Otherwise the framework documents a body.
    response_class=Response,
    responses={201: {"description": "It is there, whole.", "headers": {"ETag": {"schema": {"type": "string"}}}}},
    summary="Upload with a signed URL",
)
async def put_object(key: str, request: Request, query: Signature, services: ServicesOf) -> Response:
    """Store one object. A job's input queues the job."""
    services.storage.signer.verify("PUT", key, query)
    rule = query.rule
    if rule is None:
        raise Problem("signature_invalid", "The signed URL has no size. Request an upload URL.")
    announced = _announced_length(request.headers.get("content-length"), rule)
    # Publishing reads an output's record again. For a small object one check, there, is enough.
    if announced is None or announced > PIECE_BYTES or not _SLOT_KEY.match(key):
        await _check_expected(services, key, rule.size_bytes)
    body = _limit_time(UPLOAD_SECONDS + rule.size_bytes / UPLOAD_BYTES_PER_SECOND, request.stream())
    async with services.storage.receive(key, body, rule) as staged:
        await _publish(services, key, staged)
        return Response(status_code=201, headers={"ETag": f'"{staged.info.sha256}"'})


async def _limit_time(seconds: float, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the body. Problem `too_slow` if it takes longer than `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                piece = await anext(body, None)
        except TimeoutError:
            raise Problem(
                "too_slow", f"The file did not arrive within {seconds:.0f} s. Use a faster connection."
            ) from None
        if piece is None:
            return
        yield piece


def _announced_length(header: str | None, rule: SizeRule) -> int | None:
    if header is None or not header.isdecimal():
        return None
    announced = int(header)
    if announced > rule.size_bytes:
        raise Problem("too_large", f"The body has {announced} bytes, more than the agreed {rule.size_bytes}.")
    if rule.exact and announced < rule.size_bytes:
        raise Problem("validation", f"The body has {announced} bytes, but {rule.size_bytes} were announced.")
    return announced


async def _check_expected(services: Services, key: str, size_bytes: int) -> None:
    """Reject an upload that the job would not accept, before the body is read."""
    if match := _INPUT_KEY.match(key):
        job = await services.jobs.find_job(UUID(match["job"]))
        if job is None or job.state is not JobState.AWAITING_UPLOAD:
            raise Problem("invalid_state", "The job does not await this file.")
        if (job.input_file_name, job.input_size_bytes) != (match["name"], size_bytes):
            raise Problem("invalid_state", "A later request for an upload announced another file. Use its URL.")
    elif match := _SLOT_KEY.match(key):
        if not await services.jobs.accepts_outputs(UUID(match["job"])):
            raise Problem("already_finalized", "The job has ended and accepts no more outputs.")
    else:
        raise Problem("object_not_found", "There is no such file.")


async def _publish(services: Services, key: str, staged: StagedObject) -> None:
    """Publish the object under its key, then update the job. No database connection is held during disk work."""
    info = staged.info
    if match := _SLOT_KEY.match(key):
        await _check_expected(services, key, info.size_bytes)
        target = output_key(UUID(match["job"]), int(match["lease_seq"]), info.sha256, match["name"])
        await asyncio.to_thread(staged.publish, services.storage.path_of(target))
        return
    match = _INPUT_KEY.match(key)
    if match is None:
        raise Problem("object_not_found", "There is no such file.")
    job_id, name = UUID(match["job"]), match["name"]
    kept = input_key(job_id, info.sha256, name)
    await asyncio.to_thread(staged.publish, services.storage.path_of(kept))
    if not await services.jobs.enqueue_uploaded(job_id, file_name=name, size_bytes=info.size_bytes, sha256=info.sha256):
        # Of two concurrent uploads, one queues the job. The other file is unused, unless both are equal.
        job = await services.jobs.find_job(job_id)
        if job is None or job.input_sha256 != info.sha256:
            await services.storage.delete(kept)
        raise Problem("invalid_state", "The job does not await this file.")


@router.head("/{key:path}", include_in_schema=False)
@router.get(
    "/{key:path}",
    response_class=_ObjectResponse,
    responses={
        200: {"description": "The whole object.", "content": _BYTES},
        206: {"description": "The requested range.", "content": _BYTES},
    },
    summary="Download with a signed URL",
)
async def get_object(key: str, query: Signature, services: ServicesOf) -> Response:
    """Return one object, whole or in ranges. Browsers must neither display nor execute it."""
    services.storage.signer.verify("GET", key, query)
    file = await services.storage.open(key)
    if file is None:
        raise Problem("object_not_found", "There is no such file.")
    return _ObjectResponse(
        f"/proc/self/fd/{file.fileno()}",
        media_type="application/octet-stream",
        filename=key.rsplit("/", maxsplit=1)[-1],
        headers={"Cache-Control": "private, no-transform"},
        stat_result=os.fstat(file.fileno()),
        background=BackgroundTask(file.close),  # and keeps it open until then
    )
