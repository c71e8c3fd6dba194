"""Types of settings: bounded numbers, paths, and checks of tokens and host names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

# Larger values exceed the dates of Python and PostgreSQL. 10^9 seconds are 31 years.
Seconds = Annotated[float, Field(le=1_000_000_000)]
Days = Annotated[float, Field(le=36_500)]
Bytes = Annotated[int, Field(le=1 << 50)]
Count = Annotated[int, Field(le=1_000_000_000)]

LONGEST_NAME = 255  # bytes of a path component, on common file systems
LONGEST_PATH = 4095  # bytes
LONGEST_HOST, LONGEST_LABEL = 253, 63  # characters of a host name and of its parts (RFC 1035)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def tidied(value: object) -> object:
    """Strip a text. Return other values unchanged.

    Raises:
        ValueError: the text is blank, or has a control character.
    """
    if not isinstance(value, str) or not value:
        return value
    text = value.strip()
    if not text:
        raise ValueError("must not be blank: give a value, or leave it out")
    if _CONTROL.search(text):
        raise ValueError("must not contain line breaks or other control characters")
    return text


def check_token(token: str) -> None:
    """Check that a token fits into a header.

    Raises:
        ValueError: the token has white space or characters beyond ASCII.
    """
    if not token.isascii() or re.search(r"\s", token):
        raise ValueError("must be of ASCII characters without white space, as tokens are")


def is_short_enough(host: str) -> bool:
    """Return whether a host name has at most the lengths of RFC 1035."""
    return len(host) <= LONGEST_HOST and all(len(label) <= LONGEST_LABEL for label in host.split("."))


def _possible(path: Path) -> Path:
    text = str(path)
    if len(text.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise ValueError(f"must be a path whose names have at most {LONGEST_NAME} bytes")
    return path


PossiblePath = Annotated[Path, AfterValidator(_possible)]
