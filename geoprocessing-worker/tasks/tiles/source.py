"""Read the part of a file under one square of tiles, as if that part were a file by itself."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import attrs
import numpy as np
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.windows import Window

from geoprocessing_worker.color.arrays import PICKING
from geoprocessing_worker.geo.approx_transform import source_positions
from geoprocessing_worker.geo.layout import Layout, spread
from geoprocessing_worker.geo.pixel_to_crs import EARTH_GIRTH, Points
from geoprocessing_worker.raster import U8, Grid, Level, SourceHeader
from geoprocessing_worker.render.picture import render_rgba
from geoprocessing_worker.render.plan import ReadSize, RenderPlan
from geoprocessing_worker.source.sampling import open_level, read_window

NODES = 33  # along each side of a square: its outline in the file is smooth in between
MARGIN = 4.0  # output pixels around it that averaging and interpolation need


MIN_WIDTH = 1.3  # output pixels, the error of the scale between two systems included


class Part(NamedTuple):
    """Columns and rows of the full picture, half-open."""

    left: float
    top: float
    right: float
    bottom: float


class TileSource:
    """A file that renders squares.

    Args:
        path: the file.
        header: its header.
        plan: the choices for the whole file, so that squares match at their seams.
        pixel: the side of one of the file's pixels, in metres of Web Mercator.
    """

    def __init__(self, path: Path, header: SourceHeader, plan: RenderPlan, pixel: float) -> None:
        assert plan.layout.target.crs is not None  # noqa: S101 - tiles have a place
        self.path, self.header, self._plan, self._pixel = path, header, plan, pixel
        self._outline = _outline(header, plan)
        self.sparse = self._hides_missing()
        self._blank: U8 | None = None

    def rgba(self, grid: Grid) -> U8 | None:
        """Return (height, width, 4) of a square in Web Mercator. None outside of the file."""
        part = self._part(grid)
        if part is None or self._missing(part):
            return None
        if not self._blank_throughout(grid, part):
            return self._rendered(grid, part)
        if self._blank is None:
            made = self._rendered(grid, part)
            if not (made == made[:1, :1]).all():
                return made
            self._blank = made
        return self._blank

    def _rendered(self, grid: Grid, part: Part) -> U8:
        shrink = self._shrink(grid)
        level = self._level(shrink)
        crop, header = cropped(self.header, level, part, self._times(level, shrink))
        layout = _layout(grid)
        times = self._times(level, shrink)
        size = ReadSize(max(1, crop.width // times), max(1, crop.height // times))
        plan = replace(self._plan, level=crop, read_size=size, layout=layout)
        return render_rgba(self.path, header, plan)

    def _level(self, shrink: float) -> Level:
        """Return the smallest level with at least one pixel per output pixel, up to rounding."""
        return self.header.level_for(self.header.width / (shrink * 1.001))

    def plan_for(self, grid: Grid) -> RenderPlan:
        """Return the choices for one square, as a picture of its own would have them."""
        return replace(self._plan, level=self._level(self._shrink(grid)), layout=_layout(grid))

    def decoded_pixels(self, grid: Grid) -> int:
        """Return the number of the file's pixels decoded for a square: whole blocks, or a single strip from its top."""
        part = self._part(grid)
        if part is None:
            return 0
        level = self._level(self._shrink(grid))
        across, down = level.width / self.header.width, level.height / self.header.height
        if level.sequential:
            return level.width * math.ceil(part.bottom * down)
        if level.stored is not None:
            edges = part.left * across, part.top * down, part.right * across, part.bottom * down
            return level.stored.count_in(*edges) * level.block_width * level.block_height
        width = _blocks(part.left * across, part.right * across, level.block_width)
        return width * _blocks(part.top * down, part.bottom * down, level.block_height)

    def empty(self, grid: Grid) -> bool:
        """Whether the file has nothing to show under a square, without reading its pixels."""
        part = self._part(grid)
        return part is None or self._missing(part)

    def _missing(self, part: Part) -> bool:
        """Whether all blocks of a part are missing, and hidden for that."""
        stored = self.header.full.stored
        return self.sparse and stored is not None and not stored.count_in(*part)

    def _blank_throughout(self, grid: Grid, part: Part) -> bool:
        """Whether a square is inside of the picture and over missing blocks only: all such squares are equal."""
        stored = self.header.full.stored
        if stored is None or stored.count_in(*part):
            return False
        xs, ys = self._positions(grid)
        reach = MARGIN * self._shrink(grid) + 2
        within = (xs > reach) & (xs < self.header.width - reach) & (ys > reach) & (ys < self.header.height - reach)
        return bool(within.all())  # comparisons with NaN are false

    def _positions(self, grid: Grid) -> tuple[Points, Points]:
        """Return columns and rows of the file at the nodes of a square."""
        inverse = source_positions(self.header, _layout(grid), self.header.width, self.header.height)
        steps = np.linspace(0, grid.width, NODES)
        return inverse(*np.meshgrid(steps, steps))

    def _hides_missing(self) -> bool:
        """Whether the pixels of missing blocks are hidden: by nodata or alpha. Otherwise they are black."""
        stored = self.header.full.stored
        if stored is None:
            return False
        missing = np.argwhere(np.diff(np.diff(stored.sums, axis=0), axis=1) == 0)[0]
        window = Window(int(missing[1]) * stored.block_width, int(missing[0]) * stored.block_height, 1, 1)
        with open_level(self.path, self.header, self.header.full) as source:
            _, opacity = read_window(source, self.header, self._plan.bands, self._plan.nodata, window)
        return opacity is not None and not opacity.any()

    def _shrink(self, grid: Grid) -> float:
        """Return the number of the file's pixels along one of the square's."""
        assert grid.transform is not None  # noqa: S101
        return max(1e-9, grid.transform.a / self._pixel)

    def _times(self, level: Level, shrink: float) -> int:
        """Return the factor by which the level is averaged during reading. 1 for picked pixels."""
        if self._plan.resampling in PICKING or self._plan.resampling in {"cubic", "lanczos"}:
            return 1
        return max(1, int(shrink * level.width / self.header.width + 1e-6))

    def _part(self, grid: Grid) -> Part | None:
        """Return the part of the file under a square."""
        header = self.header
        xs, ys = self._positions(grid)
        own_x, own_y = self._within(grid)
        good = np.isfinite(xs) & np.isfinite(ys)
        xs, ys = np.concatenate([xs[good], own_x]), np.concatenate([ys[good], own_y])
        if not xs.size:
            return None
        reach = MARGIN * self._shrink(grid) + 2
        left, right = max(0.0, float(xs.min()) - reach), min(float(header.width), float(xs.max()) + reach)
        top, bottom = max(0.0, float(ys.min()) - reach), min(float(header.height), float(ys.max()) + reach)
        return Part(left, top, right, bottom) if right > left and bottom > top else None

    def _within(self, grid: Grid) -> tuple[Points, Points]:
        """Return points of the file within the square: the mesh misses a file smaller than its cells."""
        assert grid.transform is not None  # noqa: S101
        columns, rows, xs, ys = self._outline
        size = grid.transform.a * grid.width
        left, top = grid.transform.c, grid.transform.f
        inside = ((xs - left) % EARTH_GIRTH < size) & (ys <= top) & (ys > top - size)
        return columns[inside], rows[inside]


def widened(header: SourceHeader, pixel: float, shown: float) -> SourceHeader:
    """Return a header with a picture at least one output pixel wide and high, around its own middle.

    A pixel takes the value at its center, so a narrower picture can lie between two centers. One of this width covers
    the center of the pixel that contains its middle.

    Args:
        header: of the file.
        pixel: the side of one of the file's pixels, in metres of Web Mercator.
        shown: the side of an output pixel, likewise.
    """
    across, down = (max(1.0, MIN_WIDTH * shown / (pixel * side)) for side in (header.width, header.height))
    if header.transform is None or across == down == 1.0:
        return header
    middle = Affine.translation(header.width / 2, header.height / 2)
    return replace(header, transform=header.transform @ middle @ Affine.scale(across, down) @ ~middle)


def _outline(header: SourceHeader, plan: RenderPlan) -> tuple[Points, Points, Points, Points]:
    assert plan.layout.target.crs is not None  # noqa: S101
    xs, ys = spread(header, plan.layout.target.crs)
    columns, rows = np.meshgrid(np.linspace(0, header.width, xs.shape[1]), np.linspace(0, header.height, xs.shape[0]))
    good = np.isfinite(xs) & np.isfinite(ys)
    return columns[good], rows[good], xs[good], ys[good]


def _layout(grid: Grid) -> Layout:
    return Layout(grid, grid.width, grid.height, True, False, False, "a tile of a web map")


def _blocks(first: float, last: float, block: int) -> int:
    return (math.ceil(last / block) - math.floor(first / block)) * block


def cropped(header: SourceHeader, level: Level, part: Part, times: int) -> tuple[Level, SourceHeader]:
    """Return a part of a level, and the header of a file that holds nothing else.

    It begins and ends at multiples of `times` pixels, so that neighbors average the same pixels together.
    """
    across, down = level.width / header.width, level.height / header.height
    left, right = _aligned(part.left * across, part.right * across, times, level.width)
    top, bottom = _aligned(part.top * down, part.bottom * down, times, level.height)
    crop = replace(level, left=left, top=top, width=right - left, height=bottom - top)
    own = Affine.scale(1 / across, 1 / down) @ Affine.translation(left, top)
    return crop, replace(
        header,
        width=crop.width,
        height=crop.height,
        levels=(crop,),
        transform=None if header.transform is None else header.transform @ own,
        gcps=tuple(_moved(point, across, down, left, top) for point in header.gcps),
        rpc=None if header.rpc is None else _moved_rpc(header.rpc, across, down, left, top),
    )


def _aligned(first: float, last: float, times: int, most: int) -> tuple[int, int]:
    begin = math.floor(first / times) * times
    return begin, max(begin + 1, min(most, math.ceil(last / times) * times))


def _moved(point: GroundControlPoint, across: float, down: float, left: int, top: int) -> GroundControlPoint:
    return GroundControlPoint(
        row=point.row * down - top, col=point.col * across - left, x=point.x, y=point.y, z=point.z
    )


def _moved_rpc(rpc: RPC, across: float, down: float, left: int, top: int) -> RPC:
    # The polynomials count from the center of the first pixel.
    return attrs.evolve(
        rpc,
        samp_off=(rpc.samp_off + 0.5) * across - 0.5 - left,
        line_off=(rpc.line_off + 0.5) * down - 0.5 - top,
        samp_scale=rpc.samp_scale * across,
        line_scale=rpc.line_scale * down,
    )
