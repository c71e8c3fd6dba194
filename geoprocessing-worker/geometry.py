"""Where a picture lies: from a file's header to the output's size and affine, without reading a pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.control import GroundControlPoint
from rasterio.transform import GCPTransformer, RPCTransformer

from geoprocessing_worker.crs import reachable, same, transformer
from geoprocessing_worker.errors import refused
from geoprocessing_worker.header import Georeferencing, SourceHeader
from geoprocessing_worker.raster import Grid

Points = NDArray[np.float64]
MERCATOR_LIMIT = 85.0511287798066  # degrees; where the square of Web Mercator ends
EARTH_GIRTH = 2 * math.pi * 6378137.0  # metres round the equator of Web Mercator
SAMPLES = 33  # points along each side: curves between them are flatter than a pixel
LIMB_SAMPLES = 513  # where a part lies nowhere: at the limb of the Earth a hundredth of the side is ten degrees


@dataclass(frozen=True, slots=True)
class Layout:
    """The output's grid, the size that the source is reduced to before a warp, and what the way there looks like.

    Without `warp` the two sizes are equal; `flip_rows` and `flip_columns` then bring the picture north-up.
    """

    target: Grid
    read_width: int
    read_height: int
    warp: bool
    flip_rows: bool
    flip_columns: bool
    reason: str


def fit(width: int, height: int, max_size: int) -> tuple[int, int]:
    """The size with the long side at most `max_size`; never enlarged; the short side rounded, at least 1."""
    scale = min(1.0, max_size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def lay_out(header: SourceHeader, crs: CRS | None, max_size: int) -> Layout:
    """How the file becomes a picture in `crs` (`None`: its own) of at most `max_size` pixels a side.

    Raises:
        JobError: `bad_crs` when no point of the file can be expressed in `crs`.
    """
    if header.georeferencing in {Georeferencing.GCPS, Georeferencing.RPC}:
        return _warped(header, crs or _known(header.crs), max_size, f"placed by its {header.georeferencing.upper()}")
    if header.crs is None or header.transform is None:
        return _upright(header, max_size, "the file has no coordinate system, so the picture keeps its pixels")
    if crs is None:
        return _upright(header, max_size, "the file's own coordinate system was asked for")
    if not reachable(header.crs, crs):
        return _upright(header, max_size, f"{crs.name} cannot be reached from the file's own system, which is kept")
    turned = bool(header.transform.b or header.transform.d)
    if same(header.crs, crs) and not turned:
        return _upright(header, max_size, "the file is in this coordinate system already")
    return _warped(header, crs, max_size, "turned north-up" if same(header.crs, crs) else "reprojected")


def _known(crs: CRS | None) -> CRS:
    if crs is None:
        raise ValueError("ground control without a coordinate system")
    return crs


def _upright(header: SourceHeader, max_size: int, reason: str) -> Layout:
    """The file's own grid, scaled, and flipped so that north is up."""
    width, height = fit(header.width, header.height, max_size)
    transform = header.transform
    if transform is None:
        return Layout(Grid(width, height, None, None), width, height, False, False, False, reason)
    transform = transform @ Affine.scale(header.width / width, header.height / height)
    turned = bool(transform.b or transform.d)
    flip_columns = not turned and transform.a < 0
    if flip_columns:
        transform = transform @ Affine(-1, 0, width, 0, 1, 0)
    # A positive determinant means that rows run northwards (or the like of it, when turned).
    flip_rows = transform.determinant > 0
    if flip_rows:
        transform = transform @ Affine(1, 0, 0, 0, -1, height)
    grid = Grid(width, height, transform, header.crs)
    return Layout(grid, width, height, False, flip_rows, flip_columns, reason)


def ground(header: SourceHeader) -> Callable[[Points, Points], tuple[Points, Points]]:
    """From (columns, rows) of pixel corners to x and y in the header's system, by whatever the file has."""
    if header.transform is not None:
        affine = header.transform
        return lambda columns, rows: (
            affine.a * columns + affine.b * rows + affine.c,
            affine.d * columns + affine.e * rows + affine.f,
        )

    def transformed(columns: Points, rows: Points) -> tuple[Points, Points]:
        with transformer_of(header) as transformer:
            xs, ys = transformer.xy(rows.tolist(), columns.tolist(), offset="ul")
        return np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)

    return transformed


def transformer_of(header: SourceHeader) -> Any:
    """GDAL's own transformer by ground control points or RPC."""
    if header.gcps:
        return GCPTransformer(list(header.gcps))
    # GDAL's default height is 0, which can lie far from the ground that the polynomials were made for.
    return RPCTransformer(header.rpc, RPC_HEIGHT=header.rpc.height_off if header.rpc else 0.0)


def control_residual(points: tuple[GroundControlPoint, ...]) -> float:
    """How far ground control points lie from where the curve fitted through them has them: RMS, in pixels.

    Raises:
        Exception: GDAL's, of several kinds, where no curve goes through them.
    """
    columns = np.array([point.col for point in points], dtype=np.float64)
    rows = np.array([point.row for point in points], dtype=np.float64)
    with GCPTransformer(list(points)) as transformer:
        xs, ys = [point.x for point in points], [point.y for point in points]
        found = transformer.rowcol(xs, ys, op=np.positive)
    off = np.hypot(np.asarray(found[0]) - rows, np.asarray(found[1]) - columns)
    return float(np.sqrt(np.mean(off**2)))


def project(source: CRS, target: CRS, xs: Points, ys: Points) -> tuple[Points, Points]:
    """Points in another system, x first; what cannot be expressed there is infinite."""
    if same(source, target):
        return xs, ys
    if source.is_geographic:
        # Global grids often end a hair past the pole, where PROJ finds nothing.
        ys = np.clip(ys, -90.0, 90.0)
    if is_mercator(target):
        xs, ys = transformer(source, CRS.from_epsg(4326)).transform(xs, ys, errcheck=False)
        ys = np.clip(ys, -MERCATOR_LIMIT, MERCATOR_LIMIT, where=np.isfinite(ys), out=np.array(ys))
        source = CRS.from_epsg(4326)
    out_x, out_y = transformer(source, target).transform(xs, ys, errcheck=False)
    return np.asarray(out_x), np.asarray(out_y)


def is_mercator(crs: CRS) -> bool:
    """Whether a system is Mercator round the equator, whose y grows beyond all bounds at the poles."""
    operation = crs.coordinate_operation
    name = operation.method_name.lower() if operation is not None else ""
    return "mercator" in name and "transverse" not in name and "oblique" not in name


def period(crs: CRS) -> float | None:
    """How far apart in x two names of the same place lie."""
    if crs.is_geographic:
        return 360.0
    return EARTH_GIRTH if is_mercator(crs) else None


def spread(header: SourceHeader, crs: CRS) -> tuple[Points, Points]:
    """(rows, columns) x and y of points all over the file, in `crs`, in one piece across the antimeridian.

    NaN where a point lies nowhere.
    """
    xs, ys = _spread(header, crs, SAMPLES)
    return (xs, ys) if np.isfinite(xs).all() else _spread(header, crs, LIMB_SAMPLES)


def _spread(header: SourceHeader, crs: CRS, samples: int) -> tuple[Points, Points]:
    columns, rows = np.meshgrid(
        np.linspace(0.0, header.width, samples), np.linspace(0.0, header.height, samples), indexing="xy"
    )
    xs, ys = ground(header)(columns.ravel(), rows.ravel())
    xs, ys = project(_known(header.crs), crs, xs, ys)
    good = np.isfinite(xs) & np.isfinite(ys)
    xs = np.where(good, xs, np.nan).reshape(columns.shape)
    ys = np.where(good, ys, np.nan).reshape(columns.shape)
    if crs.is_geographic:
        ys = np.clip(ys, -90.0, 90.0)
    turn = period(crs)
    return (_in_one_piece(xs, turn) if turn else xs), ys


def _in_one_piece(xs: Points, period: float) -> Points:
    with np.errstate(invalid="ignore"):
        torn = any(np.nanmax(np.abs(np.diff(xs, axis=axis)), initial=0.0) > period / 2 for axis in (0, 1))
    if not torn:
        return xs
    middle = xs[len(xs) // 2, len(xs) // 2]
    if not np.isfinite(middle):
        middle = float(np.nanmedian(xs))
    whole: Points = (xs - middle + period / 2) % period - period / 2 + middle
    return whole


def _warped(header: SourceHeader, crs: CRS, max_size: int, reason: str) -> Layout:
    xs, ys = spread(header, crs)
    if np.isfinite(xs).sum() < 3:
        raise refused("bad_crs", f"The file lies outside the area where {crs.name} can be used. Choose another system.")
    left, right = float(np.nanmin(xs)), float(np.nanmax(xs))
    bottom, top = float(np.nanmin(ys)), float(np.nanmax(ys))
    if right <= left or top <= bottom:
        raise refused("bad_crs", f"In {crs.name} the file has no area. Choose another coordinate system.")
    pixel = _pixel_size(header, xs, ys, (right - left) * (top - bottom))
    full_width, full_height = max(1.0, (right - left) / pixel), max(1.0, (top - bottom) / pixel)
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
    )


def _pixel_size(header: SourceHeader, xs: Points, ys: Points, box: float) -> float:
    """The side of a square pixel that keeps the number of the file's pixels: by area, whole cells of the mesh only."""
    corners = [(xs[i, j], ys[i, j]) for i, j in _CELL]
    twice = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True))
    cells = np.abs(twice) / 2
    whole = np.isfinite(cells)
    pixels = header.width * header.height * float(whole.sum()) / cells.size
    area = float(cells[whole].sum())
    if pixels < 1 or not 0 < area <= box * 1.01:
        area, pixels = box, header.width * header.height
    return math.sqrt(area / pixels)


_UP, _DOWN = slice(None, -1), slice(1, None)
_CELL = ((_UP, _UP), (_UP, _DOWN), (_DOWN, _DOWN), (_DOWN, _UP))


def lonlat_ring(grid: Grid) -> list[tuple[float, float]] | None:
    """The outline of a grid in longitude and latitude, densified, counterclockwise from the upper left; not cut."""
    if grid.transform is None or grid.crs is None or not reachable(grid.crs, CRS.from_epsg(4326)):
        return None
    steps = np.linspace(0.0, 1.0, 9)[:-1]
    columns = np.concatenate([0 * steps, steps, 0 * steps + 1, 1 - steps]) * grid.width
    rows = np.concatenate([steps, 0 * steps + 1, 1 - steps, 0 * steps]) * grid.height
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    xs, ys = a * columns + b * rows + c, d * columns + e * rows + f
    lons, lats = project(grid.crs, CRS.from_epsg(4326), xs, ys)
    if not (np.isfinite(lons).all() and np.isfinite(lats).all()):
        return None
    if not grid.crs.is_geographic:
        lons = np.unwrap(lons, period=360.0)
    return [(float(lon), float(lat)) for lon, lat in zip(lons, lats, strict=True)]


def lonlat_bounds(grid: Grid) -> tuple[float, float, float, float] | None:
    """(west, south, east, north) in degrees; east may pass 180 where a picture crosses the antimeridian."""
    ring = lonlat_ring(grid)
    if ring is None:
        return None
    lons, lats = [point[0] for point in ring], [point[1] for point in ring]
    return min(lons), min(lats), max(lons), max(lats)


def lonlat_corners(grid: Grid) -> tuple[tuple[float, float], ...] | None:
    """Upper left, upper right, lower right, lower left in longitude and latitude."""
    ring = lonlat_ring(grid)
    return None if ring is None else (ring[0], ring[24], ring[16], ring[8])
