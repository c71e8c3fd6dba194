"""Decodes texts of any encoding for JSON and consoles."""

from __future__ import annotations

import re
from typing import NamedTuple

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# All control characters but tab, line feed and carriage return.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_HIGH = re.compile(rb"[\x80-\xff]+")
LONGEST_RUN = 2  # accented letters in a row. A longer run is another script or a two-byte encoding

ARABIC = "Windows-1256"
LATIN = "Windows-1252"
UTF_8 = "UTF-8 with errors"
UNKNOWN = "an unknown encoding"
UTF_16, UTF_32 = "UTF-16", "UTF-32"

# Starts of UTF-16 and UTF-32 texts: a byte order mark, or markup. UTF-32 comes first, since it begins like UTF-16.
_WIDE = (
    (b"\xff\xfe\0\0", "utf-32-le", UTF_32), (b"\0\0\xfe\xff", "utf-32-be", UTF_32),
    (b"<\0\0\0", "utf-32-le", UTF_32), (b"\0\0\0<", "utf-32-be", UTF_32),
    (b"\xff\xfe", "utf-16-le", UTF_16), (b"\xfe\xff", "utf-16-be", UTF_16),
    (b"<\0", "utf-16-le", UTF_16), (b"\0<", "utf-16-be", UTF_16),
)  # fmt: skip

_ARABIC_WORD = re.compile(r"[\u0621-\u063a\u0640-\u064a\u067e\u0686\u0698\u06a9\u06af]{2,}")
_ARABIC_TEXT = re.compile(r"[\x00-\x7f\u0600-\u06ff\u200c-\u200f\xa0\xab\xb0\xb7\xbb\u2013\u2014\u2018-\u201d]*")


class Decoded(NamedTuple):
    """A text, and the name of its encoding unless that is UTF-8."""

    text: str
    encoding: str | None


def decode(raw: bytes) -> Decoded:
    """Decode a text of unknown encoding.

    UTF-8 is preferred. Otherwise Arabic words are Windows-1256, and single accented letters among ASCII are
    Windows-1252, which includes Latin-1. In all other texts each non-ASCII byte becomes U+FFFD. A guess between
    Cyrillic, Greek and Japanese, for example, is too often wrong in texts of a few letters.
    """
    try:
        return Decoded(raw.decode(), None)
    except UnicodeDecodeError:
        patched = raw.decode(errors="replace")
    damaged = patched.count(REPLACEMENT)
    if sum(not letter.isascii() for letter in patched) > 2 * damaged:
        return Decoded(patched, UTF_8)  # cut within a letter, as fields of a fixed length often are
    arabic = raw.decode("cp1256")
    if _ARABIC_TEXT.fullmatch(arabic) and _ARABIC_WORD.search(arabic):
        return Decoded(arabic, ARABIC)
    latin = raw.decode("cp1252", errors="replace")
    if REPLACEMENT not in latin and max(map(len, _HIGH.findall(raw))) <= LONGEST_RUN:
        return Decoded(latin, LATIN)
    return Decoded(raw.decode("ascii", errors="replace"), UNKNOWN)


def decode_wide(raw: bytes) -> Decoded | None:
    """Decode a UTF-16 or UTF-32 text up to its NUL. Return `None` for any other.

    GDAL stops at the NUL in its second or third byte, after the byte order mark and one letter.
    """
    for begin, codec, name in _WIDE:
        if raw.startswith(begin):
            width = 4 if name == UTF_32 else 2
            text = raw[: len(raw) // width * width].decode(codec, errors="replace")
            return Decoded(text.removeprefix("\ufeff").partition("\0")[0], name)
    return None


def clean(text: str) -> str:
    """Replace control characters with U+FFFD, except white space."""
    return _CONTROL.sub(REPLACEMENT, text)
