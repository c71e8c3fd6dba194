"""`geotiff_to_tiles`: a map too large for one picture, as tiles in one archive.

Bands, stretch and nodata are chosen once for the whole file. The tiles of the highest zoom are rendered in squares of
eight by eight, each from the part of the file under it. Every tile above is the mean of the four below it. So the file
is decoded about once, whatever its size, and memory holds one square and a few tiles of each zoom.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from affine import Affine
from pyproj import CRS

from geoprocessing_worker.color.arrays import PICKING
from geoprocessing_worker.color.bands import BandChoice, choose_bands
from geoprocessing_worker.errors import JobError, invalid_input
from geoprocessing_worker.geo.crs import parse_crs, same
from geoprocessing_worker.geo.layout import Layout, lay_out
from geoprocessing_worker.geo.outline import lonlat_bounds
from geoprocessing_worker.geo.pixel_to_crs import EARTH_GIRTH
from geoprocessing_worker.handlers import (
    ProgressCallback,
    TaskRequest,
    TaskResult,
    finished,
    unfinished_path,
)
from geoprocessing_worker.output.describe import describe_source, own_grid
from geoprocessing_worker.output.encode import encode
from geoprocessing_worker.output.stac import Json, write_item
from geoprocessing_worker.raster import U8, Georeferencing, Grid, SourceHeader
from geoprocessing_worker.render.cost import allowance, stored_bytes
from geoprocessing_worker.render.options import OutputFormat
from geoprocessing_worker.render.picture import pack
from geoprocessing_worker.render.plan import HeaderChoices, RenderPlan, make_plan
from geoprocessing_worker.render.task_options import TilesOptions
from geoprocessing_worker.render.threads import in_order
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.gdal_errors import named_errors
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.source.sampling import Sample, take_sample
from geoprocessing_worker.tasks.tiles.archive import Spool, archive_header
from geoprocessing_worker.tasks.tiles.check import check_archive
from geoprocessing_worker.tasks.tiles.grid import HALF_GIRTH, SIDE, Coverage, SparseCoverage, Tile, Zooms, choose_zooms
from geoprocessing_worker.tasks.tiles.pyramid import Pyramid, depth
from geoprocessing_worker.tasks.tiles.source import TileSource, widened

WEB_MERCATOR = "EPSG:3857"
MAX_DECODED_BYTES = 96 << 30  # about ten minutes of decoding on one slow core
# A minute on one core each. A large file may cost more, up to the limits (`cost.allowance`).
LEAST_DECODED_BYTES = 12 << 30
LEAST_RENDERED = 400_000_000  # pixels
MAX_RENDERED = 1 << 40  # pixels. The limit on tiles comes first.
CHEAPER = 8  # assumed: copying a square of missing blocks is this many times faster than rendering
LARGEST_ARCHIVE = 4000 << 20  # bytes of tiles. With its directories the archive stays below 4 GiB.
UNBOUNDED = 1 << 40  # pixels: tiles are neither enlarged nor fitted
SAMPLED_SIDE = 2048  # pixels: the size at which values are sampled
WORLD = (-180.0, -85.0, 180.0, 85.0)
PMTILES = "application/vnd.pmtiles"


@dataclass(frozen=True)
class Job:
    """The state before the first tile is rendered."""

    header: SourceHeader
    plan: RenderPlan
    box: Coverage
    zooms: Zooms
    source: TileSource
    block: Json


def make_tiles(request: TaskRequest[TilesOptions], report: ProgressCallback) -> TaskResult:
    """Write `<stem>.pmtiles` and `<stem>.json`.

    Raises:
        JobError: as `inspect_file`, or `not_georeferenced`, `too_many_tiles`, `too_complex`, `no_valid_pixels`,
            `output_too_large`, `self_check_failed`.
    """
    started = time.perf_counter()
    name, folder = f"{request.stem}.pmtiles", request.output_folder
    with gdal_environment(), named_errors(request.file):
        report("inspect", 0.0, "Reading the file's header")
        job = _plan(request)
        inspected = time.perf_counter()
        report("render", 0.0, f"Up to {job.zooms.tiles:,} tiles, zooms {job.zooms.first} to {job.zooms.last}")
        unfinished = unfinished_path(folder, name)
        with (folder / ".tiles").open("w+b") as file:
            spool = Spool(file, LARGEST_ARCHIVE)
            _render(job, request.options, spool, report)
            if not spool.places:
                raise invalid_input("no_valid_pixels", "No pixel of this file has data, so there is no tile to make.")
            rendered = time.perf_counter()
            report("package", 0.0, "Writing the archive")
            tilejson = _tilejson(request, job, len(spool.places))
            spool.write(unfinished, archive_header(request.options.output_format, *_bounds(job)), tilejson)
        (folder / ".tiles").unlink()
        report("package", 50.0, "Checking the archive")
        check = check_archive(unfinished, spool.tiles(), job.source, tilejson, request.options)
    made = finished(folder, name, PMTILES)
    block: Json = {**job.block, "tiles": tilejson, "selfCheck": {**check}}
    asset: Json = {"href": name, "type": PMTILES, "roles": ["visual"]}
    item = write_item(folder / f"{request.stem}.json", job.header, own_grid(job.header), block, {"tiles": asset})
    timings = {"inspect": inspected - started, "render": rendered - inspected}
    return TaskResult(
        outputs=(made, item),
        metadata=block,
        timings=timings | {"package": time.perf_counter() - rendered},
    )


def _plan(request: TaskRequest[TilesOptions]) -> Job:
    source, options, crs = request.file, request.options, parse_crs(WEB_MERCATOR)
    own = None if options.source_crs is None else parse_crs(options.source_crs)
    header = inspect_file(source, options.page, own, validate_headers=request.validate_headers)
    if header.crs is None or header.georeferencing is Georeferencing.NONE:
        raise _not_georeferenced(_missing_place(header))
    target = _in_web_mercator(header, crs)
    box = _box(target)
    pixel = _pixel(target)
    plan, sampled = _choices(source, header, options, lay_out(header, crs, SAMPLED_SIDE))
    tiles = TileSource(source, header, plan, pixel)
    if tiles.sparse:
        box = SparseCoverage.of(box, lambda tile: tiles.empty(tile.grid(crs)))
    zooms = choose_zooms(box, pixel, options.min_zoom, options.max_zoom)
    tiles = TileSource(source, widened(header, pixel, EARTH_GIRTH / SIDE / 2**zooms.last), plan, pixel)
    block = describe_source(request.source_name, header, own_grid(header), sampled)
    block["choices"] = plan.explain(*([zooms.note] if zooms.note else []))
    job = Job(header, plan, box, zooms, tiles, block)
    _afford(job)
    return job


def _in_web_mercator(header: SourceHeader, crs: CRS) -> Grid:
    unreachable = "No part of it can be transformed to Web Mercator"
    try:
        target = lay_out(header, crs, UNBOUNDED).target
    except JobError as error:
        # Its advice is another coordinate system, but tiles have only this one.
        raise _not_georeferenced(unreachable) if error.code == "bad_crs" else error from None
    if target.crs is None or target.transform is None or not same(target.crs, crs):
        raise _not_georeferenced(unreachable)
    return target


def _missing_place(header: SourceHeader) -> str:
    if header.displaced is not None:
        advice = ": give sourceCrs" if header.crs_would_place else ""
        return f"{header.displaced[:1].upper()}{header.displaced[1:]}{advice}"
    if header.crs_would_place:
        return "It has coordinates but no coordinate system: give sourceCrs"
    return "It has no place on Earth: put the place into the file, with QGIS or gdal_translate"


def _not_georeferenced(why: str) -> JobError:
    return invalid_input("not_georeferenced", f"The file cannot become tiles of a web map. {why}.")


def _box(grid: Grid) -> Coverage:
    assert grid.transform is not None  # noqa: S101 - checked before
    left, top = grid.transform.c, grid.transform.f
    right, bottom = grid.transform @ (grid.width, grid.height)
    return Coverage(left, max(-HALF_GIRTH, bottom), right, min(HALF_GIRTH, top))


def _pixel(grid: Grid) -> float:
    assert grid.transform is not None  # noqa: S101
    return float(np.sqrt(abs(grid.transform.determinant)))


def _choices(
    source: Path, header: SourceHeader, options: TilesOptions, layout: Layout
) -> tuple[RenderPlan, tuple[BandChoice, Sample]]:
    """Make the choices for a picture of the whole file, without the limits on its cost."""
    choice = choose_bands(header, options.bands)
    nodata = tuple(header.band(index).nodata if options.nodata is None else options.nodata for index in choice.indexes)
    level = header.level_for(layout.read_width)
    sample = take_sample(source, header, choice, nodata, level)
    return make_plan(header, HeaderChoices(choice, layout, level, nodata, 0), sample, options), (sample.choice, sample)


def _afford(job: Job) -> None:
    """Refuse tiles that would take too long to decode or to render, such as of strips: each square reads whole rows.

    Raises:
        JobError: `too_complex`.
    """
    header = job.header
    bands = len(header.bands) if header.pixel_interleaved else len(job.plan.bands.indexes)
    size = bands * np.dtype(header.bands[0].dtype).itemsize
    decoded = rendered = 0
    stored = stored_bytes(job.source.path, header.directory)
    most_decoded = allowance(stored, LEAST_DECODED_BYTES, MAX_DECODED_BYTES)
    most_rendered = allowance(stored, LEAST_RENDERED, MAX_RENDERED)
    for grid in _squares(job):
        pixels = job.source.decoded_pixels(grid)
        decoded += pixels * size
        rendered += grid.width * grid.height // (1 if pixels else CHEAPER)
        if decoded > most_decoded:
            raise invalid_input(
                "too_complex",
                f"These tiles mean decoding more than {most_decoded >> 30} GB of pixels. Save the file in tiles "
                "(as a cloud optimized GeoTIFF), or ask for a lower maxZoom.",
                allowed=most_decoded,
            )
        if rendered > most_rendered:
            raise invalid_input(
                "too_complex",
                f"These tiles mean rendering more than {most_rendered // 10**6:,} megapixels, too many for a file of "
                "this size in bytes. Ask for a lower maxZoom.",
                allowed=most_rendered,
            )


def _squares(job: Job) -> Iterator[Grid]:
    crs, deep = parse_crs(WEB_MERCATOR), depth(job.zooms)
    for tile in job.box.tiles(job.zooms.last - deep):
        yield tile.grid(crs, 2**deep)


# -- rendering --------------------------------------------------------------------------------------------------------


def _render(job: Job, options: TilesOptions, spool: Spool, report: ProgressCallback) -> None:
    deep = depth(job.zooms)
    squares, done = job.box.count(job.zooms.last - deep), 0

    def emit(tiles: list[tuple[Tile, U8]]) -> None:
        contents = in_order(lambda tile: _encoded(tile[1], options), tiles)
        for (tile, _), content in zip(tiles, contents, strict=True):
            spool.put(tile, content)

    def square(root: Tile) -> U8 | None:
        nonlocal done
        done += 1
        report("render", 100.0 * done / squares, f"{len(spool.places):,} tiles")
        return job.source.rgba(root.grid(parse_crs(WEB_MERCATOR), 2**deep))

    picked = job.plan.resampling in PICKING
    Pyramid(job.box, job.zooms, square, emit, picked=picked).build()


def _encoded(pixels: U8, options: TilesOptions) -> bytes:
    if (pixels == pixels[:1, :1]).all():
        return _encoded_plain(tuple(pixels[0, 0].tolist()), options.output_format, options.quality)
    return encode(pack(pixels, Grid(SIDE, SIDE, None, None)), options.output_format, options.quality)


@lru_cache(maxsize=64)
def _encoded_plain(color: tuple[int, ...], output_format: OutputFormat, quality: int) -> bytes:
    """Encode a tile of one color."""
    pixels = np.full((SIDE, SIDE, len(color)), color, dtype=np.uint8)
    return encode(pack(pixels, Grid(SIDE, SIDE, None, None)), output_format, quality)


# -- metadata ---------------------------------------------------------------------------------------------------------


def _bounds(job: Job) -> tuple[tuple[float, float, float, float], tuple[float, float, int]]:
    """Return degrees. East may not pass 180, so a map that crosses the antimeridian has the bounds of the world."""
    box = job.box
    affine = Affine(box.right - box.left, 0, box.left, 0, box.bottom - box.top, box.top)
    west, south, east, north = lonlat_bounds(Grid(1, 1, affine, parse_crs(WEB_MERCATOR))) or WORLD
    center = ((west + east) / 2 + 180.0) % 360.0 - 180.0
    if east > 180.0 or west < -180.0:
        west, east = -180.0, 180.0
    return (west, south, east, north), (center, (south + north) / 2, job.zooms.first)


def _tilejson(request: TaskRequest[TilesOptions], job: Job, count: int) -> Json:
    """Return the archive's own metadata, as TileJSON."""
    bounds, center = _bounds(job)
    return {
        "name": request.stem,
        "type": "overlay",
        "format": {"jpeg": "jpg"}.get(request.options.output_format.value, request.options.output_format.value),
        "bounds": [*bounds],
        "center": [*center],
        "minzoom": job.zooms.first,
        "maxzoom": job.zooms.last,
        "tileCount": count,
    }
