"""Impossible values of settings, by kind."""

from __future__ import annotations

BLANK = (" ", "\t", "\n")
WRONG_NUMBERS = (*BLANK, "abc", "-1", "nan", "inf", "1e400", "9" * 30, "true", "1,000", "5 s", "0x10")
WRONG_TEXTS = (*BLANK, "a\nb", "a\x1b[31mb", "a\x7fb")
WRONG_HOSTS = (*WRONG_TEXTS, "http://", "https://a.example", "a b", "x" * 64, "a." * 130 + "b", "-", "a;b")


def wrong_values(name: str, kind: str) -> tuple[str, ...]:
    """Return values that no setting with this name and annotation accepts."""
    if "host" in name:
        return WRONG_HOSTS
    if "token" in name:
        return (*WRONG_TEXTS, "a token with spaces", "a-t\u00f6ken-of-the-worker")
    for word, values in (
        ("bool", (*BLANK, "bananas", "2", "-1", "tru")),
        ("int", WRONG_NUMBERS),
        ("float", WRONG_NUMBERS),
        ("Path", (*WRONG_TEXTS, "x" * 256, "y/" * 3000)),
    ):
        if word in kind:
            return values
    return WRONG_TEXTS
