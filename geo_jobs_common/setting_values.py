"""Types of settings: bounded numbers, paths, hosts, modes of TLS, and checks of tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from geo_jobs_common.addresses import parse_address

# Larger values exceed the dates of Python and PostgreSQL. 10^9 seconds are 31 years.
Seconds = Annotated[float, Field(le=1_000_000_000)]
Days = Annotated[float, Field(le=36_500)]
Bytes = Annotated[int, Field(le=1 << 50)]
Count = Annotated[int, Field(le=1_000_000_000)]

LONGEST_NAME = 255  # bytes of a path component, on common file systems
LONGEST_PATH = 4095  # bytes
LONGEST_HOST, LONGEST_LABEL = 253, 63  # characters of a host name and of its parts (RFC 1035)

# libpq's `sslmode` values, and the words for two of them.
SSL_MODES = {mode: mode for mode in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")}
SSL_MODES |= dict.fromkeys(("true", "1", "yes", "on"), "require")
SSL_MODES |= dict.fromkeys(("false", "0", "no", "off"), "disable")

# Letters beyond ASCII are sent in their ASCII form.
_HOST_NAME = re.compile(r"[^\W_](?:[\w-]*\w)?(?:\.\w(?:[\w-]*\w)?)*\.?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def strip_text(value: object) -> object:
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


def is_host_name(text: str) -> bool:
    """Return whether the text is a valid host name, within the lengths of RFC 1035."""
    is_short = len(text) <= LONGEST_HOST and all(len(label) <= LONGEST_LABEL for label in text.split("."))
    return is_short and _HOST_NAME.fullmatch(text) is not None


def check_host_entry(text: str) -> str:
    """Return an entry of a list of hosts.

    Raises:
        ValueError: it is not a host name, an address, `*.name` or `*`.
    """
    name = text.removeprefix("*.")
    if text != "*" and parse_address(name) is None and not is_host_name(name):
        raise ValueError(
            f"{text!r} is not a host name. Give names without scheme, port and path, separated by commas, "
            "for example maps.example.org,*.example.org"
        )
    return text


def _database_hosts(text: str) -> str:
    for host in text.split(","):
        if host and not host.startswith(("/", "@")) and parse_address(host) is None and not is_host_name(host):
            raise ValueError(
                f"{host!r} is not a host name, an address or the folder of a socket. Give it without scheme and port"
            )
    return text


def _ssl_mode(text: str) -> str:
    if text.lower() not in SSL_MODES:
        raise ValueError("must be true, false, disable, allow, prefer, require, verify-ca or verify-full")
    return SSL_MODES[text.lower()]


def _possible(path: Path) -> Path:
    text = str(path)
    if len(text.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise ValueError(f"must be a path whose names have at most {LONGEST_NAME} bytes")
    return path


PossiblePath = Annotated[Path, AfterValidator(_possible)]
DatabaseHosts = Annotated[str, AfterValidator(_database_hosts)]
SslMode = Annotated[str, AfterValidator(_ssl_mode)]
