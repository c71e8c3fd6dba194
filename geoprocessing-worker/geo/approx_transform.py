"""Approximate transform from output to source pixels: exact at grid nodes, linear between them, exact where bent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS

from geoprocessing_worker.geo.crs import same, transformer
from geoprocessing_worker.geo.layout import Layout
from geoprocessing_worker.geo.pixel_to_crs import period, transformer_of
from geoprocessing_worker.raster import SourceHeader

Points = NDArray[np.float64]
Positions = NDArray[np.float32]
Offsets = NDArray[np.floating[Any]]
Origin = tuple[float, float]
Extent = tuple[float, float, float, float]
Inverse = Callable[[Points, Points], tuple[Points, Points]]

STEPS = (32, 16, 8, 4, 2, 1)  # output pixels between two nodes
FEWEST_CELLS = 8  # along each side, so that a small picture shows its bends
FINEST = 8  # bent cells do not make the mesh finer than this
TOLERANCE = 0.02  # source pixels of linear error, above which a cell is computed pixel by pixel
OUTSIDE = -1e6  # a position outside of any raster
CENTER: Offsets = np.zeros(1)


@dataclass(frozen=True, slots=True)
class ApproxTransform:
    """Source positions of places in the output's pixels, in pixels from the source's corner.

    `nodes` is (2, rows, columns): x and y of the center of every `step`-th pixel. `bent` is (cell rows, cell columns):
    cells with too large a linear error. `across` and `down` are the source pixels per output column and row.
    """

    nodes: Positions
    step: int
    bent: NDArray[np.bool_]
    inverse: Inverse
    across: float
    down: float

    def positions(
        self, rows: slice, columns: slice, down: Offsets = CENTER, across: Offsets = CENTER, origin: Origin = (0.0, 0.0)
    ) -> Positions:
        """Return x and y as (2, rows, columns), with a row or column for each offset. Undefined ones are far outside.

        Offsets are in pixels from a pixel's center, and `origin` is the (x, y) that positions are counted from.
        """
        step = self.step
        first, last, left, right = *_cells(rows, step), *_cells(columns, step)
        zero = np.array(origin, dtype=np.float32)[:, None, None]
        corners = self.nodes[:, first : last + 1, left : right + 1] - zero
        part = ((np.arange(step)[:, None] + across) / step).ravel().astype(np.float32)
        dense = (corners[..., :-1, None] + np.diff(corners)[..., None] * part).reshape(2, last - first + 1, -1)
        dense = dense[..., (columns.start - left * step) * across.size : (columns.stop - left * step) * across.size]
        found = np.empty((2, (rows.stop - rows.start) * down.size, dense.shape[2]), dtype=np.float32)
        for cell in range(first, last):
            top, bottom = max(rows.start, cell * step), min(rows.stop, (cell + 1) * step)
            block = found[:, (top - rows.start) * down.size : (bottom - rows.start) * down.size]
            part = ((np.arange(top, bottom)[:, None] + down) / step - cell).ravel().astype(np.float32)
            np.matmul(np.stack([1 - part, part], axis=1), dense[:, cell - first : cell - first + 2], out=block)
            for bent in np.flatnonzero(self.bent[cell, left:right]) + left:
                begin, end = max(columns.start, bent * step), min(columns.stop, (bent + 1) * step)
                exact = self.inverse(*np.meshgrid(_samples(begin, end, across), _samples(top, bottom, down)))
                place = slice((begin - columns.start) * across.size, (end - columns.start) * across.size)
                block[..., place] = _stacked(*exact) - zero
        return found

    def extent(self, rows: slice, columns: slice) -> Extent | None:
        """Return left, top, right and bottom of all pixel centers of a part. `None` if one of its cells is bent."""
        first, last, left, right = *_cells(rows, self.step), *_cells(columns, self.step)
        if self.bent[first:last, left:right].any():
            return None
        xs, ys = self.nodes[:, first : last + 1, left : right + 1]
        return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def _cells(side: slice, step: int) -> tuple[int, int]:
    """Return the first cell of a range of rows or columns, and the one after the last."""
    return side.start // step, _up(side.stop, step)


def _up(size: int, step: int) -> int:
    return -(-size // step)


def _samples(first: int, last: int, offsets: Offsets) -> Points:
    """Return the coordinates of the samples of pixels `first` to `last`."""
    return (np.arange(first, last)[:, None] + 0.5 + offsets).ravel()


def approx_transform(header: SourceHeader, layout: Layout, width: int, height: int) -> ApproxTransform:
    """Return the transform from `layout.target` to the source as read, `width` x `height` pixels.

    The step is the largest at which bent pixels are fewer than the nodes of the next.
    """
    target = layout.target
    inverse = source_positions(header, layout, width, height)
    cells = min(target.width, target.height) // FEWEST_CELLS
    steps = [step for step in STEPS if step <= cells] or STEPS[-1:]
    meshes = (_mesh(inverse, target.width, target.height, step) for step in steps)
    return next(mesh for mesh in meshes if mesh.step <= FINEST or mesh.bent.mean() * mesh.step**2 <= 4)


def _mesh(inverse: Inverse, width: int, height: int, step: int) -> ApproxTransform:
    # A curve needs three nodes.
    columns, rows = (np.arange(max(3, _up(size, step) + 1)) * step + 0.5 for size in (width, height))
    xs, ys = inverse(*np.meshgrid(columns, rows))
    across, down = (_coverage(xs, ys, axis) / step for axis in (1, 0))
    return ApproxTransform(_stacked(xs, ys), step, _bent(xs, ys), inverse, across, down)


def _stacked(xs: Points, ys: Points) -> Positions:
    good = np.isfinite(xs) & np.isfinite(ys)
    found: Positions = np.stack([np.where(good, xs, OUTSIDE), np.where(good, ys, OUTSIDE)]).astype(np.float32)
    return np.clip(found, OUTSIDE, -OUTSIDE)


def _bent(xs: Points, ys: Points) -> NDArray[np.bool_]:
    """Return cells that are only partly defined, or with too large an error by the second differences of their nodes.

    Between nodes of a parabola the line is off by at most an eighth of the second difference, along either axis. The
    center alone would not show it: opposite bends along both axes cancel there, as between two conformal projections.
    """
    bent = np.zeros((xs.shape[0] - 1, xs.shape[1] - 1), dtype=bool)
    with np.errstate(invalid="ignore"):
        for axis in (xs, ys):
            right = np.pad(np.abs(np.diff(axis, 2, axis=1)), ((0, 0), (1, 1)), mode="edge")
            below = np.pad(np.abs(np.diff(axis, 2, axis=0)), ((1, 1), (0, 0)), mode="edge")
            bent |= ~(_highest(right + below) <= 8 * TOLERANCE)
    nowhere = ~(np.isfinite(xs) & np.isfinite(ys))
    return bent & ~(nowhere[:-1, :-1] & nowhere[1:, :-1] & nowhere[:-1, 1:] & nowhere[1:, 1:])


def _highest(nodes: Points) -> Points:
    """Return the highest value at the corners of each cell. NaN counts as the highest."""
    across = np.maximum(nodes[:, :-1], nodes[:, 1:])
    highest: Points = np.maximum(across[:-1], across[1:])
    return highest


def _coverage(xs: Points, ys: Points, axis: int) -> float:
    """Return the median distance of adjacent nodes along an axis, in source pixels."""
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.hypot(np.diff(xs, axis=axis), np.diff(ys, axis=axis))
    good = length[np.isfinite(length)]
    return float(np.median(good)) if good.size else 1.0


def source_positions(header: SourceHeader, layout: Layout, width: int, height: int) -> Inverse:
    """Return the function from output (column, row) to (x, y) in the downsampled source, through its CRS if warped."""
    shrunk_x, shrunk_y = width / header.width, height / header.height
    target = layout.target
    if not layout.warp:
        flip_x, flip_y = (-1 if layout.flip_columns else 1), (-1 if layout.flip_rows else 1)
        across, down = flip_x * width / target.width, flip_y * height / target.height
        left, top = (width if layout.flip_columns else 0), (height if layout.flip_rows else 0)
        return lambda columns, rows: (left + across * columns, top + down * rows)
    if target.transform is None or target.crs is None or header.crs is None:
        raise ValueError("a picture without a georeference cannot be reprojected")
    t, project, locate = target.transform, _projection(target.crs, header.crs), _locator(header)

    def inverse(columns: Points, rows: Points) -> tuple[Points, Points]:
        shape = columns.shape
        columns, rows = columns.ravel(), rows.ravel()
        xs, ys = project(t.a * columns + t.b * rows + t.c, t.d * columns + t.e * rows + t.f)
        with np.errstate(invalid="ignore"):  # undefined points are infinite, and stay so
            xs, ys = locate(np.asarray(xs), np.asarray(ys))
        return (xs * shrunk_x).reshape(shape), (ys * shrunk_y).reshape(shape)

    return inverse


def _projection(source: CRS, target: CRS) -> Inverse:
    if same(source, target):
        return lambda xs, ys: (xs, ys)
    way = transformer(source, target)
    return lambda xs, ys: way.transform(xs, ys, errcheck=False)


def _locator(header: SourceHeader) -> Inverse:
    """Return the function from x and y in the file's CRS to its (column, row)."""
    turn, middle = (period(header.crs) if header.crs is not None else None), _middle(header)
    back = None if header.transform is None else ~header.transform
    # Created once: a spline through hundreds of points takes milliseconds to solve.
    control = transformer_of(header) if header.transform is None else None

    def located(xs: Points, ys: Points) -> tuple[Points, Points]:
        if turn is not None:
            # A meridian has several x values. The one inside the file is used.
            xs = xs - np.floor((xs - middle) / turn + 0.5) * turn
        if back is None:
            return _by_control(control, xs, ys)
        return back.a * xs + back.b * ys + back.c, back.d * xs + back.e * ys + back.f

    return located


def _middle(header: SourceHeader) -> float:
    """Return x of the file's center in its CRS."""
    if header.transform is not None:
        return float((header.transform @ (header.width / 2, header.height / 2))[0])
    if header.gcps:
        return float(np.mean([point.x for point in header.gcps]))
    return header.rpc.long_off if header.rpc is not None else 0.0


def _by_control(control: Any, xs: Points, ys: Points) -> tuple[Points, Points]:
    good = np.isfinite(xs) & np.isfinite(ys)
    columns, rows = np.full(xs.shape, np.nan), np.full(xs.shape, np.nan)
    if good.any():
        # `op` keeps fractions: rasterio rounds down by default.
        found = control.rowcol(xs[good].tolist(), ys[good].tolist(), op=np.positive)
        rows[good], columns[good] = (np.asarray(part, dtype=np.float64) for part in found)
    return columns, rows
