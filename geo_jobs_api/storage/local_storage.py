"""An object store in a folder. Objects appear whole: a temporary name, a digest, a rename."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread

from geo_jobs_api.errors import Problem
from geo_jobs_api.log import get_logger
from geo_jobs_api.storage.incoming import Incoming, is_older
from geo_jobs_api.storage.storage import ObjectInfo, SignedRequest, SizeRule, UrlSigner

_log = get_logger(__name__)

# Large enough that a thread per piece costs nothing, small enough to keep many uploads in memory.
PIECE_BYTES = 1024 * 1024
# The disk is full, the account's share of it is used up, or no file may be as long.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class StagedObject:
    """An upload that has arrived whole but has no key yet."""

    info: ObjectInfo
    temporary: Path

    def publish(self, target: Path) -> None:
        """Give it its place, replacing what stood there, and make that survive a power cut."""
        self.move(target)
        _settle_folder(target.parent)

    def move(self, target: Path) -> None:
        """Give it its place; its folder has yet to be settled."""
        target.parent.mkdir(parents=True, exist_ok=True)
        self.temporary.replace(target)


class _Arriving:
    """The file that an upload goes to, made with its first piece; all but `exists` is for a thread.

    Args:
        folder: where.
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
        """Add the last piece; from here on the bytes survive a power cut."""
        self.write(last)
        assert self._file is not None  # noqa: S101 - made by the write before
        assert self._temporary is not None  # noqa: S101 - likewise
        os.fsync(self._file.fileno())
        self._file.close()
        return StagedObject(ObjectInfo(self._size, self._digest.hexdigest()), self._temporary)

    def exists(self) -> bool:
        """Whether there is a file that was not published."""
        return self._temporary is not None and self._temporary.exists()

    def discard(self) -> None:
        """Remove it."""
        if self._file is not None:
            self._file.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


def _settle_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _room_for(size_bytes: int) -> Iterator[None]:
    """A disk that takes no more is a Problem `storage_full`, and said in the log."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _log.error("storage_full", needed_bytes=size_bytes, reason=error.strerror)
        raise Problem("storage_full", "There is no room for the file at the moment; try again later.") from None


def _digest_file(path: Path) -> ObjectInfo | None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return ObjectInfo(file.tell(), digest.hexdigest())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


class LocalStorage:
    """The `Storage` that the API serves itself.

    Args:
        root: folder of the objects; made when it is not there, readable by its owner only.
        signer: makes and checks the URLs.
    """

    def __init__(self, root: Path, signer: UrlSigner) -> None:
        self._root = root
        self._incoming = Incoming(root / ".incoming")
        self._receiving: dict[str, anyio.CancelScope] = {}
        self.signer = signer

    def prepare(self) -> None:
        """Make the folders. Raises OSError when that cannot be done."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._incoming.prepare()

    def path_of(self, key: str) -> Path:
        """The file behind a key; a Problem for a key that leads anywhere else."""
        parts = key.split("/")
        if any(part in {"", ".", ".."} or "\0" in part for part in parts) or parts[0] != "jobs":
            raise Problem("object_not_found", "There is no such file.")
        return self._root.joinpath(*parts)

    def sign_put(self, base_url: str, key: str, rule: SizeRule, seconds: float) -> SignedRequest:
        """Allow one object to be uploaded."""
        return self.signer.sign(base_url, "PUT", key, rule, seconds)

    def sign_get(self, base_url: str, key: str, seconds: float) -> SignedRequest:
        """Allow one object to be downloaded."""
        return self.signer.sign(base_url, "GET", key, None, seconds)

    async def put_small(self, objects: Mapping[str, bytes]) -> None:
        """Keep small objects by their keys: one trip to a thread, and each folder is settled once."""
        places = {self.path_of(key): content for key, content in objects.items()}

        def put() -> None:
            for path, content in places.items():
                arriving = _Arriving(self._incoming.folder)
                try:
                    arriving.finish(content).move(path)
                finally:
                    if arriving.exists():
                        arriving.discard()
            for folder in {path.parent for path in places}:
                _settle_folder(folder)

        with _room_for(sum(map(len, objects.values()))):
            await asyncio.to_thread(put)

    async def stat(self, keys: Sequence[str]) -> list[ObjectInfo | None]:
        """Size and digest of the bytes that are on the disk now, for each key; None where there are none."""
        paths = [self.path_of(key) for key in keys]
        return await asyncio.to_thread(lambda: [_digest_file(path) for path in paths])

    async def delete_prefix(self, prefix: str) -> None:
        """Remove all objects below a prefix."""
        await asyncio.to_thread(shutil.rmtree, self.path_of(prefix), ignore_errors=True)

    async def remove_broken_uploads(self, older_than_seconds: float) -> int:
        """Remove uploads that dead processes left unfinished. Return the number of files.

        Args:
            older_than_seconds: age at which files of unknown processes are removed.
        """
        return await asyncio.to_thread(self._incoming.remove_abandoned, self.signer.now() - older_than_seconds)

    async def list_jobs(self, after: str, limit: int, older_than_seconds: float) -> list[str]:
        """Names of the folders below `jobs`, sorted, those after `after`."""

        def look() -> list[str]:
            folder, before = self._root / "jobs", self.signer.now() - older_than_seconds
            if not folder.is_dir():
                return []
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if entry.name > after)
            return [name for name in names if is_older(folder / name, before)][:limit]

        return await asyncio.to_thread(look)

    async def check(self) -> None:
        """Write and remove a file of a few bytes."""

        def write() -> None:
            with tempfile.TemporaryFile(dir=self._incoming.folder) as file:
                file.write(b"ok")

        await asyncio.to_thread(write)

    async def free_bytes(self) -> int | None:
        """Return the room that the disk has for this account."""
        return (await asyncio.to_thread(shutil.disk_usage, self._root)).free

    async def delete(self, key: str) -> None:
        """Remove one object; nothing happens if there is none."""
        await asyncio.to_thread(self.path_of(key).unlink, missing_ok=True)

    @asynccontextmanager
    async def receive(self, key: str, body: AsyncIterator[bytes], rule: SizeRule) -> AsyncIterator[StagedObject]:
        """Store an upload in a temporary file, which is removed unless it is published inside the context.

        A later upload to the same key ends an earlier one that is still arriving. So a client whose link broke can try
        again at once, and many uploads to one URL take the room of one in each process.

        Raises:
            Problem: `too_large` as soon as there are too many bytes, `validation` when there are too few,
                `storage_full` when the disk takes no more, `invalid_state` when a later upload took over.
        """
        arriving = _Arriving(self._incoming.folder)
        try:
            with _room_for(rule.size_bytes):
                with self._latest(key) as scope:
                    last = await _receive_body(arriving, body, rule)
                if scope.cancelled_caught:
                    raise Problem("invalid_state", "A later upload of the same file took over.")
                yield await asyncio.to_thread(arriving.finish, last)
        finally:
            if arriving.exists():
                await asyncio.to_thread(arriving.discard)

    @contextmanager
    def _latest(self, key: str) -> Iterator[anyio.CancelScope]:
        """Cancel the block that another upload to this key is in, and let the next one cancel this block."""
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
    """Store the body but for its last piece, which is returned: most are whole in it, and need one trip to a thread."""
    size = 0
    piece = bytearray()
    async for chunk in body:
        size += len(chunk)
        if size > rule.size_bytes:
            raise Problem("too_large", f"The body is larger than the {rule.size_bytes} bytes that were agreed.")
        piece += chunk
        if len(piece) >= PIECE_BYTES:
            # Unlike asyncio's, this waits for the thread when cancelled, so the file is not closed under it.
            await anyio.to_thread.run_sync(arriving.write, bytes(piece))
            piece.clear()
    if rule.exact and size != rule.size_bytes:
        raise Problem("validation", f"The body has {size} bytes, but {rule.size_bytes} were announced.")
    return bytes(piece)
