"""Output files: written atomically, with size and digest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from geoprocessing_worker.own_folder import open_regular

PIECE = 1 << 20  # bytes per read


class OutputFile(BaseModel):
    """A complete output file. `sha256` is hexadecimal."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: Path
    content_type: str
    size_bytes: int
    sha256: str


def write_whole(folder: Path, name: str, content: bytes, content_type: str) -> OutputFile:
    """Write a file under a temporary name, then rename it."""
    path = folder / name
    unfinished = unfinished_path(folder, name)
    unfinished.write_bytes(content)
    os.replace(unfinished, path)  # noqa: PTH105 - Path.replace has no atomicity promise in its documentation
    return OutputFile(
        name=name,
        path=path,
        content_type=content_type,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def unfinished_path(folder: Path, name: str) -> Path:
    """Return the temporary path of a file too large for memory, until `finished` renames it."""
    return folder / f".{hashlib.sha256(name.encode()).hexdigest()[:16]}.part"


def finished(folder: Path, name: str, content_type: str) -> OutputFile:
    """Rename the file at `unfinished_path` to its own name, and return it."""
    path = folder / name
    digest = hashlib.sha256()
    with unfinished_path(folder, name).open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
        size = file.tell()
    os.replace(unfinished_path(folder, name), path)  # noqa: PTH105 - as above
    return OutputFile(name=name, path=path, content_type=content_type, size_bytes=size, sha256=digest.hexdigest())


def read_small(output: OutputFile) -> bytes:
    """Read a small file, cached by the kernel, in the event loop: a thread would take longer.

    Raises:
        OSError: it is missing, or not a regular file.
    """
    with os.fdopen(open_regular(str(output.path), os.O_RDONLY), "rb") as file:
        return file.read(output.size_bytes)
