"""Write the payload schemas of the built-in task types for the API: `make schemas`.

`geo_jobs_api/task_types/builtin_types.json` has the schema of each payload and the types of files, and
`geo_jobs_api/task_types/crs_codes.json` the codes of coordinate systems that PROJ's database has. A test compares both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyproj
from pyproj.database import get_codes
from pyproj.enums import PJType

from geoprocessing_worker.tasks import builtin

FOLDER = Path(__file__).resolve().parent.parent / "geo_jobs_api" / "task_types"
AUTHORITIES = ("EPSG", "ESRI", "IGNF", "OGC")
# `crs.parse_crs` accepts no others.
_KINDS = (
    PJType.GEOGRAPHIC_2D_CRS,
    PJType.GEOGRAPHIC_3D_CRS,
    PJType.PROJECTED_CRS,
    PJType.COMPOUND_CRS,
)
_LONGEST = 12


def builtin_types() -> dict[str, Any]:
    """Return the additions to the API's row of each built-in task type."""
    handlers = (builtin.GEOTIFF_INFO, builtin.GEOTIFF_TO_COG, builtin.GEOTIFF_TO_PNG, builtin.GEOTIFF_TO_TILES)
    wanted = {"payload_schema", "input_types"}
    return {
        handler.task_type.name: handler.announced.model_dump(mode="json", by_alias=True, include=wanted)
        for handler in handlers
    }


def crs_codes() -> dict[str, Any]:
    """Return the codes of each authority: numbers, ranges as pairs of first and last number, and names."""
    return {"proj": pyproj.proj_version_str, "codes": {authority: _codes(authority) for authority in AUTHORITIES}}


def _codes(authority: str) -> list[int | str | list[int]]:
    found = {code for kind in _KINDS for code in get_codes(authority, kind, allow_deprecated=True)}
    usable = {code for code in found if code.isalnum() and len(code) <= _LONGEST}
    rows: list[list[int]] = []
    for number in sorted(int(code) for code in usable if code.isdecimal()):
        if rows and number == rows[-1][1] + 1:
            rows[-1][1] = number
        else:
            rows.append([number, number])
    numbers: list[int | str | list[int]] = [first if first == last else [first, last] for first, last in rows]
    return numbers + sorted(code for code in usable if not code.isdecimal())


def files() -> dict[Path, str]:
    """Return the content of each file.

    The codes are those of the newest PROJ that any supported Python installs, so the API refuses no code
    of any worker. An older PROJ leaves a newer list unchanged.
    """
    codes = FOLDER / "crs_codes.json"
    listed = codes.read_text(encoding="utf-8")
    is_newer = _version(json.loads(listed)["proj"]) > _version(pyproj.proj_version_str)
    return {
        FOLDER / "builtin_types.json": json.dumps(builtin_types(), indent=1) + "\n",
        codes: listed if is_newer else json.dumps(crs_codes(), separators=(",", ":")) + "\n",
    }


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(path)
