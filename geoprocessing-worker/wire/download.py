"""Download of a job's file: streamed, limited in size, resumed after a break, and renamed when complete."""

import hashlib
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx

from geoprocessing_worker.errors import ErrorClass, JobError, Unavailable, invalid_input, worker_trouble
from geoprocessing_worker.own_folder import open_regular
from geoprocessing_worker.wire import transfer
from geoprocessing_worker.wire.messages import JobInput

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 1 << 20  # bytes per write: each one is a trip to a thread, which costs as much as writing 1 MB
# The file and its results.
ROOM_IN_FILES = 2
# Characters of an ETag or date. Longer ones are ignored.
LONGEST_VALIDATOR = 1024


@dataclass(frozen=True)
class Downloaded:
    """A complete file or, if `unchanged`, a file that is still the known version."""

    path: Path
    size_bytes: int
    sha256: str
    etag: str | None = None
    last_modified: str | None = None
    unchanged: bool = False


@dataclass
class _Partial:
    """The bytes received so far, and the validators of that version."""

    path: Path
    pulse: transfer.Pulse
    size_bytes: int = 0
    entity_tag: str = ""
    last_modified: str = ""
    unchanged: bool = False
    mismatches: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def restart(self) -> None:
        self.size_bytes, self.digest = 0, hashlib.sha256()


async def download(
    source: JobInput,
    destination: Path,
    *,
    http: httpx.AsyncClient,
    max_bytes: int,
    report: "Callable[[float, str], None]",
) -> Downloaded:
    """Download `source` to `destination`, which appears only when complete.

    Args:
        source: address, and size if known.
        destination: a path that does not exist yet.
        http: a client without the API's credentials.
        max_bytes: limit, whatever length the server declares.
        report: receives percent and a sentence.

    Raises:
        JobError: `too_large`, `download_refused`, `download_failed`, `size_mismatch`, `worker_trouble`.
    """
    _refuse_larger(source.size_bytes or 0, max_bytes)
    _check_room(destination.parent, source.size_bytes or 0)
    patience = transfer.SOURCE_PATIENCE if source.is_remote else transfer.PATIENCE
    partial = _Partial(destination.with_name(destination.name + ".part"), transfer.Pulse(patience=patience))

    try:
        await transfer.patiently(
            lambda: _fetch_rest(source, partial, http, max_bytes, report),
            partial.pulse,
            code="download_failed",
            message=_NOT_FETCHED[source.is_remote],
            detail=lambda: {"received_bytes": partial.size_bytes},
        )
    except OSError as error:
        # The disk space was checked before the claim, so the job is not the cause.
        raise worker_trouble("disk", reason=error.strerror or "") from error
    etag, last_modified = _validator(partial.entity_tag), _validator(partial.last_modified)
    if partial.unchanged:
        return Downloaded(destination, 0, "", etag, last_modified, unchanged=True)
    partial.path.rename(destination)
    return Downloaded(destination, partial.size_bytes, partial.digest.hexdigest(), etag, last_modified)


# Indexed by `is_remote`.
_NOT_FETCHED = (
    "The uploaded file could not be fetched from storage.",
    "The file could not be fetched from its address.",
)
_REFUSED = (
    "Storage refused the download of the uploaded file.",
    "The server at the file's address refused the download.",
)
# Error codes of S3, GCS, Azure and the API's own storage for an object that does not exist.
_GONE = re.compile(rb"NoSuchKey|NoSuchBucket|BlobNotFound|ContainerNotFound|object_not_found")
_LONGEST_ERROR = 4096  # bytes of an answer that are searched for such a code


async def _check(response: httpx.Response, *, is_remote: bool) -> None:
    """Raise the error for an answer that is no success.

    A refusal by another server is final. A signed URL of our storage may have expired, and a bare 404 may come from a
    proxy. These are final only if storage itself reports a missing object.

    Raises:
        Unavailable: the server is busy.
        JobError: `download_refused`, `invalid_input` or transient.
    """
    if response.is_client_error and not transfer.is_busy(response):
        if is_remote and "Retry-After" in response.headers:
            raise Unavailable(f"http_{response.status_code}", "the source asks to wait")
        if is_remote:
            raise _refused_by(response)
        if response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.GONE) and await _is_gone(response):
            raise invalid_input(
                "download_refused",
                f"The job's file is gone from storage (status {response.status_code}). Upload it again in a new job.",
                status=response.status_code,
            )
    transfer.check(response, code="download_refused", message=_REFUSED[is_remote])


def _refused_by(response: httpx.Response) -> JobError:
    status = f"{response.status_code} {response.reason_phrase}".strip()
    return invalid_input(
        "download_refused",
        f"{response.url.host} answered {status} for the file's address. "
        "Check that sourceUrl names a file that anyone may download.",
        status=response.status_code,
    )


async def _is_gone(response: httpx.Response) -> bool:
    text = response.headers.get("x-ms-error-code", "").encode()
    async for chunk in response.aiter_raw():
        text += chunk
        if len(text) >= _LONGEST_ERROR:
            break
    return _GONE.search(text[:_LONGEST_ERROR]) is not None


_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)  # longer ones do not fit into 64 bits


def _validator(text: str) -> str | None:
    """Return the text if it can be sent back in a header."""
    return text if 0 < len(text) <= LONGEST_VALIDATOR and text.isascii() and text.isprintable() else None


def _check_room(folder: Path, size_bytes: int) -> None:
    """Fail before a download that would fill the disk, which other jobs need too."""
    free = shutil.disk_usage(folder).free
    if free < ROOM_IN_FILES * size_bytes:
        raise worker_trouble("disk", free_bytes=free, needed_bytes=ROOM_IN_FILES * size_bytes)


async def _fetch_rest(
    source: JobInput,
    partial: _Partial,
    http: httpx.AsyncClient,
    max_bytes: int,
    report: "Callable[[float, str], None]",
) -> None:
    headers = {"Accept-Encoding": "identity"} | _conditions(source, partial)
    async with http.stream("GET", source.download_url, headers=headers, timeout=transfer.SILENCE) as response:
        if response.status_code == httpx.codes.NOT_MODIFIED and (source.etag or source.last_modified):
            partial.unchanged = True
            partial.entity_tag = response.headers.get("ETag", source.etag or "")
            partial.last_modified = response.headers.get("Last-Modified", source.last_modified or "")
            return
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and partial.size_bytes:
            partial.restart()  # the file is shorter now
            raise Unavailable("range_refused", "the file changed while it was fetched")
        await _check(response, is_remote=source.is_remote)
        if not _continues(response, partial):
            partial.restart()
        partial.entity_tag = _validator(response.headers.get("ETag", "")) or ""
        partial.last_modified = response.headers.get("Last-Modified", "")
        _refuse_larger(partial.size_bytes + _declared_bytes(response), max_bytes)
        async with await anyio.open_file(
            partial.path, "ab" if partial.size_bytes else "wb", opener=open_regular
        ) as file:
            buffer = bytearray()
            try:
                async for chunk in response.aiter_raw():
                    received = partial.size_bytes + len(buffer) + len(chunk)
                    _refuse_larger(received, max_bytes)
                    buffer += chunk
                    partial.pulse.beat(len(chunk))
                    report(*_progress(received, source.size_bytes))
                    if len(buffer) >= PIECE:
                        await _append(buffer, partial, file)
            finally:
                # Also after a break, so that these bytes are not requested again.
                await _append(buffer, partial, file)
    _check_size(source, partial)


def _check_size(source: JobInput, partial: _Partial) -> None:
    """Start over if the complete file has another size than the upload, at most a few times.

    Raises:
        Unavailable: start over.
        JobError: `size_mismatch`.
    """
    received = partial.size_bytes
    if source.size_bytes in (None, received):
        return
    partial.restart()
    partial.mismatches += 1
    if partial.mismatches < transfer.MAX_MISMATCHES:
        raise Unavailable("size_mismatch", "the file has another size than the upload")
    raise JobError(
        "size_mismatch",
        "The size of the stored file differs from the size of the upload.",
        ErrorClass.TRANSIENT,
        {"expected_bytes": source.size_bytes, "received_bytes": received},
    )


def _conditions(source: JobInput, partial: _Partial) -> dict[str, str]:
    """Return headers that request the rest of the file, or nothing if the file is the known version."""
    if partial.size_bytes and partial.entity_tag:
        return {"Range": f"bytes={partial.size_bytes}-", "If-Range": partial.entity_tag}
    conditions = {"If-None-Match": source.etag, "If-Modified-Since": source.last_modified}
    return {name: value for name, value in conditions.items() if value and _validator(value)}


def _progress(received: int, size_bytes: int | None) -> tuple[float, str]:
    if size_bytes is None:
        return 0.0, f"Downloaded {received / 1e6:.1f} MB"
    share = 100 * received / max(size_bytes, received)
    return share, f"Downloaded {received / 1e6:.1f} of {size_bytes / 1e6:.1f} MB"


async def _append(buffer: bytearray, partial: _Partial, file: "anyio.AsyncFile[bytes]") -> None:
    piece = bytes(buffer)
    buffer.clear()
    await file.write(piece)
    partial.digest.update(piece)
    partial.size_bytes += len(piece)


def _continues(response: httpx.Response, partial: _Partial) -> bool:
    return response.status_code == httpx.codes.PARTIAL_CONTENT and response.headers.get("Content-Range", "").startswith(
        f"bytes {partial.size_bytes}-"
    )


def _declared_bytes(response: httpx.Response) -> int:
    """Return the declared length of the body, or 0."""
    length = response.headers.get("Content-Length", "")
    return int(length) if _LENGTH.fullmatch(length) else 0


def _refuse_larger(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise invalid_input(
            "too_large",
            f"The file has more than {max_bytes / 1e6:.0f} MB, the most that is accepted here. "
            "Compress it (for example as a cloud optimized GeoTIFF with JPEG or DEFLATE) or cut it into parts.",
            limit="MAX_FILE_SIZE",
            limit_bytes=max_bytes,
            size_bytes=size_bytes,
        )
