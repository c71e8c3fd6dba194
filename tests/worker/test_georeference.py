"""Impossible georeferences: the picture is rendered unplaced, and the metadata have the reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.inspection import inspect_file
from tests.support.rasters import picture_of, run
from tests.support.raw_tiff import (
    DOUBLE,
    GEO_KEYS,
    PIXEL_SCALE,
    SHORT,
    TIE_POINT,
    TRANSFORMATION,
    WGS84_KEYS,
    Tag,
    write_raw_tiff,
)

INF, NAN = math.inf, math.nan
GRAY = np.arange(2500, dtype=np.uint16).reshape(50, 50, 1)
KEYS: Tag = (SHORT, WGS84_KEYS)


def scaled(x: float, y: float, *tie: float) -> dict[int, Tag]:
    place = tie or (44.0, 16.0)
    return {PIXEL_SCALE: (DOUBLE, [x, y, 0]), TIE_POINT: (DOUBLE, [0, 0, 0, *place, 0]), GEO_KEYS: KEYS}


def points(*places: tuple[float, float, float, float]) -> dict[int, Tag]:
    return {TIE_POINT: (DOUBLE, [v for c, r, x, y in places for v in (c, r, 0, x, y, 0)]), GEO_KEYS: KEYS}


IMPOSSIBLE = {
    "zero pixels": scaled(0, 0),
    "zero width": scaled(0, 0.01),
    "infinite pixels": scaled(INF, INF),
    "pixels that are no numbers": scaled(NAN, NAN),
    "pixels beyond the sky": scaled(1e300, 1e300),
    "pixels of nothing": scaled(1e-300, 1e-300),
    "pixels smaller than doubles": scaled(1e-30, 1e-30),
    "infinitely far": scaled(0.01, 0.01, INF, INF),
    "nowhere": scaled(0.01, 0.01, NAN, 16),
    "metres that are called degrees": scaled(30, 30, 400_000, 1_700_000),
    "past the pole": scaled(0.01, 0.01, 44, 95),
    "flat matrix": {GEO_KEYS: KEYS, TRANSFORMATION: (DOUBLE, [1, 1, 0, 44, 1, 1, 0, 16, *[0] * 7, 1])},
    "infinite matrix": {GEO_KEYS: KEYS, TRANSFORMATION: (DOUBLE, [INF, 1, 0, 44, 1, 1, 0, 16, *[0] * 7, 1])},
    "one control point four times": points(*[(0.0, 0.0, 44.0, 16.0)] * 4),
    "control points on a line": points(*[(i * 10.0, i * 10.0, 44.0 + i, 16.0 - i) for i in range(4)]),
    "control points nowhere": points((0, 0, INF, 16), (50, 0, 45, NAN), (0, 50, NAN, 15), (50, 50, 45, 15)),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_impossible_place_still_gives_the_picture(kind: str, tmp_path: Path) -> None:
    """No error and no invented georeference: all pixels, crs null, and a sentence with the reason."""
    result = run(write_raw_tiff(tmp_path / "a.tif", GRAY, tags=IMPOSSIBLE[kind]), tmp_path / "out")
    metadata: Any = result.metadata
    assert (metadata["crs"], metadata["bboxLonLat"], metadata["validFraction"]) == (None, None, 1.0)
    assert picture_of(result).shape == (50, 50, 4)
    assert any("place" in note for note in metadata["choices"]["notes"])


def test_metres_called_degrees_are_named_with_their_numbers_and_source_crs_helps(tmp_path: Path) -> None:
    """The commonest mistake of all: the note gives the corner, and sourceCrs puts it right."""
    path = write_raw_tiff(tmp_path / "a.tif", GRAY, tags=IMPOSSIBLE["metres that are called degrees"])
    choices: Any = run(path, tmp_path / "one").metadata["choices"]
    assert any("400000, 1700000" in note for note in choices["notes"])
    bounds: Any = run(path, tmp_path / "two", source_crs="EPSG:32638").metadata["bboxLonLat"]
    assert bounds == pytest.approx([44.068, 15.362, 44.082, 15.376], abs=0.002)


CORNERS = points((0, 0, 400_000, 1_700_000), (50, 0, 401_500, 1_700_000), (0, 50, 400_000, 1_698_500))
TRANSFORM = {tag: value for tag, value in scaled(30, 30, 400_000, 1_700_000).items() if tag != GEO_KEYS}
USED, NOT_NEEDED, NO_HELP = "placed by sourceCrs", "the file has a coordinate system that", "it cannot place this file"


@pytest.mark.parametrize(
    ("tags", "source_crs", "told"),
    [
        (TRANSFORM, "EPSG:32638", USED),
        (scaled(30, 30, 400_000, 1_700_000), "EPSG:32638", USED),
        ({tag: value for tag, value in CORNERS.items() if tag != GEO_KEYS}, "EPSG:32638", USED),
        (CORNERS, "EPSG:32638", USED),
        (scaled(0.01, 0.01), "EPSG:32638", NOT_NEEDED),
        (scaled(0.01, 0.01), "EPSG:4326", NOT_NEEDED),
        (points((0, 0, 44, 16), (50, 0, 45, 16), (0, 50, 44, 15)), "EPSG:32638", NOT_NEEDED),
        ({}, "EPSG:32638", NO_HELP),
        (TRANSFORM, "EPSG:4326", NO_HELP),
    ],
)
def test_note_names_the_use_of_source_crs(tags: Any, source_crs: str, told: str, tmp_path: Path) -> None:
    """It helps a file with no CRS or an impossible one. Others have their own, or no georeference at all."""
    path = write_raw_tiff(tmp_path / "a.tif", GRAY, tags=tags)
    metadata: Any = run(path, tmp_path / "out", source_crs=source_crs).metadata
    notes = " ".join(metadata["choices"]["notes"])
    assert [words for words in (USED, NOT_NEEDED, NO_HELP) if words in notes] == [told]
    assert (metadata["crs"] is None) == (told == NO_HELP)


def test_no_system_at_all_is_not_one_that_was_given(tmp_path: Path) -> None:
    """If neither the file nor the job has one, the header has none and does not attribute it to the job."""
    path = write_raw_tiff(tmp_path / "a.tif", GRAY, tags=TRANSFORM)
    with gdal_environment():
        header = inspect_file(path)
    assert (header.crs, header.crs_given) == (None, False)


def test_one_broken_control_point_of_five_is_passed_over(tmp_path: Path) -> None:
    """The four that are whole place the picture."""
    corners = [(0, 0, 44, 16), (50, 0, 44.5, 16), (50, 50, 44.5, 15.5), (0, 50, 44, 15.5)]
    path = write_raw_tiff(tmp_path / "a.tif", GRAY, tags=points(*corners, (25, 25, NAN, 15)))
    assert run(path, tmp_path / "out").metadata["bboxLonLat"] == pytest.approx([44, 15.5, 44.5, 16], abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "native"])
def test_narrow_rasters_are_placed(shape: tuple[int, int], crs: str, tmp_path: Path) -> None:
    """One pixel, one row, one column: the whole of it, in its place."""
    data = np.arange(shape[0] * shape[1], dtype=np.uint16).reshape(*shape, 1)
    path = write_raw_tiff(tmp_path / "a.tif", data, tags=scaled(0.001, 0.001))
    bounds: Any = run(path, tmp_path / "out", max_size=512, coordinate_system=crs).metadata["bboxLonLat"]
    expected = [44, 16 - 0.001 * shape[0], 44 + 0.001 * shape[1], 16]
    assert bounds == pytest.approx(expected, abs=0.02 if max(shape) > 512 else 0.001)
