"""An object store in a folder. Objects appear atomically: temporary file, digest, rename.

The small results of a job share one ZIP archive beside their own paths, since each file takes two syncs.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread

from geo_jobs_api.errors import Problem
from geo_jobs_api.log import get_logger
from geo_jobs_api.storage.incoming import Incoming
from geo_jobs_api.storage.storage import ObjectInfo, SignedRequest, SizeRule, UrlSigner

_log = get_logger(__name__)

# A thread per piece costs next to nothing, and many uploads fit into memory.
PIECE_BYTES = 1024 * 1024
# The disk is full, the account's quota is used up, or the file exceeds the size limit.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class StagedObject:
    """A complete upload without a key."""

    info: ObjectInfo
    temporary: Path

    def publish(self, target: Path) -> None:
        """Rename it to its path, replacing an older object, and sync the folder."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self.temporary.replace(target)
        _sync_folder(target.parent)


class _Arriving:
    """The file of an upload, created with its first piece. All methods but `exists` run in a thread.

    Args:
        folder: of the file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digest = hashlib.sha256()
        self._temporary: Path | None = None
        self._file: BinaryIO | None = None
        self._size = 0

    def write(self, piece: bytes) -> None:
        """Add a piece."""
        if self._file is None:
            descriptor, name = tempfile.mkstemp(dir=self._folder)
            self._temporary, self._file = Path(name), os.fdopen(descriptor, "wb", buffering=0)
        self._digest.update(piece)
        self._size += len(piece)
        view = memoryview(piece)
        while view:
            view = view[self._file.write(view) :]

    def finish(self, last: bytes) -> StagedObject:
        """Add the last piece, and sync the file."""
        self.write(last)
        assert self._file is not None  # noqa: S101 - made by the write before
        assert self._temporary is not None  # noqa: S101 - likewise
        os.fsync(self._file.fileno())
        self._file.close()
        return StagedObject(ObjectInfo(self._size, self._digest.hexdigest()), self._temporary)

    def exists(self) -> bool:
        """Return whether there is an unpublished file."""
        return self._temporary is not None and self._temporary.exists()

    def discard(self) -> None:
        """Remove it."""
        if self._file is not None:
            self._file.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Sync the names in a folder to the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _report_full_disk(size_bytes: int) -> Iterator[None]:
    """Log a full disk, and raise Problem `storage_full` for it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _log.error("storage_full", needed_bytes=size_bytes, reason=error.strerror)
        raise Problem("storage_full", "The storage is full. Try again later.") from None


def _digest_file(path: Path) -> ObjectInfo | None:
    file = _open(path)
    if file is None:
        return None
    with file:
        digest = hashlib.file_digest(file, "sha256")
        return ObjectInfo(file.tell(), digest.hexdigest())


def _open(path: Path) -> io.BufferedIOBase | None:
    """Open the file of an object, or one in memory with its content and age from an archive. None: no object."""
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        pass
    for archive in path.parents[1].glob("*.zip"):
        # Not in this one, or the job was removed meanwhile.
        with suppress(KeyError, FileNotFoundError), zipfile.ZipFile(archive) as packed:
            content = packed.read(f"{path.parent.name}/{path.name}")
            modified = archive.stat().st_mtime
            file = os.fdopen(os.memfd_create("object"), "w+b")
            file.write(content)
            file.seek(0)  # writes the content
            os.utime(file.fileno(), (modified, modified))
            return file
    return None


def _pack(places: Mapping[Path, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, content in places.items():
            archive.writestr(zipfile.ZipInfo(f"{path.parent.name}/{path.name}"), content)
    return packed.getvalue()


class LocalStorage:
    """The `Storage` that the API serves itself.

    Args:
        root: folder of the objects, created if missing, readable by its owner only.
        signer: signs and verifies the URLs.
    """

    def __init__(self, root: Path, signer: UrlSigner) -> None:
        self._root = root
        self._incoming = Incoming(root / ".incoming")
        self._receiving: dict[str, anyio.CancelScope] = {}
        self.signer = signer

    def prepare(self) -> None:
        """Create the folders, or raise OSError."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._incoming.prepare()

    def path_of(self, key: str) -> Path:
        """Return the file of a key. A Problem for keys outside the folder."""
        parts = key.split("/")
        if any(part in {"", ".", ".."} or "\0" in part for part in parts) or parts[0] != "jobs":
            raise Problem("object_not_found", "There is no such file.")
        return self._root.joinpath(*parts)

    def sign_put(self, base_url: str, key: str, rule: SizeRule, seconds: float) -> SignedRequest:
        """Return the signed request for one upload."""
        return self.signer.sign(base_url, "PUT", key, rule, seconds)

    def sign_get(self, base_url: str, key: str, seconds: float) -> SignedRequest:
        """Return the signed request for one download."""
        return self.signer.sign(base_url, "GET", key, None, seconds)

    async def put_small(self, objects: Mapping[str, bytes]) -> None:
        """Store small objects of one job by key, with one trip to a thread and two syncs."""
        places = {self.path_of(key): content for key, content in objects.items()}

        def put() -> None:
            target, content = next(iter(places.items()))
            if len(places) > 1:
                content = _pack(places)
                # By its digest, so that two reports of a lease do not replace each other's results.
                target = target.parents[1] / f"{hashlib.sha256(content).hexdigest()}.zip"
            arriving = _Arriving(self._incoming.folder)
            try:
                arriving.finish(content).publish(target)
            finally:
                if arriving.exists():
                    arriving.discard()

        with _report_full_disk(sum(map(len, objects.values()))):
            await asyncio.to_thread(put)

    async def stat(self, keys: Sequence[str]) -> list[ObjectInfo | None]:
        """Return size and digest of the stored bytes for each key. None: no object."""
        paths = [self.path_of(key) for key in keys]
        return await asyncio.to_thread(lambda: [_digest_file(path) for path in paths])

    async def open(self, key: str) -> io.BufferedIOBase | None:
        """Open an object. None: no such object."""
        return await asyncio.to_thread(_open, self.path_of(key))

    async def delete_prefix(self, prefix: str) -> None:
        """Remove all objects below a prefix."""
        await asyncio.to_thread(shutil.rmtree, self.path_of(prefix), ignore_errors=True)

    async def remove_broken_uploads(self) -> int:
        """Remove unfinished uploads of dead processes. Return the number of files."""
        return await asyncio.to_thread(self._incoming.remove_abandoned)

    async def list_jobs(self, after: str, limit: int, older_than_seconds: float) -> list[str]:
        """Return the names of the folders below `jobs` after `after`, sorted."""

        def look() -> list[str]:
            folder, before = self._root / "jobs", self.signer.now() - older_than_seconds
            if not folder.is_dir():
                return []
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.name > after)
            return [name for name in names if _is_older(folder / name, before)][:limit]

        return await asyncio.to_thread(look)

    async def check(self) -> None:
        """Write and remove a file of a few bytes."""

        def write() -> None:
            with tempfile.TemporaryFile(dir=self._incoming.folder) as file:
                file.write(b"ok")

        await asyncio.to_thread(write)

    async def free_bytes(self) -> int | None:
        """Return the free bytes of the disk for this account."""
        return (await asyncio.to_thread(shutil.disk_usage, self._root)).free

    async def delete(self, key: str) -> None:
        """Remove one object, if it exists."""
        await asyncio.to_thread(self.path_of(key).unlink, missing_ok=True)

    @asynccontextmanager
    async def receive(self, key: str, body: AsyncIterator[bytes], rule: SizeRule) -> AsyncIterator[StagedObject]:
        """Store an upload in a temporary file, which is removed unless it is published inside the context.

        A later upload to the same key ends an earlier unfinished one. So a client with a broken connection can retry at
        once, and many uploads to one URL take the space of one in each process.

        Raises:
            Problem: `too_large` at the first excess byte, `validation` for too few bytes, `storage_full`, and
                `invalid_state` when a later upload took over.
        """
        arriving = _Arriving(self._incoming.folder)
        try:
            with _report_full_disk(rule.size_bytes):
                with self._replace_earlier_upload(key) as scope:
                    last = await _receive_body(arriving, body, rule)
                if scope.cancelled_caught:
                    raise Problem("invalid_state", "A later upload of the same file replaced this one.")
                yield await asyncio.to_thread(arriving.finish, last)
        finally:
            if arriving.exists():
                await asyncio.to_thread(arriving.discard)

    @contextmanager
    def _replace_earlier_upload(self, key: str) -> Iterator[anyio.CancelScope]:
        """Cancel the current upload to this key, and let the next one cancel this block."""
        if key in self._receiving:
            self._receiving[key].cancel()
        with anyio.CancelScope() as scope:
            self._receiving[key] = scope
            try:
                yield scope
            finally:
                if self._receiving.get(key) is scope:
                    del self._receiving[key]


async def _receive_body(arriving: _Arriving, body: AsyncIterator[bytes], rule: SizeRule) -> bytes:
    """Store the body except its last piece, which is returned. Most bodies are one piece, for one trip to a thread."""
    size = 0
    piece = bytearray()
    async for chunk in body:
        size += len(chunk)
        if size > rule.size_bytes:
            raise Problem("too_large", f"The body exceeds the agreed {rule.size_bytes} bytes.")
        piece += chunk
        if len(piece) >= PIECE_BYTES:
            # Unlike asyncio's, this waits for the thread when cancelled, so the file is not closed under it.
            await anyio.to_thread.run_sync(arriving.write, bytes(piece))
            piece.clear()
    if rule.exact and size != rule.size_bytes:
        raise Problem("validation", f"The body has {size} bytes, but {rule.size_bytes} were announced.")
    return bytes(piece)


def _is_older(path: Path, moment: float) -> bool:
    """Return whether a folder was last changed before a moment. One that is gone was not."""
    try:
        return path.stat().st_mtime < moment
    except FileNotFoundError:
        return False
