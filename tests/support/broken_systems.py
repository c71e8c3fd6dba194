"""Coordinate systems that pyproj parses and then raises on."""

from __future__ import annotations

import json
from typing import Any

from pyproj import CRS


def _with(code: int, *path: str | int, value: object) -> str:
    """Return the PROJJSON of a code with one value changed, at a path of keys."""
    content: Any = CRS.from_epsg(code).to_json_dict()
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return json.dumps(content)


def _bound_to_nothing() -> str:
    bound = CRS.from_user_input("+proj=longlat +ellps=bessel +towgs84=1,2,3,4,5,6,7 +type=crs").to_json_dict()
    for axis in bound["target_crs"]["coordinate_system"]["axis"]:
        axis.pop("unit")
        break
    return json.dumps(bound)


BROKEN_SYSTEMS = {
    "without a vertical part": CRS.from_epsg(7415).to_wkt("WKT1_GDAL").replace('"EPSG","5709"', '"EPSG","5[09"'),
    "bound to a system without units": _bound_to_nothing(),
    "whose code is empty": _with(27700, "base_crs", "id", "code", value=""),
    "whose degree is next to nothing": CRS.from_epsg(4326).to_wkt("WKT1_GDAL").replace("0.0174532925199433", "1e-320"),
    "whose meter is wider than the Earth": CRS.from_epsg(32633)
    .to_wkt("WKT1_GDAL")
    .replace('"metre",1', '"metre",1e30'),
    "whose degree is 0": CRS.from_epsg(4326).to_wkt("WKT1_GDAL").replace("0.0174532925199433", "0"),
}
