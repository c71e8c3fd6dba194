"""The work of `geotiff_to_cog`: the same pixels in the same place, laid out so that a part is read without the rest.

GDAL's COG driver writes it and rio-cogeo holds it against the layout's rules. rio-cogeo's own translation would go
through a warped view, which zeroes what a mask hides, and puts an affine transform and an alpha band in the place of
ground control points.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.shutil
from pyproj import CRS
from rasterio.enums import MaskFlags
from rio_cogeo.cogeo import cog_validate

from geoprocessing_worker.bands import BandChoice
from geoprocessing_worker.cog_check import check_copy, check_web_copy
from geoprocessing_worker.crs import per_degree
from geoprocessing_worker.directory import SEPARATED
from geoprocessing_worker.errors import ErrorClass, JobError, refused
from geoprocessing_worker.facts import facts, own_grid, sample_of
from geoprocessing_worker.handlers import (
    OutputFile,
    Report,
    TaskRequest,
    TaskResult,
    finished,
    unfinished_path,
    write_whole,
)
from geoprocessing_worker.header import SourceHeader
from geoprocessing_worker.inspection import inspect_file
from geoprocessing_worker.lab import is_lab
from geoprocessing_worker.opening import gdal_environment, open_source
from geoprocessing_worker.plan import choose_resampling, few_of
from geoprocessing_worker.refusals import named_errors
from geoprocessing_worker.sampling import Sample
from geoprocessing_worker.stac import item, json_bytes
from geoprocessing_worker.task_options import LOSSY, CogOptions, Compression
from geoprocessing_worker.texts import mended

# Decoded once for the picture and once more for its overviews: about five minutes of one slow core.
MAX_DECODED_BYTES = 48 << 30
MOST_BENT = 1.0  # pixels
TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"

# Bands that each lossy codec takes, an alpha band among them.
LOSSY_BANDS = {Compression.JPEG: (1, 3, 4), Compression.WEBP: (3, 4)}


def make_cog(request: TaskRequest[CogOptions], report: Report) -> TaskResult:
    """Writes `<stem>.tif` and `<stem>.json`.

    Raises:
        JobError: as `inspect_file`; `too_complex`, `invalid_payload` (a codec that cannot hold such bands),
            `unsupported_photometric`, `unsupported_crs`, `not_georeferenced`, `self_check_failed`.
    """
    source, options = request.file, request.options
    started = time.perf_counter()
    with gdal_environment(GDAL_TIFF_INTERNAL_MASK="YES"), named_errors(source):
        report("inspect", 0.0, "Reading the file's header")
        header = inspect_file(source, options.page, validate_headers=request.validate_headers)
        _refuse_impossible(header, options)
        choice, sample = sample_of(source, header)
        method, why = _overview_method(header, options, choice, sample)
        inspected = time.perf_counter()
        report("translate", 0.0, "Writing tiles and overviews")
        unfinished = unfinished_path(request.output_folder, f"{request.stem}.tif")
        copy = unfinished_path(request.output_folder, "mended.tif")
        with (
            mended(source, header.directory, copy) as readable,
            open_source(readable, directory=header.directory) as dataset,
        ):
            _refuse_other_mask(dataset, header)
            rasterio.shutil.copy(dataset, str(unfinished), driver="COG", **_creation_options(options, header, method))
        translated = time.perf_counter()
        report("check", 0.0, "Checking what was made")
        made_header = replace(_check(source, unfinished, header, options), remarks=header.remarks)
    made = finished(request.output_folder, f"{request.stem}.tif", "image/tiff")
    block = _told(request, made_header, choice, sample)
    block["cog"] = {
        "compression": options.compression.value,
        "overviewResampling": {"method": method, "reason": why},
        "webOptimized": options.web_optimized,
        "sizeBytes": made.size_bytes,
    }
    companion = _companion(request, made, made_header, block)
    timings = {"inspect": inspected - started, "translate": translated - inspected}
    return TaskResult(
        outputs=(made, companion),
        metadata=block,
        timings=timings | {"check": time.perf_counter() - translated},
    )


def _refuse_impossible(header: SourceHeader, options: CogOptions) -> None:
    size = np.dtype(header.bands[0].dtype).itemsize
    decoded = header.width * header.height * len(header.bands) * size
    if decoded > MAX_DECODED_BYTES:
        raise refused(
            "too_complex",
            f"The file has {decoded >> 20:,} MB of pixels; at most {MAX_DECODED_BYTES >> 20:,} MB are rewritten here. "
            "Cut it into parts.",
            decoded=decoded,
            allowed=MAX_DECODED_BYTES,
        )
    if header.miniswhite and header.palette is None and header.bands[0].bits != 1:
        raise refused(
            "unsupported_photometric",
            "Its grays count from white to black, which a cloud optimised GeoTIFF made here cannot say. "
            "Save it as MINISBLACK first.",
        )
    if is_lab(header.photometric) or header.photometric == SEPARATED:
        raise refused(
            "unsupported_photometric",
            "Its colours are inks or L*a*b*, which a cloud optimised GeoTIFF made here cannot say. Save it as RGB.",
        )
    if options.web_optimized and (_is_bent(header) or (header.crs is not None and not _in_degrees(header.crs))):
        words = "ground control points need a thin-plate spline" if header.gcp_spline else "degrees have another unit"
        raise refused("unsupported_crs", f"Its {words}, which GDAL cannot align with web tiles. Omit webOptimized.")
    if header.palette is not None and header.bands[0].dtype not in {"uint8", "uint16"}:
        raise refused(
            "unsupported_data_type",
            f"A colour table for numbers of the type {header.bands[0].dtype} cannot be written. Save it as uint8.",
            dtype=header.bands[0].dtype,
        )
    if options.web_optimized and header.crs is None:
        raise refused("not_georeferenced", "A file without a place on Earth cannot be aligned with web tiles.")
    bands = LOSSY_BANDS.get(options.compression)
    if bands is None:
        return
    bytes_only = all(band.dtype == "uint8" and band.bits in {None, 8} for band in header.bands)
    if not bytes_only or len(header.bands) not in bands or header.palette is not None:
        raise refused(
            "invalid_payload",
            f"compression was {options.compression.value!r}: allowed for {' or '.join(map(str, bands))} bands of "
            "8 bits without a colour table only; deflate and zstd hold anything.",
            bands=len(header.bands),
            dtype=header.bands[0].dtype,
        )


def _is_bent(header: SourceHeader) -> bool:
    """Whether the polynomial by which GDAL places a file misses its control points."""
    polynomial = header.gcp_polynomial_residual
    return header.gcp_spline and (polynomial is None or polynomial > MOST_BENT)


def _in_degrees(crs: CRS) -> bool:
    return not crs.is_geographic or per_degree(crs) == 1.0


def _refuse_other_mask(dataset: Any, header: SourceHeader) -> None:
    """GDAL copies later pages without their mask, the first with any that it finds, and masks of bytes or bits only."""
    copied = dataset.mask_flag_enums[0] == [MaskFlags.per_dataset]
    if copied != header.has_mask:
        raise refused(
            "unsupported_mask",
            f"Page {header.page} cannot be copied with its own mask and no other. "
            "Save it as a file of its own, with a mask of one sample in bytes.",
            page=header.page,
        )


def _overview_method(header: SourceHeader, options: CogOptions, choice: BandChoice, sample: Sample) -> tuple[str, str]:
    values = np.concatenate(sample.values)
    method, why = choose_resampling(header, options.resampling, choice, values, few_of(choice, sample, values))
    if any(np.dtype(band.dtype).kind == "c" for band in header.bands):
        return "nearest", "complex numbers are not averaged"
    return method, why


def _creation_options(options: CogOptions, header: SourceHeader, method: str) -> dict[str, str]:
    chosen = {
        "COMPRESS": options.compression.value.upper(),
        "BLOCKSIZE": str(options.block_size),
        # Where none are needed, GDAL 3.10 would copy those of the source, in their order.
        "OVERVIEWS": "NONE" if max(header.width, header.height) <= options.block_size else "IGNORE_EXISTING",
        "OVERVIEW_RESAMPLING": method.upper(),
        "WARP_RESAMPLING": "NEAREST" if method in {"nearest", "mode"} else "BILINEAR",
        "NUM_THREADS": "2",
        "BIGTIFF": "IF_SAFER",
        "STATISTICS": "NO",
    }
    if options.compression in LOSSY:
        chosen |= {"QUALITY": str(options.quality), "OVERVIEW_QUALITY": str(options.quality)}
    elif all(band.bits in {None, 8, 16, 32, 64} and np.dtype(band.dtype).kind != "c" for band in header.bands):
        chosen["PREDICTOR"] = "YES"  # libtiff has none for other numbers of bits, nor for complex ones
    if options.web_optimized:
        chosen |= {"BLOCKSIZE": "256", "OVERVIEWS": "IGNORE_EXISTING"}  # the scheme's own tiles
        chosen["TILING_SCHEME"] = "GoogleMapsCompatible"
    return chosen


def _check(source: Path, made: Path, header: SourceHeader, options: CogOptions) -> SourceHeader:
    """What was written is laid out as it must be, and holds what the file holds; its header."""
    _, errors, warnings = cog_validate(str(made), strict=True, quiet=True)
    with open_source(made) as dataset:
        # To rio-cogeo a tile as wide as the picture is no tile.
        narrow = dataset.profile.get("tiled") and dataset.width <= dataset.block_shapes[0][1]
    wrong = [fault for fault in (*errors, *warnings) if not (narrow and "is not tiled" in fault)]
    if wrong:
        raise JobError(
            "self_check_failed",
            "The finished file is not laid out as a cloud optimised GeoTIFF must be. This is a fault of the worker.",
            ErrorClass.INTERNAL,
            {"errors": wrong[:5]},
        )
    made_header = inspect_file(made)
    if options.web_optimized:
        check_web_copy(source, made, header, made_header)
    else:
        check_copy(source, made, header, made_header, lossy=options.compression in LOSSY)
    return made_header


def _told(request: TaskRequest[CogOptions], header: SourceHeader, choice: BandChoice, sample: Sample) -> dict[str, Any]:
    return facts(request.source_name, header, own_grid(header), (choice, sample))


def _companion(
    request: TaskRequest[CogOptions], made: OutputFile, header: SourceHeader, block: dict[str, Any]
) -> OutputFile:
    asset = {"href": made.name, "type": TIFF, "roles": ["data"]}
    told = json_bytes(item(request.stem, own_grid(header), block, {"data": asset}))
    return write_whole(request.output_folder, f"{request.stem}.json", told, "application/json")
