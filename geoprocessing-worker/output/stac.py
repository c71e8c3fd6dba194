"""The metadata JSON of all task types: a STAC Item."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue
from pydantic_core import to_json

from geoprocessing_worker.geo.crs import epsg
from geoprocessing_worker.geo.outline import lonlat_bounds, lonlat_ring
from geoprocessing_worker.handlers import OutputFile, write_whole
from geoprocessing_worker.raster import Grid, SourceHeader

Json = dict[str, JsonValue]

ROUNDING = 1e-6  # degrees: a tenth of a metre
STAC_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
)


def write_item(path: Path, header: SourceHeader, grid: Grid, block: Json, assets: Mapping[str, Json]) -> OutputFile:
    """Write a STAC 1.1 Item around the block, with the stem of `path` as its id.

    An Item must have a time. A file has at most the time it was written (TIFFTAG_DATETIME). Without that, the
    interval from 1970 to 9999 means "unknown", since STAC allows a null only beside an interval.

    Args:
        path: of the JSON file.
        header: of the source.
        grid: the raster's place.
        block: the `geoprocessing` block, with `transform`.
        assets: the files that it describes, by STAC's keys.
    """
    geometry, bbox = footprint(grid)
    document: Json = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(STAC_EXTENSIONS),
        "id": path.stem,
        "geometry": geometry,
        **({"bbox": [*bbox]} if bbox is not None else {}),
        "properties": {
            **written_at(dict(header.tags).get("TIFFTAG_DATETIME")),
            "proj:code": f"EPSG:{epsg(grid.crs)}" if grid.crs is not None and epsg(grid.crs) else None,
            "proj:projjson": grid.crs.to_json_dict() if grid.crs is not None and not epsg(grid.crs) else None,
            "proj:shape": [grid.height, grid.width],
            "proj:transform": block["transform"],
        },
        "assets": dict(assets),
        "links": [],
        "geoprocessing": block,
    }
    # The standard library indents in Python, in 4 ms instead of 0.1 ms. Numbers that JSON cannot hold become null.
    content = to_json(document, indent=2, inf_nan_mode="null") + b"\n"
    return write_whole(path.parent, path.name, content, "application/json")


def written_at(written: str | None) -> Json:
    """Return STAC's time properties from TIFFTAG_DATETIME."""
    with suppress(ValueError):
        # TIFF has no time zone. Other programs read the field as UTC.
        moment = datetime.strptime((written or "").strip("\0 "), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
        return {"datetime": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}
    return {"datetime": None, "start_datetime": "1970-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}


def footprint(grid: Grid) -> tuple[Json | None, list[float] | None]:
    """Return (GeoJSON, bbox), cut at the antimeridian by RFC 7946. Its bbox then has west greater than east."""
    ring, bounds = lonlat_ring(grid), lonlat_bounds(grid)
    if ring is None or bounds is None:
        return None, None
    west, south, east, north = bounds
    if east - west >= 360.0 - ROUNDING:
        return _boxes((-180.0, 180.0), south=south, north=north), [-180.0, south, 180.0, north]
    if west >= -180.0 - ROUNDING and east <= 180.0 + ROUNDING:
        points: list[JsonValue] = [[min(max(lon, -180.0), 180.0), lat] for lon, lat in (*ring, ring[0])]
        return {"type": "Polygon", "coordinates": [points]}, [max(west, -180.0), south, min(east, 180.0), north]
    shift = 360.0 * math.floor((west + 180.0) / 360.0)
    west, east = west - shift, east - shift
    if east <= 180.0:
        return _boxes((west, east), south=south, north=north), [west, south, east, north]
    return (
        _boxes((west, 180.0), (-180.0, east - 360.0), south=south, north=north),
        [west, south, east - 360.0, north],
    )


def _boxes(*spans: tuple[float, float], south: float, north: float) -> Json:
    boxes: list[JsonValue] = [[[[w, north], [w, south], [e, south], [e, north], [w, north]]] for w, e in spans]
    if len(boxes) == 1:
        return {"type": "Polygon", "coordinates": boxes[0]}
    return {"type": "MultiPolygon", "coordinates": boxes}


def native_bounds(grid: Grid) -> list[JsonValue] | None:
    """Return (left, bottom, right, top) around all four corners, which is right for rotated pictures too."""
    if grid.transform is None:
        return None
    corners = [
        grid.transform @ corner for corner in ((0, 0), (grid.width, 0), (0, grid.height), (grid.width, grid.height))
    ]
    xs, ys = zip(*corners, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]
