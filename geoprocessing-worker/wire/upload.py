"""Upload of results into the upload slots."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import anyio
import httpx

from geoprocessing_worker.errors import ErrorClass, JobError
from geoprocessing_worker.outputs import OutputFile, read_small
from geoprocessing_worker.own_folder import open_regular
from geoprocessing_worker.wire import transfer
from geoprocessing_worker.wire.messages import UploadSlot

CHUNK = 256 * 1024
SHORT_ANSWER = 64 * 1024
# Concurrent uploads hide the round trips of small files. More would only share the same link.
MAX_CONCURRENT = 3


async def upload(
    outputs: Sequence[OutputFile],
    slot_of: Callable[[str], UploadSlot | None],
    *,
    http: httpx.AsyncClient,
    report: Callable[[float, str], None],
) -> None:
    """Upload every output.

    Args:
        outputs: the files.
        slot_of: returns the slot of a name. Called before each attempt, since expiring signed URLs are replaced.
        http: a client without the API's credentials.
        report: receives percent and a sentence.

    Raises:
        JobError: `no_upload_slot`, `output_too_large`, `upload_refused`, `upload_failed`.
    """
    total = sum(output.size_bytes for output in outputs) or 1
    sent = 0
    gate = asyncio.Semaphore(MAX_CONCURRENT)

    async def one(output: OutputFile) -> None:
        nonlocal sent
        async with gate:
            await _persist(output, slot_of, http)
        sent += output.size_bytes
        report(100 * sent / total, f"Uploaded {output.name}")

    try:
        async with asyncio.TaskGroup() as group:
            for output in outputs:
                group.create_task(one(output))
    except* (JobError, OSError) as errors:
        raise errors.exceptions[0] from None


async def _persist(output: OutputFile, slot_of: Callable[[str], UploadSlot | None], http: httpx.AsyncClient) -> None:
    pulse = transfer.Pulse()
    await transfer.patiently(
        lambda: _put(output, fitting_slot(output, slot_of(output.name)), http, pulse),
        pulse,
        code="upload_failed",
        message="The results could not be uploaded to storage.",
        detail=lambda: {"output": output.name},
    )


def fitting_slot(output: OutputFile, slot: UploadSlot | None) -> UploadSlot:
    """Return the slot of an output.

    Raises:
        JobError: `no_upload_slot`, `output_too_large`.
    """
    if slot is None:
        raise JobError(
            "no_upload_slot",
            "The job server has no upload slot for one of the results.",
            ErrorClass.INTERNAL,
            {"output": output.name},
        )
    if output.size_bytes > slot.max_bytes:
        raise JobError(
            "output_too_large",
            f"The result {output.name} has {output.size_bytes / 1e6:.1f} MB, more than the "
            f"{slot.max_bytes / 1e6:.1f} MB that the job server accepts.",
            ErrorClass.INVALID_INPUT,
            {"output": output.name, "size_bytes": output.size_bytes, "max_bytes": slot.max_bytes},
        )
    return slot


async def _put(output: OutputFile, slot: UploadSlot, http: httpx.AsyncClient, pulse: transfer.Pulse) -> None:
    headers = {"Content-Type": slot.content_type, **slot.headers, "Content-Length": str(output.size_bytes)}
    small = output.size_bytes <= CHUNK
    content = read_small(output) if small else _chunks(output.path, pulse)
    # Only the status is used: the body may be of any length.
    async with http.stream(
        slot.method, slot.url, content=content, headers=headers, timeout=transfer.SILENCE
    ) as response:
        transfer.check(response, code="upload_refused", message="Storage rejected the results.", output=output.name)
        # A short body is read, since an unread one closes the connection.
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) <= SHORT_ANSWER:
            async for _ in response.aiter_raw():  # raw: no decompression bombs
                pass


async def _chunks(path: Path, pulse: transfer.Pulse) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb", opener=open_regular) as file:
        while chunk := await file.read(CHUNK):
            yield chunk
            pulse.beat(len(chunk))
