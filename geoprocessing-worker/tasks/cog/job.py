"""`geotiff_to_cog`: the same pixels in the same place, laid out so that a part is readable without the rest.

GDAL's COG driver writes it, and rio-cogeo validates its layout. rio-cogeo's own translation would go
through a warped view, which zeroes pixels under a mask. It also replaces ground control points by an affine transform
and an alpha band.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.shutil
from rasterio.errors import CRSError

from geoprocessing_worker.color.bands import BandChoice
from geoprocessing_worker.color.lab import is_lab
from geoprocessing_worker.errors import ErrorClass, JobError, invalid_input, too_large
from geoprocessing_worker.geo.crs import parse_crs, same
from geoprocessing_worker.geo.layout import lay_out
from geoprocessing_worker.handlers import (
    ProgressCallback,
    TaskRequest,
    TaskResult,
    finished,
    unfinished_path,
)
from geoprocessing_worker.output.describe import describe_source, own_grid, sample_bands
from geoprocessing_worker.output.stac import Json, write_item
from geoprocessing_worker.raster import Georeferencing, SourceHeader
from geoprocessing_worker.render.cost import allowance, stored_bytes, stored_pixels
from geoprocessing_worker.render.plan import choose_resampling, sparse_hints
from geoprocessing_worker.render.task_options import LOSSY, CogOptions, Compression
from geoprocessing_worker.source.gdal import GDAL_OPTIONS, gdal_environment, gdal_options, open_source
from geoprocessing_worker.source.gdal_errors import named_errors
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.source.sampling import Sample
from geoprocessing_worker.source.texts import in_utf8
from geoprocessing_worker.tasks.cog.check import check_copy, check_web_copy, different_place
from geoprocessing_worker.tasks.cog.crs import (
    GIVE_ANOTHER,
    WEB_TILES,
    aligned_by_gdal,
    cannot_hold,
    in_degrees,
    is_bent,
    not_aligned,
    note_of,
    placed_source,
    with_shift,
)
from geoprocessing_worker.tasks.cog.layout import BLOCK, WEB, TileLayout, creation_options, faults_of_layout
from geoprocessing_worker.tasks.cog.masks import refuse_lost_colors, refuse_lost_mask
from geoprocessing_worker.tasks.cog.metadata import refuse_large_metadata
from geoprocessing_worker.tasks.cog.source import bands_as_data, needs_stand_in, notes_of, stand_in
from geoprocessing_worker.tiff.tags import SEPARATED

# Decoded once for the picture and once more for its overviews: about five minutes on one slow core.
MAX_DECODED_BYTES = 48 << 30
# Bytes decoded, repetitions included. A file that is small for its pixels may cost a minute (`cost.allowance`).
LEAST_WORK_BYTES = 4 << 30
MAX_WORK_BYTES = 96 << 30
MANY_BANDS = 128  # GDAL takes longer for each band beyond
LARGEST_CACHE = 384 << 20  # bytes of source blocks that GDAL may cache, so that each is decoded once
LARGEST_TILE = 128 << 20  # bytes of all bands of one tile. GDAL has three of them in memory.
CHEAPER = 8  # GDAL skips missing blocks this many times faster than it decodes: 60 gigapixels in 270 s
TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"

# Band counts of each lossy codec, an alpha band included.
LOSSY_BANDS = {Compression.JPEG: (1, 3, 4), Compression.WEBP: (3, 4)}


def make_cog(request: TaskRequest[CogOptions], report: ProgressCallback) -> TaskResult:
    """Write `<stem>.tif` and `<stem>.json`.

    Raises:
        JobError: as `inspect_file`, or `too_complex`, `invalid_payload` (a codec that cannot hold such bands),
            `unsupported_photometric`, `unsupported_mask`, `unsupported_crs`, `not_georeferenced`, `self_check_failed`.
    """
    source, options = request.file, request.options
    started = time.perf_counter()
    with gdal_environment(GDAL_TIFF_INTERNAL_MASK="YES"), named_errors(source):
        report("inspect", 0.0, "Reading the file's header")
        header = inspect_file(source, options.page, validate_headers=request.validate_headers)
        _refuse_impossible(header, options)
        choice, sample = sample_bands(source, header)
        data = choice.not_opacity
        header = bands_as_data(header, data)
        _refuse_codec(header, options, data)
        method, why = _overview_method(header, options, choice, sample)
        inspected = time.perf_counter()
        report("translate", 0.0, "Writing tiles and overviews")
        unfinished = unfinished_path(request.output_folder, f"{request.stem}.tif")
        pixel_bytes = _sample_bytes(header) * len(header.bands)
        tiles = (
            WEB
            if options.web_optimized
            else TileLayout.of(header.width, header.height, options.block_size, pixel_bytes)
        )
        _afford(source, header, options, tiles, twice=needs_stand_in(source, header, data))
        wanted = creation_options(options, header, tiles, method)
        with (
            _readable(source, header, data, request.output_folder) as (readable, page),
            open_source(readable, directory=page.directory) as dataset,
        ):
            refuse_lost_mask(dataset, header, options)
            refuse_large_metadata(dataset, web_optimized=options.web_optimized)
            refuse_lost_colors(dataset, header, options)
            by_gdal = not options.web_optimized or aligned_by_gdal(dataset, header, header)
            if by_gdal:
                _write(dataset, unfinished, tiles, wanted, _kept_bytes(header))
        placed, place_note = header, None
        made_header = inspect_file(unfinished) if by_gdal else None
        if made_header is None or (not options.web_optimized and different_place(header, made_header)):
            with _readable(source, header, data, request.output_folder) as (readable, page):
                write = partial(_write, path=unfinished, tiles=tiles, wanted=wanted)
                placed, made_header = _write_placed(readable, unfinished, page, write, web=options.web_optimized)
            # The check reads the file itself, not the stand-in.
            placed = replace(placed, directory=header.directory)
            place_note = None if options.web_optimized else note_of(header)
        translated = time.perf_counter()
        report("check", 0.0, "Checking the copy")
        _check(source, unfinished, (placed, made_header), options, tiles)
        notes = [*([place_note] if place_note else []), *notes_of(source, header, data, made_header), *header.notes]
    made_header = replace(made_header, displaced=header.displaced, caveat=header.caveat, remarks=header.remarks)
    made = finished(request.output_folder, f"{request.stem}.tif", "image/tiff")
    block = describe_source(request.source_name, made_header, own_grid(made_header), (choice, sample))
    block["cog"] = {
        "compression": options.compression.value,
        "overviewResampling": {"method": method, "reason": why},
        "webOptimized": options.web_optimized,
        "sizeBytes": made.size_bytes,
        "notes": [*notes],
    }
    asset: Json = {"href": made.name, "type": TIFF, "roles": ["data"]}
    item = request.output_folder / f"{request.stem}.json"
    companion = write_item(item, made_header, own_grid(made_header), block, {"data": asset})
    timings = {"inspect": inspected - started, "translate": translated - inspected}
    return TaskResult(
        outputs=(made, companion),
        metadata=block,
        timings=timings | {"check": time.perf_counter() - translated},
    )


def _sample_bytes(header: SourceHeader) -> int:
    return np.dtype(header.bands[0].dtype).itemsize


def _row_of_blocks(header: SourceHeader) -> int:
    """Return the bytes of the source's blocks, in all bands, under one row of tiles."""
    full = header.full
    across = -(-header.width // full.block_width) * full.block_width
    return across * full.block_height * _sample_bytes(header) * len(header.bands)


def _kept_bytes(header: SourceHeader) -> int:
    """Return the bytes of decoded blocks worth caching: a row of them. 0 if that is too much, or of no use."""
    row = _row_of_blocks(header)
    return row if row <= LARGEST_CACHE else 0


def _times_decoded(header: SourceHeader, tiles: TileLayout) -> float:
    """Return how often a block is decoded: for each row of tiles where GDAL cannot cache a row of blocks.

    Rearranging bands counts as another decoding. As measured, 4,096 bands take twenty times as long per byte.
    """
    rows = 1 if _kept_bytes(header) else -(-min(header.full.block_height, header.height) // tiles.block)
    return rows * max(1.0, len(header.bands) / MANY_BANDS)


def _afford(source: Path, header: SourceHeader, options: CogOptions, tiles: TileLayout, *, twice: bool = False) -> None:
    """Refuse a file that would take too much time or memory, before anything is decoded.

    `twice`: the file is copied once more, before GDAL makes the result.

    Raises:
        JobError: `too_complex`, `too_large`.
    """
    size, pixels = _sample_bytes(header) * len(header.bands), header.width * header.height
    if (tile := tiles.block**2 * size) > LARGEST_TILE:
        raise too_large("bands", tile, LARGEST_TILE, f"bytes in a tile of {tiles.block} x {tiles.block} pixels")
    sparse = header.full.stored is not None and not options.web_optimized
    decoded = stored_pixels(header.full) * size + pixels * size // CHEAPER if sparse else pixels * size
    times = _times_decoded(header, tiles)
    work = int(decoded * times) + decoded * twice + pixels * header.has_mask
    stored = stored_bytes(source, header.directory)
    most = MAX_DECODED_BYTES if sparse else allowance(stored, LEAST_WORK_BYTES, MAX_WORK_BYTES)
    for found, allowed in ((decoded, MAX_DECODED_BYTES), (work, most)):
        if found > allowed:
            raise invalid_input(
                "too_complex",
                f"Rewriting this file means decoding {found >> 20:,} MB. The limit is {allowed >> 20:,} MB for it. "
                f"{'Cut it into parts' if times == 1 else 'Save it in tiles of 256 by 256 pixels'}.",
                decoded=found,
                allowed=allowed,
            )


def _refuse_impossible(header: SourceHeader, options: CogOptions) -> None:
    if header.miniswhite and header.palette is None and header.bands[0].bits != 1:
        raise invalid_input(
            "unsupported_photometric",
            "Its grays count from white to black, which a cloud optimized GeoTIFF made here cannot declare. "
            "Save it as MINISBLACK first.",
        )
    if is_lab(header.photometric) or header.photometric == SEPARATED:
        raise invalid_input(
            "unsupported_photometric",
            "Its colors are inks or L*a*b*, which a cloud optimized GeoTIFF made here cannot declare. Save it as RGB.",
        )
    if options.web_optimized and is_bent(header):
        raise invalid_input(
            "unsupported_crs",
            "Its ground control points need a thin-plate spline, which GDAL cannot align with web tiles. "
            "Omit webOptimized.",
        )
    if header.palette is not None and header.bands[0].dtype not in {"uint8", "uint16"}:
        raise invalid_input(
            "unsupported_data_type",
            f"A color table for numbers of the type {header.bands[0].dtype} cannot be written. Save it as uint8.",
            dtype=header.bands[0].dtype,
        )
    if options.web_optimized:
        _refuse_placeless(header)


def _refuse_codec(header: SourceHeader, options: CogOptions, data: tuple[int, ...]) -> None:
    """Refuse bands that a lossy codec cannot hold. `data`: bands declared as alpha that hold no opacity."""
    bands = LOSSY_BANDS.get(options.compression)
    if bands is None:
        return
    bytes_only = all(band.dtype == "uint8" and band.bits in {None, 8} for band in header.bands)
    if not bytes_only or len(header.bands) not in bands or header.palette is not None or _one_too_many(header, options):
        named = " and ".join(map(str, data))
        cure = f" Or save the file without band {named}, which is called alpha but holds no opacity." if data else ""
        raise invalid_input(
            "invalid_payload",
            f"compression was {options.compression.value!r}: allowed for {' or '.join(map(str, bands))} bands of "
            "8 bits without a color table only, an alpha band that webOptimized adds among them. "
            f"deflate and zstd hold anything.{cure}",
            bands=len(header.bands),
            dtype=header.bands[0].dtype,
        )


def _refuse_placeless(header: SourceHeader) -> None:
    """Refuse a file that cannot be reprojected to Web Mercator."""
    words = "A file without a place on Earth cannot be aligned with web tiles."
    if header.crs is None or header.georeferencing is Georeferencing.NONE:
        why = header.displaced or ""
        raise invalid_input("not_georeferenced", f"{words} {why[:1].upper()}{why[1:]}{'.' if why else ''}".strip())
    crs = parse_crs(WEB_TILES)
    target = lay_out(header, crs, BLOCK).target
    if target.crs is None or not same(target.crs, crs):
        raise invalid_input(
            "not_georeferenced",
            f"{words} {header.crs.name[:80]} cannot be transformed to Web Mercator. Omit webOptimized.",
        )


def _one_too_many(header: SourceHeader, options: CogOptions) -> bool:
    """Whether the alpha band that GDAL adds for the area around the source is one band too many."""
    opaque = header.bands[0].nodata is None and all(band.colorinterp != "alpha" for band in header.bands)
    return options.web_optimized and opaque and len(header.bands) == max(LOSSY_BANDS[options.compression])


def _overview_method(header: SourceHeader, options: CogOptions, choice: BandChoice, sample: Sample) -> tuple[str, str]:
    values = np.concatenate(sample.values)
    method, why = choose_resampling(header, options.resampling, choice, values, sparse_hints(choice, sample, values))
    if any(np.dtype(band.dtype).kind == "c" for band in header.bands):
        return "nearest", "complex numbers are not averaged"
    return method, why


@contextmanager
def _readable(
    source: Path, header: SourceHeader, data: tuple[int, ...], folder: Path
) -> Iterator[tuple[Path, SourceHeader]]:
    """Yield the file for GDAL to copy, and the header with the page's directory in it. Both may be the source's."""
    copy = unfinished_path(folder, "mended.tif")
    with (
        in_utf8(source, header.directory, copy) as readable,
        gdal_options(GDAL_CACHEMAX=GDAL_OPTIONS["GDAL_CACHEMAX"] + _kept_bytes(header)),
        stand_in(readable, header, data, folder) as (path, directory),
    ):
        yield path, replace(header, directory=directory)


def _write(dataset: Any, path: Path, tiles: TileLayout, wanted: dict[str, str], kept: int = 0) -> None:
    """Write the copy. `kept` are bytes of GDAL's cache beside its usual ones."""
    with gdal_options(
        GDAL_TIFF_INTERNAL_MASK="YES",
        GDAL_TIFF_OVR_BLOCKSIZE=tiles.overview_block,
        GDAL_CACHEMAX=GDAL_OPTIONS["GDAL_CACHEMAX"] + kept,
    ):
        rasterio.shutil.copy(dataset, str(path), driver="COG", **wanted)


def _write_placed(
    source: Path, path: Path, header: SourceHeader, write: Callable[[Any], None], *, web: bool
) -> tuple[SourceHeader, SourceHeader]:
    """Write the copy from a source that has the header's place, in its own units, in degrees, or with its shift.

    Returns:
        The placing header, and that of the copy.

    Raises:
        JobError: `unsupported_crs`.
    """
    for placed in (header, in_degrees(header), *([with_shift(header)] if web else [])):
        with placed_source(source, placed, path.parent) as dataset:
            if web and not aligned_by_gdal(dataset, placed, header):
                continue
            write(dataset)
        made = inspect_file(path)
        if web or not different_place(placed, made):
            return placed, made
    raise not_aligned(header) if web else cannot_hold(header)


def _check(
    source: Path, made: Path, headers: tuple[SourceHeader, SourceHeader], options: CogOptions, tiles: TileLayout
) -> None:
    """Check the layout of the copy, and its content against the file's."""
    try:
        wrong = faults_of_layout(made, tiles)
    except CRSError as error:  # rasterio opens no file with such a system, so the copy would be useless
        raise invalid_input(
            "unsupported_crs",
            f"PROJ cannot parse the coordinate system that the file declares. {GIVE_ANOTHER}",
        ) from error
    if wrong:
        raise JobError(
            "self_check_failed",
            "The finished file is not laid out as a cloud optimized GeoTIFF must be. This is a fault of the worker.",
            ErrorClass.INTERNAL,
            {"errors": wrong[:5]},
        )
    quality = options.quality if options.compression in LOSSY else None
    check = check_web_copy if options.web_optimized else check_copy
    check(source, made, *headers, quality=quality)
