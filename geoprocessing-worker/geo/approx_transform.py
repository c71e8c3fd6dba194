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
Inverse = Callable[[Points, Points], tuple[Points, Points]]

STEP = 16  # output pixels between two nodes
TOLERANCE = 0.02  # source pixels of linear error, above which a cell is computed pixel by pixel
OUTSIDE = -1e6  # a position outside of any raster


@dataclass(frozen=True, slots=True)
class ApproxTransform:
    """Source positions of the output's pixel centers, in pixels from the source's corner.

    `nodes` is (rows / STEP + 2, columns, 2): interpolated to every output column, but not to every row.
    `bent` is (cell rows, cell columns): cells with too large a linear error. `across` and `down` are the source pixels
    per output pixel along each axis of the source.
    """

    nodes: Positions
    bent: NDArray[np.bool_]
    inverse: Inverse
    across: float
    down: float

    def rows(self, first: int, last: int) -> Positions:
        """Return (last - first, columns, 2) of x and y. Undefined positions are far outside."""
        found = np.empty((last - first, *self.nodes.shape[1:]), dtype=np.float32)
        for cell in range(first // STEP, -(-last // STEP)):
            top, bottom = max(first, cell * STEP), min(last, (cell + 1) * STEP)
            part = (np.arange(top, bottom, dtype=np.float32) / STEP - cell)[:, None, None]
            block = found[top - first : bottom - first]
            np.multiply(self.nodes[cell + 1] - self.nodes[cell], part, out=block)
            block += self.nodes[cell]
            for bent in np.flatnonzero(self.bent[cell]):
                left, right = bent * STEP, min((bent + 1) * STEP, found.shape[1])
                columns, rows = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
                block[:, left:right] = _stacked(*self.inverse(columns, rows))
        return found

    def surely_inside(self, first: int, last: int, width: int, height: int) -> slice:
        """Return the columns in which all of these rows are inside the source, as all surrounding nodes are."""
        cells = slice(first // STEP, -(-last // STEP))
        nodes = self.nodes[cells.start : cells.stop + 1]
        xs, ys = nodes[..., 0], nodes[..., 1]
        inside = ((xs >= 0) & (xs < width) & (ys >= 0) & (ys < height)).all(axis=0)
        found = np.flatnonzero(inside)
        if found.size == 0 or self.bent[cells].any():
            return slice(0, 0)
        start, stop = int(found[0]), int(found[-1]) + 1
        return slice(start, stop) if found.size == stop - start else slice(0, 0)


def approx_transform(header: SourceHeader, layout: Layout, width: int, height: int) -> ApproxTransform:
    """Return the transform from `layout.target` to the source as read, `width` x `height` pixels."""
    target = layout.target
    inverse = source_positions(header, layout, width, height)
    nodes_across, nodes_down = -(-target.width // STEP) + 1, -(-target.height // STEP) + 1
    columns, rows = np.meshgrid(np.arange(nodes_across) * STEP + 0.5, np.arange(nodes_down) * STEP + 0.5)
    xs, ys = inverse(columns, rows)
    bent = _bent(xs, ys, inverse, columns, rows)
    sparse = _stacked(xs, ys)
    part = (np.arange(STEP, dtype=np.float32) / STEP)[None, None, :, None]
    dense = sparse[:, :-1, None] + (sparse[:, 1:] - sparse[:, :-1])[:, :, None] * part
    across, down = _coverage(xs, ys)
    nodes: Positions = np.ascontiguousarray(dense.reshape(nodes_down, -1, 2)[:, : target.width], dtype=np.float32)
    return ApproxTransform(nodes, bent, inverse, across, down)


def _stacked(xs: Points, ys: Points) -> Positions:
    good = np.isfinite(xs) & np.isfinite(ys)
    found: Positions = np.stack([np.where(good, xs, OUTSIDE), np.where(good, ys, OUTSIDE)], axis=-1).astype(np.float32)
    return np.clip(found, OUTSIDE, -OUTSIDE)


def _bent(xs: Points, ys: Points, inverse: Inverse, columns: Points, rows: Points) -> NDArray[np.bool_]:
    """Return cells that are only partly defined, or with a center that differs from the mean of their corners."""
    middle = inverse(columns[:-1, :-1] + STEP / 2, rows[:-1, :-1] + STEP / 2)
    off = np.zeros(middle[0].shape, dtype=bool)
    for corner, true in zip((xs, ys), middle, strict=True):
        mean = (corner[:-1, :-1] + corner[1:, :-1] + corner[:-1, 1:] + corner[1:, 1:]) / 4
        with np.errstate(invalid="ignore"):
            off |= ~(np.abs(mean - true) <= TOLERANCE)
    nowhere = ~(np.isfinite(xs) & np.isfinite(ys))
    empty = nowhere[:-1, :-1] & nowhere[1:, :-1] & nowhere[:-1, 1:] & nowhere[1:, 1:] & ~np.isfinite(middle[0])
    return off & ~empty


def _coverage(xs: Points, ys: Points) -> tuple[float, float]:
    """Return source pixels per output pixel, per axis of the source. A rotated source counts with its true length."""
    if min(xs.shape) < 2:
        return 1.0, 1.0
    found = []
    for axis in (xs, ys):
        right, below = (np.diff(axis, axis=1)[:-1] / STEP, np.diff(axis, axis=0)[:, :-1] / STEP)
        with np.errstate(invalid="ignore", over="ignore"):
            length = np.hypot(right, below)
        good = length[np.isfinite(length)]
        found.append(float(np.median(good)) if good.size else 1.0)
    return found[0], found[1]


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
