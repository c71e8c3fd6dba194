"""TIFFs written byte by byte, so that they can be wrong in any way."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BYTE, ASCII, SHORT, LONG, UNDEFINED, DOUBLE, LONG8 = 1, 2, 3, 4, 7, 12, 16
LETTERS = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", UNDEFINED: "B", DOUBLE: "d", LONG8: "Q"}

Value = tuple[int, Sequence[int | float]]
"""A TIFF type and the numbers, or the bytes, of it."""


@dataclass
class RawTiff:
    """Any number of directories of tags, then `data`.

    `counts` replace the true counts, `places` the true offsets of values, both by tag. `chain` is the offset after the
    last directory. None ends the chain, -1 returns to the first directory.
    """

    directories: Sequence[Mapping[int, Value]]
    data: bytes = b""
    order: str = "<"
    big: bool = False
    counts: Mapping[int, int] = field(default_factory=dict)
    places: Mapping[int, int] = field(default_factory=dict)
    chain: int | None = None

    def bytes(self) -> bytes:
        """Return the file."""
        head = {("<", False): b"II*\0", (">", False): b"MM\0*", ("<", True): b"II+\0", (">", True): b"MM\0+"}
        word, room = ("Q", 8) if self.big else ("I", 4)
        start = 16 if self.big else 8
        out = bytearray(head[self.order, self.big])
        out += struct.pack(self.order + "HH", 8, 0) if self.big else b""
        out += struct.pack(self.order + word, start)
        for number, tags in enumerate(self.directories):
            table = len(out) + (8 if self.big else 2)
            after = table + len(tags) * (12 + 2 * (room - 4) if self.big else 12) + room
            values = bytearray()
            out += struct.pack(self.order + ("Q" if self.big else "H"), len(tags))
            for tag in sorted(tags):
                kind, numbers = tags[tag]
                raw = struct.pack(f"{self.order}{len(numbers)}{LETTERS[kind]}", *numbers)
                out += struct.pack(self.order + "HH" + word, tag, kind, self.counts.get(tag, len(numbers)))
                if len(raw) <= room and tag not in self.places:
                    out += raw.ljust(room, b"\0")
                else:
                    out += struct.pack(self.order + word, self.places.get(tag, after + len(values)))
                    values += raw
            last = number == len(self.directories) - 1
            following = (start if self.chain == -1 else self.chain or 0) if last else after + len(values)
            out += struct.pack(self.order + word, following) + values
        return bytes(out + self.data)

    def write(self, path: Path) -> Path:
        """Write the file to `path`."""
        path.write_bytes(self.bytes())
        return path


def gray(width: int = 16, height: int = 16, **tags: Value) -> dict[int, Value]:
    """Return the tags of an 8-bit picture in one strip at the offset in tag 273. `t256=...` changes one."""
    made: dict[int, Value] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8]),
        259: (SHORT, [1]),
        262: (SHORT, [1]),
        273: (LONG, [8]),
        277: (SHORT, [1]),
        278: (LONG, [height]),
        279: (LONG, [min(width * height, 2**31)]),
    }
    return made | {int(name[1:]): value for name, value in tags.items()}


def text(words: str) -> Value:
    """Return an ASCII value with its NUL."""
    return ASCII, [*words.encode(), 0]
