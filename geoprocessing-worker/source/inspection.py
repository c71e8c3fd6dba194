"""Reads a file's header into a value, and refuses what would cost too much before a single block is decoded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.enums import ColorInterp, MaskFlags

from geoprocessing_worker.color.lab import CIE, is_known_lab, is_lab
from geoprocessing_worker.color.profile import decoded
from geoprocessing_worker.errors import invalid_input, too_large
from geoprocessing_worker.geo.control_points import Control
from geoprocessing_worker.geo.crs import horizontal
from geoprocessing_worker.raster import BandHeader, Georeferencing, Level, SourceHeader
from geoprocessing_worker.source import known_crs
from geoprocessing_worker.source.gdal import forget_old_errors, open_source
from geoprocessing_worker.source.georeference import Georeference, georeference
from geoprocessing_worker.source.levels import Levels, block_size, usable_levels
from geoprocessing_worker.source.own_system import OwnSystem, own_system, unreadable_system
from geoprocessing_worker.source.texts import readable, says_a_number
from geoprocessing_worker.tiff.directory import (
    ASSOCIATED_ALPHA,
    COLOR_MAP,
    EXTRA_SAMPLES,
    GDAL_NODATA,
    GRAY_SCALES,
    IMAGE_DEPTH,
    METADATA,
    PHOTOMETRIC,
    SEPARATED,
    Tags,
    read_tags,
)
from geoprocessing_worker.tiff.gate import MAX_BANDS, MAX_BLOCK_BYTES, MAX_SIDE, admit, check_domain
from geoprocessing_worker.tiff.geo_keys import read_geo_keys
from geoprocessing_worker.tiff.letters import clean
from geoprocessing_worker.tiff.masks import incomplete_pages, page_masks, whole_pages
from geoprocessing_worker.tiff.sparse import with_single_strips, with_stored_blocks

MAX_PAGES = 64  # looked at to find the largest; any other can be asked for by number
LONGEST_TAG = 500  # characters
LONGEST_NUMBER = 40  # characters; 64 bits have 20 digits

RAW = frozenset({SEPARATED, CIE})  # what GDAL turns into light by itself, where it is stored in bytes
LAB_BANDS = 3
METERS = 3857  # EPSG's code of a system in meters
TAGS_READ = (METADATA, PHOTOMETRIC, EXTRA_SAMPLES, GDAL_NODATA, COLOR_MAP, IMAGE_DEPTH)

TAGS = (
    "TIFFTAG_DATETIME", "TIFFTAG_SOFTWARE", "TIFFTAG_IMAGEDESCRIPTION", "TIFFTAG_DOCUMENTNAME", "TIFFTAG_COPYRIGHT",
    "TIFFTAG_XRESOLUTION", "TIFFTAG_YRESOLUTION", "TIFFTAG_RESOLUTIONUNIT", "AREA_OR_POINT",
)  # fmt: skip


def inspect_file(
    path: Path, page: int | None = None, source_crs: CRS | None = None, *, validate_headers: bool = True
) -> SourceHeader:
    """The header of the GeoTIFF at `path`: of the page asked for, else of the largest one that has a place on Earth.

    `source_crs` is used where the file itself says none. Without `validate_headers` GDAL sees the file before its
    structure was looked at; its metadata are looked at in any case.

    Raises:
        JobError: what `admission.admit` refuses; `invalid_payload` (a page that is not there); `unsupported_data_type`.
        rasterio.errors.RasterioError: GDAL cannot open it (named by refusals.py).
    """
    remarks = admit(path, validate_headers=validate_headers)
    with open_source(path) as dataset:
        forget_old_errors(dataset)
        _admit(dataset)
        directories = [int(name.split(":")[1]) for name in dataset.subdatasets] or whole_pages(path)
    incomplete = incomplete_pages(path)
    directories = [place for place in directories if place not in incomplete] or directories
    pages = len(directories)
    number = page or (_best_page(path, directories) if pages > 1 else 1)
    if number > pages:
        raise invalid_input(
            "invalid_payload", f"The job asks for page {number}, but the file has {pages}.", pages=pages
        )
    directory = directories[number - 1]
    tags = read_tags(path, TAGS_READ, directory)
    photometric = tags.first(PHOTOMETRIC)
    raw = photometric in RAW
    with (
        open_source(path, directory=directory, raw=raw) as dataset,
        readable(dataset, path, directory) as (words, remark),
    ):
        forget_old_errors(dataset)
        _admit(dataset)
        full = Level(None, dataset.width, dataset.height, *block_size(dataset))
        overviews = 0 if incomplete else _overviews(dataset, raw=raw)
        usual = known_crs.find(path, directory)
        system = _own_system(words, path, directory, usual)
        # A unit may be that of heights in the file's system; a usual one has none, and GDAL would look it up for that.
        units = words.units if usual is None or "unittype" in tags.texts.get(METADATA, "") else ()
        facts = _read(dataset, words, units, system, source_crs)
    _check_samples(tags, facts["bands"])
    if not says_a_number(tags.texts.get(GDAL_NODATA)):
        facts["bands"] = tuple(replace(band, nodata=None) for band in facts["bands"])
    elif (wide := _wide_nodata(tags.texts.get(GDAL_NODATA), facts["bands"][0].dtype)) is not None:
        facts["bands"] = tuple(replace(band, nodata=wide) for band in facts["bands"])
    if photometric in GRAY_SCALES and COLOR_MAP not in tags.numbers:
        # GDAL makes up a color table for scans of few bits; by it they would be names, and could not be averaged.
        facts["palette"] = None
    masked = facts["has_mask"]
    mask_directory = None
    if directories != [1] or not masked:
        # Of the first page GDAL takes any mask of bytes or bits in the file, of others none. Masks of other types, and
        # those with a sample for each band, it ignores or hands out band by band.
        own = page_masks(path, directories).get(directory)
        mask_directory = own if directory > 1 or not masked else None
        facts["has_mask"] = own is not None
    levels = Levels((full,))
    if directory == 1 and mask_directory is None:  # of other directories GDAL has no overviews
        levels = usable_levels(path, full, overviews, raw=raw, masked=facts["has_mask"])
    usable = with_single_strips(path, levels.usable, directory)
    return SourceHeader(
        **facts,
        levels=usable if facts["has_mask"] else with_stored_blocks(path, usable, directory),
        mask_overviews_unlike=levels.unlike,
        pages=pages,
        page=number,
        directory=directory,
        mask_directory=mask_directory,
        alpha_premultiplied=ASSOCIATED_ALPHA in tags.numbers.get(EXTRA_SAMPLES, ()),
        photometric=photometric,
        raw=raw,
        remarks=remarks if remark is None else (*remarks, remark),
    )


def _wide_nodata(text: str | None, dtype: str) -> float | None:
    """The nodata value of whole numbers of 64 bits, as the file's own words say it; `None` of all others.

    rasterio hands it out as a double, the largest not at all, and GDAL reads no further than to the decimal point.
    """
    if text is None or dtype not in {"int64", "uint64"}:
        return None
    for number in (int, float):
        with suppress(ValueError):
            return number(text[:LONGEST_NUMBER])
    return None


def _overviews(dataset: Any, *, raw: bool) -> int:
    """How many overviews can be read: where GDAL makes light of inks and the like, it fails on all of them."""
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    decoded = structure.get("COMPRESSION") == "YCbCr JPEG"  # the JPEG library makes light of it, overviews and all
    made_light = "SOURCE_COLOR_SPACE" in structure and not decoded
    return 0 if made_light or (raw and dataset.dtypes[0] == "uint8") else len(dataset.overviews(1))


def _check_samples(tags: Tags, bands: tuple[BandHeader, ...]) -> None:
    """Refuse what GDAL would read as something else: L*a*b* on a scale that is not known, and volumes."""
    depth, photometric = tags.first(IMAGE_DEPTH), tags.first(PHOTOMETRIC)
    if depth is not None and depth > 1:
        raise invalid_input(
            "unsupported_data_type",
            f"The file holds a volume, {depth} pictures deep, not a picture. Save one of them, or each as a page.",
            depth=depth,
        )
    if is_lab(photometric) and len(bands) >= LAB_BANDS and not is_known_lab(photometric, bands[0].dtype):
        raise invalid_input(
            "unsupported_data_type",
            f"The file stores its colors as L*a*b* in a form that is not read here (photometric interpretation "
            f"{photometric}, {bands[0].dtype}). Save it as RGB.",
            photometric=photometric,
            dtype=bands[0].dtype,
        )


def _best_page(path: Path, directories: list[int]) -> int:
    """The largest page that has a place on Earth, else the largest; the first of equals."""
    found = []
    for number, directory in enumerate(directories[:MAX_PAGES], 1):
        with (
            open_source(path, directory=directory) as dataset,
            readable(dataset, path, directory) as (words, _),
        ):
            forget_old_errors(dataset)
            system = _own_system(words, path, directory, known_crs.find(path, directory))
            placed = georeference(words, system, None).kind is not Georeferencing.NONE
            found.append((placed, dataset.width * dataset.height, -number))
    return -max(found)[2]


def _own_system(words: Any, path: Path, directory: int, usual: CRS | None) -> OwnSystem:
    if usual is not None:
        return OwnSystem(usual)
    crs, keys = words.crs, read_geo_keys(path, directory)
    return unreadable_system(keys) if crs is None and words.crs_unreadable else own_system(crs, keys)


def _admit(dataset: Any) -> None:
    """The gates of `admission` once more, on what GDAL made of the file."""
    for domain in dataset.tag_namespaces():
        check_domain(domain)
    limits = (
        ("side", max(dataset.width, dataset.height), MAX_SIDE, "pixels on a side"),
        ("bands", dataset.count, MAX_BANDS, "bands"),
        ("block", _block_bytes(dataset), MAX_BLOCK_BYTES, "bytes in one strip or tile"),
    )
    for name, found, allowed, words in limits:
        if found > allowed:
            raise too_large(name, found, allowed, words)


def _block_bytes(dataset: Any) -> int:
    columns, rows = block_size(dataset)
    interleaved = dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE", "").upper() == "PIXEL"
    bands = dataset.count if interleaved else 1
    return columns * rows * bands * np.dtype(_numpy_type(dataset.dtypes[0])).itemsize


def _numpy_type(name: str) -> str:
    """Numpy has no complex integers; rasterio reads GDAL's as complex64."""
    return "complex64" if name.startswith("complex_int") else name


def _read(
    dataset: Any, words: Any, units: Sequence[str | None], own: OwnSystem, source_crs: CRS | None
) -> dict[str, Any]:
    """The header's facts; `words` is asked for texts and the place."""
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    place: Georeference = georeference(words, own, source_crs)
    control = place.control or Control((), None)
    return {
        "width": dataset.width,
        "height": dataset.height,
        "bands": _bands(dataset, words, units),
        "pixel_interleaved": structure.get("INTERLEAVE", "").upper() == "PIXEL",
        "compression": structure.get("COMPRESSION", "NONE"),
        "miniswhite": structure.get("MINISWHITE", "").upper() == "YES",
        "has_mask": MaskFlags.per_dataset in dataset.mask_flag_enums[0]
        and MaskFlags.alpha not in dataset.mask_flag_enums[0],
        "palette": _palette(dataset),
        "crs": horizontal(place.crs) if place.crs is not None else None,
        "full_crs": place.crs,
        "georeferencing": place.kind,
        "transform": place.transform,
        "gcps": control.points,
        "gcp_residual": control.residual,
        "gcp_spline": control.spline,
        "gcp_polynomial_residual": control.polynomial_residual,
        "rpc": place.rpc,
        "displaced": place.doubt,
        "caveat": place.caveat,
        "crs_given": place.crs_given,
        "crs_would_place": _crs_would_place(words, own, place),
        "pixel_is_point": words.tags().get("AREA_OR_POINT") == "Point",
        "tags": _tags(words),
        "icc_profile": decoded(dataset.tags(ns="COLOR_PROFILE").get("SOURCE_ICC_PROFILE")),
    }


def _crs_would_place(words: Any, own: OwnSystem, place: Georeference) -> bool:
    """Whether a file without a place gets one by a system of meters, in which any number can be a coordinate."""
    if place.kind is not Georeferencing.NONE:
        return False
    return georeference(words, own, CRS.from_epsg(METERS)).kind is not Georeferencing.NONE


def _bands(dataset: Any, words: Any, units: Sequence[str | None]) -> tuple[BandHeader, ...]:
    # rasterio asks all bands for each of these, so asking band by band takes 6 s for 4,096 of them.
    dtypes, roles, nodata = dataset.dtypes, dataset.colorinterp, dataset.nodatavals
    scales, offsets, descriptions = dataset.scales, dataset.offsets, words.descriptions
    found = []
    for place, (index, unit) in enumerate(itertools.zip_longest(dataset.indexes, units)):
        bits = dataset.tags(index, ns="IMAGE_STRUCTURE").get("NBITS")
        found.append(
            BandHeader(
                index=index,
                dtype=_numpy_type(dtypes[place]),
                colorinterp=roles[place].name,
                # ArcGIS writes no descriptions, but an item of metadata for each band.
                description=_cleaned(descriptions[place] or words.tags(index).get("BandName")),
                nodata=nodata[place],
                bits=int(bits) if bits and bits.isdigit() else None,
                scale=scales[place],
                offset=offsets[place],
                unit=_cleaned(unit) or None,
            )
        )
    return tuple(found)


def _cleaned(text: str | None) -> str | None:
    return None if text is None else clean(text)


def _palette(dataset: Any) -> NDArray[np.uint8] | None:
    """(entries, 4) RGBA of band 1's color table."""
    if dataset.colorinterp[0] != ColorInterp.palette:
        return None
    with suppress(ValueError):
        entries: dict[int, tuple[int, ...]] = dataset.colormap(1)
        table = np.zeros((max(entries) + 1, 4), dtype=np.uint8)
        for value, color in entries.items():
            table[value] = color
        return table
    return None


def _tags(dataset: Any) -> tuple[tuple[str, str], ...]:
    """What the file says of itself in words, on a list of tags that hold no more than that."""
    tags = dataset.tags()
    return tuple((name, clean(tags[name][:LONGEST_TAG])) for name in TAGS if name in tags)
