"""A list of coordinate system codes, since untrusted text must not reach PROJ's parser in this process."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources

_CODE = re.compile(r"(?:urn:ogc:def:crs:)?([A-Za-z]{2,10}):(?:[\d.]*:)?([A-Za-z0-9]{1,12})")
# Workers reject PROJ strings that make PROJ open a file, or that chain operations. The grid `@null` is built in.
_NO_GRID = re.compile(r"\bnadgrids\s*=\s*@?null(?!\S)", re.IGNORECASE)
_NAMES_FILE = re.compile(r"grids\s*=|\binit\s*=|\bproj\s*=\s*pipeline\b", re.IGNORECASE)
# Thousands of systems of other planets.
_NOT_LISTED = frozenset({"IAU"})


def is_possible_crs(text: str) -> bool:
    """Return whether the text is a listed code, or neither a code nor a PROJ string with files."""
    if text.lstrip().startswith("+proj="):
        return _NAMES_FILE.search(_NO_GRID.sub("", text)) is None
    code = _CODE.fullmatch(text.strip())
    if code is None:
        return True
    authority, name = code[1].upper(), code[2]
    if authority in _NOT_LISTED:
        return True
    if name.isdecimal():
        return any(first <= int(name) <= last for first, last in _numbers().get(authority, ()))
    return name in _names().get(authority, frozenset())


@cache
def _listed() -> dict[str, list[int | str | list[int]]]:
    listed: dict[str, list[int | str | list[int]]] = json.loads(
        resources.files("geo_jobs_api.task_types").joinpath("crs_codes.json").read_text(encoding="utf-8")
    )["codes"]
    return listed


@cache
def _numbers() -> dict[str, list[tuple[int, int]]]:
    return {
        authority: [
            (one, one) if isinstance(one, int) else (int(one[0]), int(one[1]))
            for one in codes
            if not isinstance(one, str)
        ]
        for authority, codes in _listed().items()
    }


@cache
def _names() -> dict[str, frozenset[str]]:
    return {
        authority: frozenset(one for one in codes if isinstance(one, str)) for authority, codes in _listed().items()
    }
