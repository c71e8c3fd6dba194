"""The name that a misspelt one was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Longer texts are no misspelt names, and comparing them takes long.
_LONGEST = 64


def nearest(given: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like the given one; None if none is. Case, `_` and `-` do not count."""
    if len(given) > _LONGEST:
        return None
    plain = {_plain(name): name for name in known}
    found = difflib.get_close_matches(_plain(given), plain, n=1, cutoff=0.65)
    return plain[found[0]] if found else None


def unknown(kind: str, given: str, known: Iterable[str], *, list_all: bool = True) -> str:
    """Return the sentence about an unknown name, with the nearest known one, else all of them."""
    names = list(known)
    shown = given if len(given) <= _LONGEST else f"{given[:_LONGEST]}…"
    near = nearest(given, names)
    if near is not None:
        return f"Unknown {kind} {shown!r}. Did you mean {near!r}?"
    return f"Unknown {kind} {shown!r}." + (f" Known: {', '.join(names)}." if names and list_all else "")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")
