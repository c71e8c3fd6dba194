"""Positions by the approximate transform stay near exact ones, however bent the grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint

from geoprocessing_worker.geo.approx_transform import STEPS, ApproxTransform, Points, approx_transform, source_positions
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.tasks.picture import _inspect as inspect
from tests.support.rasters import Tiff

BOUND = 0.05  # source pixels
STEP, ROWS, COLUMNS = STEPS[0], 128, 96
SEVIRI = "+proj=geos +h=35785831 +lon_0=0 +datum=WGS84 +units=m"
WORLD = Affine(0.3, 0, -180, 0, -0.3, 90)
DISK = Affine(12_000, 0, -5.5e6, 0, -12_000, 5.5e6)


def curved(bends: float) -> tuple[GroundControlPoint, ...]:
    """Return a grid of control points, pushed off by waves."""
    return tuple(
        GroundControlPoint(row, column, 44 + 1e-3 * (column + bends * np.sin(row / 70)), 15 - 1e-3 * row)
        for row in range(0, 901, 100)
        for column in range(0, 1201, 100)
    )


SOURCES: dict[str, tuple[Tiff, str]] = {
    "UTM": (Tiff(np.ones((1, 900, 1200), np.uint8), crs="EPSG:32638", transform=Affine(30, 0, 4e5, 0, -30, 17e5)), ""),
    "UTM far off its zone": (
        Tiff(np.ones((1, 900, 1200), np.uint8), crs="EPSG:32638", transform=Affine(4e3, 0, -24e5, 0, -4e3, 90e5)),
        "",
    ),
    "between conformal systems": (
        Tiff(np.ones((1, 900, 1200), np.uint8), crs="EPSG:3857", transform=Affine(4e3, 0, 3e6, 0, -4e3, 9e6)),
        "EPSG:32638",
    ),
    "around a pole": (Tiff(np.ones((1, 600, 1200), np.uint8), transform=WORLD), "EPSG:3995"),
    "to geostationary": (Tiff(np.ones((1, 600, 1200), np.uint8), transform=WORLD), SEVIRI),
    "from geostationary": (Tiff(np.ones((1, 920, 920), np.uint8), crs=SEVIRI, transform=DISK), ""),
    "across the antimeridian": (
        Tiff(np.ones((1, 500, 900), np.uint8), crs="EPSG:32660", transform=Affine(500, 0, 7e5, 0, -500, 2e6)),
        "",
    ),
    "control points": (Tiff(np.ones((1, 900, 1200), np.uint8), gcps=(curved(20), "EPSG:4326")), ""),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("size", [64, 700])
def test_positions_stay_within_a_twentieth_of_a_pixel(name: str, size: int, tmp_path: Path) -> None:
    """Each pixel inside the source is near PROJ's position, and none is inside by the mesh alone, at any size."""
    tiff, system = SOURCES[name]
    options = RenderOptions(max_size=size, **({"coordinate_system": system} if system else {}))
    path = tiff.write(tmp_path / "a.tif")
    with gdal_environment():
        header, _, plan = inspect(path, options, validate_headers=True)
        width, height = header.width, header.height
        mesh = approx_transform(header, plan.layout, width, height)
        target = plan.layout.target
        found = mesh.positions(slice(0, target.height), slice(0, target.width)).astype(np.float64)
        exact = source_positions(header, plan.layout, width, height)(
            *np.meshgrid(np.arange(target.width) + 0.5, np.arange(target.height) + 0.5)
        )
    with np.errstate(invalid="ignore"):
        inside, near = ((xs > 1) & (xs < width - 1) & (ys > 1) & (ys < height - 1) for xs, ys in (exact, found))
    assert inside.mean() > 0.2
    distance = np.hypot(found[0] - exact[0], found[1] - exact[1])[inside]
    assert distance.max() <= BOUND
    assert (inside == near).mean() > 0.999


@given(nodes=st.lists(st.floats(-20, 120, width=32), min_size=5, max_size=5), first=st.integers(0, ROWS - 1))
def test_positions_are_inside_the_reported_extent(nodes: list[float], first: int) -> None:
    """No pixel center of a part lies outside of its extent, whatever the rows."""
    mesh = mesh_of(nodes)
    rows, columns = slice(first, ROWS), slice(5, COLUMNS)
    xs, ys = mesh.positions(rows, columns)
    left, top, right, bottom = mesh.extent(rows, columns) or (0, 0, 0, 0)
    dust = 1e-4
    assert (xs >= left - dust).all()
    assert (xs <= right + dust).all()
    assert (ys >= top - dust).all()
    assert (ys <= bottom + dust).all()


def test_bent_cells_have_no_extent() -> None:
    """Between nodes that are joined by a curve no promise is made."""
    assert mesh_of([50.0] * 5, bent=True).extent(slice(0, ROWS), slice(0, COLUMNS)) is None


def test_parts_join_without_a_seam() -> None:
    """A part has the same positions as in the whole, at samples beside pixel centers too, counted from any origin."""
    mesh = mesh_of([3.0, 40.0, 20.0, 90.0, 60.0])
    samples = np.array([-0.3, 0.3])
    whole = mesh.positions(slice(0, ROWS), slice(0, COLUMNS), samples, samples)
    part = mesh.positions(slice(21, 70), slice(40, 77), samples, samples, (10.0, 20.0))
    expected = whole[:, 42:140, 80:154] - np.array([10, 20], dtype=np.float32)[:, None, None]
    assert np.allclose(part, expected, atol=1e-4)


def never(columns: Points, rows: Points) -> tuple[Points, Points]:
    raise AssertionError("no cell is bent")


def mesh_of(nodes: list[float], bent: bool = False) -> ApproxTransform:
    """Return a mesh with rows that wander between the given positions. x equals y."""
    down = np.array(nodes, dtype=np.float32)[:, None] + np.linspace(-30, 30, COLUMNS // STEP + 1, dtype=np.float32)
    return ApproxTransform(np.stack([down, down]), STEP, np.full((4, COLUMNS // STEP), bent), never, 1.0, 1.0)
