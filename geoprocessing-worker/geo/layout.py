"""Derives the output's size and affine from a file's header, without reading a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from affine import Affine
from pyproj import CRS

from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.geo.area_of_use import cell_areas, usable_part
from geoprocessing_worker.geo.crs import per_degree, reachable, same
from geoprocessing_worker.geo.pixel_to_crs import Points, period, pixel_to_crs, project
from geoprocessing_worker.raster import Georeferencing, Grid, SourceHeader

SAMPLES = 33  # points along each side: projections curve by less than a pixel between them
NEAR_POLE = 85.0  # degrees
MAX_ASPECT = 16.0  # ratio of width to height, in degrees near a pole
LIMB_SAMPLES = 513  # if some points are off the Earth: at its limb a hundredth of the side is ten degrees


@dataclass(frozen=True, slots=True)
class Layout:
    """The output's grid, the size that the source is downsampled to before a warp, and the steps between them.

    Without `warp` the two sizes are equal, and `flip_rows` and `flip_columns` turn the picture north-up. `cut`: parts
    of the file are cropped, since the CRS would stretch them until nothing else could be seen.
    """

    target: Grid
    read_width: int
    read_height: int
    warp: bool
    flip_rows: bool
    flip_columns: bool
    reason: str
    cut: bool = False


def fit(width: int, height: int, max_size: int) -> tuple[int, int]:
    """Return the size scaled down to a long side of at most `max_size`. The short side is rounded, at least 1."""
    scale = min(1.0, max_size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def lay_out(header: SourceHeader, crs: CRS | None, max_size: int) -> Layout:
    """Return the layout of a picture in `crs` (`None`: the file's own) of at most `max_size` pixels a side.

    Raises:
        JobError: `bad_crs` when no point of the file can be expressed in `crs`.
    """
    if header.georeferencing in {Georeferencing.GCPS, Georeferencing.RPC}:
        return _warped(header, crs or _known(header.crs), max_size, f"placed by its {header.georeferencing.upper()}")
    if header.crs is None or header.transform is None:
        return _upright(header, max_size, "the file has no coordinate system, so the picture keeps its pixels")
    if crs is None:
        return _upright(header, max_size, "the payload asks for the file's own coordinate system")
    if not reachable(header.crs, crs):
        return _upright(header, max_size, f"{crs.name} cannot be reached from the file's own system, which is kept")
    turned = bool(header.transform.b or header.transform.d)
    if same(header.crs, crs) and not turned:
        return _upright(header, max_size, "the file is in this coordinate system already")
    return _warped(header, crs, max_size, "turned north-up" if same(header.crs, crs) else "reprojected")


def _known(crs: CRS | None) -> CRS:
    if crs is None:
        raise ValueError("ground control points without a CRS")
    return crs


def _upright(header: SourceHeader, max_size: int, reason: str) -> Layout:
    """Return the file's own grid, scaled, and flipped so that north is up."""
    width, height = fit(header.width, header.height, max_size)
    transform = header.transform
    if transform is None:
        return Layout(Grid(width, height, None, None), width, height, False, False, False, reason)
    transform = transform @ Affine.scale(header.width / width, header.height / height)
    turned = bool(transform.b or transform.d)
    flip_columns = not turned and transform.a < 0
    if flip_columns:
        transform = transform @ Affine(-1, 0, width, 0, 1, 0)
    # A positive determinant means that rows run northward, before any rotation.
    flip_rows = transform.determinant > 0
    if flip_rows:
        transform = transform @ Affine(1, 0, 0, 0, -1, height)
    grid = Grid(width, height, transform, header.crs)
    return Layout(grid, width, height, False, flip_rows, flip_columns, reason)


def spread(header: SourceHeader, crs: CRS) -> tuple[Points, Points]:
    """Return (rows, columns) of x and y of points over the file, in `crs`, continuous across the antimeridian.

    Undefined points are NaN.
    """
    xs, ys = _spread(header, crs, SAMPLES)
    return (xs, ys) if np.isfinite(xs).all() else _spread(header, crs, LIMB_SAMPLES)


def _spread(header: SourceHeader, crs: CRS, samples: int) -> tuple[Points, Points]:
    columns, rows = np.meshgrid(
        np.linspace(0.0, header.width, samples), np.linspace(0.0, header.height, samples), indexing="xy"
    )
    xs, ys = pixel_to_crs(header)(columns.ravel(), rows.ravel())
    xs, ys = project(_known(header.crs), crs, xs, ys)
    good = np.isfinite(xs) & np.isfinite(ys)
    xs = np.where(good, xs, np.nan).reshape(columns.shape)
    ys = np.where(good, ys, np.nan).reshape(columns.shape)
    if crs.is_geographic:
        pole = 90.0 * per_degree(crs)
        ys = np.clip(ys, -pole, pole)
    turn = period(crs)
    return (_continuous(xs, turn) if turn else xs), ys


def _continuous(xs: Points, period: float) -> Points:
    if not _torn(xs, period):
        return xs
    if np.isfinite(xs).all():
        # Unwrapped step by step: the two ends of a full turn coincide, and a remainder would merge them.
        turned: Points = np.unwrap(np.unwrap(xs, axis=1, period=period), axis=0, period=period)
        if not _torn(turned, period):
            row, column = len(xs) // 2, xs.shape[1] // 2
            turned -= np.round((turned[row, column] - xs[row, column]) / period) * period
            return turned
    middle = xs[len(xs) // 2, len(xs) // 2]
    if not np.isfinite(middle):
        middle = float(np.nanmedian(xs))
    whole: Points = (xs - middle + period / 2) % period - period / 2 + middle
    return whole


def _torn(xs: Points, period: float) -> bool:
    with np.errstate(invalid="ignore"):
        return any(np.nanmax(np.abs(np.diff(xs, axis=axis)), initial=0.0) > period / 2 for axis in (0, 1))


def _pole_within(header: SourceHeader, crs: CRS, xs: Points) -> float | None:
    """Return the latitude of a pole inside the file, which is then as wide as the world, else `None`."""
    if not crs.is_geographic or header.transform is None or not _torn(xs, 360.0 * per_degree(crs)):
        return None
    back = ~header.transform
    for pole in (90.0 * per_degree(crs), -90.0 * per_degree(crs)):
        x, y = project(crs, _known(header.crs), np.zeros(1), np.full(1, pole))
        column, row = back @ (float(x[0]), float(y[0]))
        if 0 <= column <= header.width and 0 <= row <= header.height:
            return pole
    return None


def _warped(header: SourceHeader, crs: CRS, max_size: int, reason: str) -> Layout:
    xs, ys = spread(header, crs)
    pixels: Points | float = header.width * header.height / cell_areas(xs, ys).size
    part = usable_part(header, crs, xs, ys)
    if part is not None:
        xs, ys, pixels = part
        reason = f"{reason}, cropped to the area where {crs.name} can be used, since it would stretch the rest"
    if np.isfinite(xs).sum() < 3:
        raise invalid_input(
            "bad_crs", f"The file lies outside the area where {crs.name} can be used. Choose another system."
        )
    left, right = float(np.nanmin(xs)), float(np.nanmax(xs))
    bottom, top = float(np.nanmin(ys)), float(np.nanmax(ys))
    pole = _pole_within(header, crs, xs)
    if pole is not None:
        half = 180.0 * per_degree(crs)
        left, right, bottom, top = -half, half, min(bottom, pole), max(top, pole)
    if right <= left or top <= bottom:
        raise invalid_input("bad_crs", f"In {crs.name} the file has no area. Choose another coordinate system.")
    pixel = _pixel_size(xs, ys, pixels, (right - left) * (top - bottom))
    full_width, full_height = max(1.0, (right - left) / pixel), max(1.0, (top - bottom) / pixel)
    near_pole = crs.is_geographic and max(abs(bottom), abs(top)) > NEAR_POLE * per_degree(crs)
    if near_pole and full_width > MAX_ASPECT * full_height:
        # Degrees of longitude are short there: square pixels would make a strip of a few rows.
        area = full_width * full_height
        full_width, full_height = (area * MAX_ASPECT) ** 0.5, (area / MAX_ASPECT) ** 0.5
    scale = min(1.0, max_size / max(full_width, full_height))
    width = min(max_size, max(1, round(full_width * scale)))
    height = min(max_size, max(1, round(full_height * scale)))
    transform = Affine((right - left) / width, 0, left, 0, (bottom - top) / height, top)
    return Layout(
        target=Grid(width, height, transform, crs),
        read_width=max(1, round(header.width * scale)),
        read_height=max(1, round(header.height * scale)),
        warp=True,
        flip_rows=False,
        flip_columns=False,
        reason=reason,
        cut=part is not None,
    )


def _pixel_size(xs: Points, ys: Points, pixels: Points | float, box: float) -> float:
    """Return the side of a square pixel that keeps the number of source pixels, by the area of fully defined cells.

    `pixels`: the number of source pixels in each cell.
    """
    cells = cell_areas(xs, ys)
    counted = np.broadcast_to(pixels, cells.shape)
    whole = np.isfinite(cells) & np.isfinite(counted)
    area, count = float(cells[whole].sum()), float(counted[whole].sum())
    if count < 1 or not 0 < area <= box * 1.01:
        area, count = box, float(counted[np.isfinite(counted)].sum())
    return math.sqrt(area / count)
