"""Ground control points: which of them a curve has to meet, and which it may average."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.control import GroundControlPoint

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.control_points import Control, Misfit, fit_control
from geoprocessing_worker.handlers import TaskHandler
from geoprocessing_worker.tasks.builtin import GEOTIFF_TO_COG, GEOTIFF_TO_TILES
from tests.support.rasters import Tiff, picture_of, quarters, run
from tests.support.task_runs import perform_on
from tests.worker.test_declared_crs import HANDLERS

Place = Callable[[float, float], tuple[float, float]]
CORNERS = [(0.0, 0.0), (0.0, 1000.0), (1000.0, 0.0), (1000.0, 1000.0)]
SPLINE, POLYNOMIAL = True, False


def straight(row: float, column: float) -> tuple[float, float]:
    return 500_000 + 10 * column + row, 5_000_000 - 10 * row + 2 * column


def keystone(row: float, column: float) -> tuple[float, float]:
    return 500_000 + 10 * column + 0.002 * row * column, 5_000_000 - 10 * row


def wavy(row: float, column: float) -> tuple[float, float]:
    return 500_000 + 10 * column + 30 * np.sin(row / 150), 5_000_000 - 10 * row + 30 * np.sin(column / 200)


def measured(row: float, column: float) -> tuple[float, float]:
    """Two pixels off in any direction, the same way each time."""
    errors = np.random.default_rng(int(row * 1009 + column)).normal(0, 20, 2)
    x, y = straight(row, column)
    return x + errors[0], y + errors[1]


def lattice(rows: Iterable[float], columns: Iterable[float]) -> list[tuple[float, float]]:
    columns = list(columns)
    return [(row, column) for row in rows for column in columns]


def points(place: Place, pixels: Iterable[tuple[float, float]]) -> tuple[GroundControlPoint, ...]:
    return tuple(
        GroundControlPoint(row=row, col=column, x=place(row, column)[0], y=place(row, column)[1])
        for row, column in pixels
    )


@pytest.mark.parametrize(
    ("place", "pixels", "spline"),
    [
        (straight, CORNERS[:3], POLYNOMIAL),
        (straight, CORNERS, POLYNOMIAL),
        (keystone, CORNERS, SPLINE),
        (keystone, CORNERS * 2, SPLINE),
        (keystone, [*CORNERS, (500.0, 500.0)], SPLINE),
        (straight, lattice((0, 1000), (0, 500, 1000)), SPLINE),
        (wavy, lattice(range(0, 1001, 111), (0, 1000)), SPLINE),
        (wavy, lattice(range(0, 1001, 111), range(0, 1001, 50)), SPLINE),
        (measured, lattice(range(0, 1001, 200), range(0, 1001, 200)), POLYNOMIAL),
        (measured, [(row * 397.0 % 1000, row * 631.0 % 1000) for row in range(12)], POLYNOMIAL),
        (measured, lattice(range(0, 1001, 32), range(0, 1001, 32)), POLYNOMIAL),
    ],
    ids=[
        "three", "a parallelogram", "a trapezoid", "a trapezoid twice", "five of a trapezoid", "two columns of three",
        "both edges of a strip", "a sensor model", "36 measured", "12 measured", "a thousand measured",
    ],
)  # fmt: skip
def test_points_are_met_or_averaged(place: Place, pixels: list[tuple[float, float]], spline: bool) -> None:
    """Corners and the lattice of a sensor model are met. Errors of measurement are averaged, as they were."""
    control = fit_control(points(place, pixels))
    assert isinstance(control, Control)
    assert control.spline is spline
    if place is not measured:
        assert control.residual == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    "pixels", [CORNERS[:2], [(0.0, 0.0)] * 5, [(row, row) for row in range(6)]], ids=["two", "one place", "a line"]
)
def test_points_without_an_area_have_no_curve(pixels: list[tuple[float, float]]) -> None:
    """A spline would bend round a line all the same."""
    assert fit_control(points(straight, pixels)) is None


def test_a_pixel_with_two_places_has_no_spline() -> None:
    """The curve averages a contradiction, and its residual shows it."""
    control = fit_control((*points(straight, CORNERS), GroundControlPoint(row=0, col=0, x=499_000, y=5_000_000)))
    assert isinstance(control, Control)
    assert not control.spline
    assert (control.residual or 0) > 10


def crossed(pixels: list[tuple[float, float]], one: int, other: int) -> tuple[GroundControlPoint, ...]:
    """Points that two pixels have from each other."""
    swapped = {pixels[one]: pixels[other], pixels[other]: pixels[one]}
    return points(lambda row, column: straight(*swapped.get((row, column), (row, column))), pixels)


@pytest.mark.parametrize(
    ("pixels", "pair"),
    [
        (CORNERS, (2, 3)),
        ([*CORNERS, (500.0, 500.0)], (2, 3)),
        (lattice(range(0, 1001, 200), range(0, 1001, 200)), (0, 35)),
    ],
    ids=["four corners", "five", "36"],
)
def test_crossed_points_have_no_curve(pixels: list[tuple[float, float]], pair: tuple[int, int]) -> None:
    """A spline would meet a few of them, and fold. The worst points have names, the swapped ones among them."""
    found = fit_control(crossed(pixels, *pair))
    assert isinstance(found, Misfit)
    assert found.residual is not None
    assert found.residual > 50
    assert {pixels[number] for number in pair} <= {(point.row, point.col) for point in found.worst}


def test_a_spline_that_folds_gives_way_to_a_polynomial_that_is_close() -> None:
    """Two points close together, with places the other way round, bend a spline back on itself."""
    found = fit_control(crossed([*CORNERS, (0.0, 4.0)], 0, 4))
    assert isinstance(found, Control)
    assert not found.spline
    assert 0.25 < (found.residual or 0) < 5


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.task_type.name)
def test_every_kind_of_job_names_crossed_points(handler: TaskHandler, tmp_path: Path) -> None:
    """Residual, points and cure are in the notes, and nothing is placed. Tiles and web copies are refused by them."""
    corners = [(0, 0, 15.0, 50.0), (0, 400, 15.4, 50.0), (400, 0, 15.4, 49.6), (400, 400, 15.0, 49.6)]
    control = [GroundControlPoint(row=row, col=column, x=x, y=y) for row, column, x, y in corners]
    source = Tiff(quarters(400), crs=None, transform=None, gcps=(control, "EPSG:4326")).write(tmp_path / "a.tif")
    words = (
        r"polynomial misses them by \d+\.\d\d pixels \(RMS\), most at column 0 row 0, .* warp the file with gdalwarp"
    )
    if handler is GEOTIFF_TO_COG:
        with pytest.raises(JobError, match=words) as no_copy:
            perform_on(handler, source, tmp_path / "web", webOptimized=True)
        assert no_copy.value.code == "not_georeferenced"
    if handler is GEOTIFF_TO_TILES:
        with pytest.raises(JobError, match=words) as no_tiles:
            perform_on(handler, source, tmp_path / "out")
        assert no_tiles.value.code == "not_georeferenced"
        return
    metadata: Any = perform_on(handler, source, tmp_path / "out").metadata
    assert [bool(re.search(words, note)) for note in metadata["source"]["notes"]] == [True]
    assert metadata["crs"] is None


@pytest.mark.parametrize("target", ["EPSG:4326", "EPSG:32633"])
def test_the_corners_of_a_trapezoid_come_to_lie_where_the_file_has_them(target: str, tmp_path: Path) -> None:
    """The picture's box is that of the corners, and a note names the spline. An affine is 45 pixels off."""
    corners = [(0, 0, 15.0, 50.0), (0, 400, 15.4, 50.0), (400, 400, 15.3, 49.6), (400, 0, 15.1, 49.6)]
    control = [GroundControlPoint(row=row, col=column, x=x, y=y) for row, column, x, y in corners]
    source = Tiff(quarters(400), crs=None, transform=None, gcps=(control, "EPSG:4326")).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", coordinate_system=target)
    metadata: Any = result.metadata
    assert metadata["bboxLonLat"] == pytest.approx([15.0, 49.6, 15.4, 50.0], abs=0.006)
    assert any("thin-plate spline that meets its 4" in note for note in metadata["choices"]["notes"])
    if target == "EPSG:4326":
        picture = picture_of(result)
        height, width = picture.shape[:2]
        # The lower side runs from a quarter to three quarters of the width. The rest is empty.
        shown = np.flatnonzero(picture[height - 3, :, 3]) / width
        assert (shown.min(), shown.max()) == pytest.approx((0.25, 0.75), abs=0.02)
