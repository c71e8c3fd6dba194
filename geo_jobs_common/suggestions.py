"""Suggestions for misspelled names and values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence

# Longer texts are not misspelled names, and comparing them is slow.
_LONGEST = 64
_LONGEST_SHOWN = 80
_MAX_LISTED = 40


def nearest(given: str, known: Iterable[str]) -> str | None:
    """Return the most similar known name, or None. Case, `_` and `-` are ignored."""
    if len(given) > _LONGEST:
        return None
    plain = {_plain(name): name for name in known}
    found = difflib.get_close_matches(_plain(given), plain, n=1, cutoff=0.65)
    return plain[found[0]] if found else None


def describe_unknown(kind: str, given: str, known: Iterable[str], *, list_all: bool = True) -> str:
    """Return an error message for an unknown name, with the nearest known one, else all of them."""
    names = list(known)
    shown = given if len(given) <= _LONGEST else f"{given[:_LONGEST]}…"
    near = nearest(given, names)
    if near is not None:
        return f"Unknown {kind} {shown!r}. Did you mean {near!r}?"
    return f"Unknown {kind} {shown!r}." + (f" Known: {', '.join(names)}." if names and list_all else "")


def describe_not_allowed(value: object, allowed: Sequence[object]) -> tuple[str, str | None]:
    """Return an error message for a value outside the allowed ones, and the nearest of them."""
    names = [str(option) for option in allowed]
    near = nearest(value, names) if isinstance(value, str) else None
    hint = "" if near is None else f"Did you mean {near!r}? "
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"{shorten_json(value)} is not allowed. {hint}Allowed: {', '.join(names[:_MAX_LISTED])}{more}.", near


def shorten_json(value: object) -> str:
    """Return a value as JSON, shortened if long."""
    return shorten(json.dumps(value, ensure_ascii=False, default=str))


def shorten(text: str) -> str:
    """Return a text, shortened if long."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")
