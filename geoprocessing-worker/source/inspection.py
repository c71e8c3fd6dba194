"""Reads the header of a GeoTIFF into a `SourceHeader`, before any block is decoded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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
from geoprocessing_worker.source.declared_crs import DeclaredCrs, declared_crs, unreadable_crs
from geoprocessing_worker.source.gdal import clear_errors, open_source
from geoprocessing_worker.source.georeference import Georeference, georeference
from geoprocessing_worker.source.levels import Levels, block_size, usable_levels
from geoprocessing_worker.source.texts import is_number, readable
from geoprocessing_worker.tiff.gate import MAX_BANDS, MAX_BLOCK_BYTES, MAX_SIDE, admit, check_domain
from geoprocessing_worker.tiff.geo_keys import read_geo_keys, read_geo_texts
from geoprocessing_worker.tiff.letters import clean
from geoprocessing_worker.tiff.masks import incomplete_pages, page_masks, whole_pages
from geoprocessing_worker.tiff.sparse import with_storage
from geoprocessing_worker.tiff.structure import Tags, TiffStructure
from geoprocessing_worker.tiff.tags import (
    ASSOCIATED_ALPHA,
    COLOR_MAP,
    EXTRA_SAMPLES,
    GDAL_NODATA,
    GRAY_SCALES,
    IMAGE_DEPTH,
    METADATA,
    PHOTOMETRIC,
    SEPARATED,
)

MAX_PAGES = 64  # searched for the largest. A job can select any other by number
LONGEST_TAG = 500  # characters
LONGEST_NUMBER = 40  # characters. 64 bits have 20 digits

RAW = frozenset({SEPARATED, CIE})  # GDAL converts these to RGB by itself, if they are stored in bytes
LAB_BANDS = 3
METERS = 3857  # EPSG code of a CRS in meters
TAGS_READ = (METADATA, PHOTOMETRIC, EXTRA_SAMPLES, GDAL_NODATA, COLOR_MAP, IMAGE_DEPTH)

TAGS = (
    "TIFFTAG_DATETIME", "TIFFTAG_SOFTWARE", "TIFFTAG_IMAGEDESCRIPTION", "TIFFTAG_DOCUMENTNAME", "TIFFTAG_COPYRIGHT",
    "TIFFTAG_XRESOLUTION", "TIFFTAG_YRESOLUTION", "TIFFTAG_RESOLUTIONUNIT", "AREA_OR_POINT",
)  # fmt: skip


class _Page(NamedTuple):
    """A page: its 1-based number, that of its IFD, and the number of pages in the file."""

    number: int
    ifd: int
    pages: int


def inspect_file(
    path: Path, page: int | None = None, source_crs: CRS | None = None, *, validate_headers: bool = True
) -> SourceHeader:
    """Read the header of a page: the given one, else the largest that has a place on Earth.

    Args:
        path: the GeoTIFF.
        page: 1-based.
        source_crs: used if the file declares no usable CRS.
        validate_headers: check the structure before GDAL opens the file. Its metadata are checked in any case.

    Raises:
        JobError: as `gate.admit`; `invalid_payload` (no such page); `unsupported_data_type`.
        rasterio.errors.RasterioError: GDAL cannot open it (see `gdal_errors`).
    """
    structure = admit(path, validate_headers=validate_headers)
    with open_source(path) as dataset:
        clear_errors(dataset)
        _check_dataset(dataset)
        listed = [int(name.split(":")[1]) for name in dataset.subdatasets] or whole_pages(structure)
    incomplete = incomplete_pages(structure)
    ifds = [number for number in listed if number not in incomplete] or listed
    chosen = _choose_page(structure, ifds, page)
    tags = structure.tags(TAGS_READ, chosen.ifd)
    photometric = tags.first(PHOTOMETRIC)
    raw = photometric in RAW
    with (
        open_source(path, directory=chosen.ifd, raw=raw) as dataset,
        readable(dataset, structure, chosen.ifd) as (texts, remark),
    ):
        clear_errors(dataset)
        _check_dataset(dataset)
        overviews = 0 if incomplete else _readable_overviews(dataset, raw=raw)
        known = known_crs.find(structure, chosen.ifd)
        declared = _declared_crs(texts, structure, chosen.ifd, known)
        # A unit may be that of heights in the file's CRS. A known CRS has none, and GDAL would look it up.
        units = texts.units if known is None or "unittype" in tags.texts.get(METADATA, "") else ()
        header = _read_header(dataset, texts, tags, units, georeference(texts, declared, source_crs))
        if header.georeferencing is Georeferencing.NONE:
            header = replace(header, crs_would_place=_crs_would_place(texts, declared))
    _check_samples(tags, header.bands)
    header = replace(
        header,
        pages=chosen.pages,
        page=chosen.number,
        directory=chosen.ifd,
        remarks=tuple(filter(None, (structure.remark, remark))),
    )
    return _with_levels(_with_mask(header, structure, ifds), structure, overviews)


def _choose_page(structure: TiffStructure, ifds: list[int], page: int | None) -> _Page:
    number = page or (_best_page(structure, ifds) if len(ifds) > 1 else 1)
    if number > len(ifds):
        raise invalid_input(
            "invalid_payload", f"The job asks for page {number}, but the file has {len(ifds)}.", pages=len(ifds)
        )
    return _Page(number, ifds[number - 1], len(ifds))


def _with_mask(header: SourceHeader, structure: TiffStructure, ifds: list[int]) -> SourceHeader:
    """Assign the page's own mask to it.

    For the first page GDAL uses any mask of bytes or bits in the file, for other pages none. It ignores masks of other
    types, or returns those with a sample for each band band by band.
    """
    if ifds == [1] and header.has_mask:
        return header
    own = page_masks(structure, ifds).get(header.directory)
    unknown_to_gdal = header.directory > 1 or not header.has_mask
    return replace(header, has_mask=own is not None, mask_directory=own if unknown_to_gdal else None)


def _with_levels(header: SourceHeader, structure: TiffStructure, overviews: int) -> SourceHeader:
    levels = Levels(header.levels)
    if header.directory == 1 and header.mask_directory is None:  # GDAL finds overviews for the first IFD only
        levels = usable_levels(structure, header.full, overviews, raw=header.raw, masked=header.has_mask)
    stored = with_storage(structure, levels.usable, header.directory, masked=header.has_mask)
    return replace(header, levels=stored, mask_overviews_unlike=levels.unlike)


def _wide_nodata(text: str | None, dtype: str) -> float | None:
    """Return the nodata value of 64-bit integers as the file declares it, and `None` for other types.

    rasterio returns it as a double, and the largest not at all. GDAL reads up to the decimal point.
    """
    if text is None or dtype not in {"int64", "uint64"}:
        return None
    for number in (int, float):
        with suppress(ValueError):
            return number(text[:LONGEST_NUMBER])
    return None


def _readable_overviews(dataset: Any, *, raw: bool) -> int:
    """Return the number of readable overviews. GDAL fails on all of them where it converts inks and the like to RGB."""
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    by_jpeg = structure.get("COMPRESSION") == "YCbCr JPEG"  # converted by the JPEG library, overviews included
    converted = "SOURCE_COLOR_SPACE" in structure and not by_jpeg
    return 0 if converted or (raw and dataset.dtypes[0] == "uint8") else len(dataset.overviews(1))


def _check_samples(tags: Tags, bands: tuple[BandHeader, ...]) -> None:
    """Reject pixels that GDAL would misread: L*a*b* on an unknown scale, and volumes."""
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


def _best_page(structure: TiffStructure, ifds: list[int]) -> int:
    """Return the number of the largest page that has a place on Earth, else of the largest. The first of equals."""
    found = []
    for number, ifd in enumerate(ifds[:MAX_PAGES], 1):
        with (
            open_source(structure.path, directory=ifd) as dataset,
            readable(dataset, structure, ifd) as (texts, _),
        ):
            clear_errors(dataset)
            declared = _declared_crs(texts, structure, ifd, known_crs.find(structure, ifd))
            placed = georeference(texts, declared, None).kind is not Georeferencing.NONE
            found.append((placed, dataset.width * dataset.height, -number))
    return -max(found)[2]


def _declared_crs(texts: Any, structure: TiffStructure, ifd: int, known: CRS | None) -> DeclaredCrs:
    if known is not None:
        return DeclaredCrs(known)
    crs, keys = texts.crs, read_geo_keys(structure, ifd)
    if crs is None and texts.crs_unreadable:
        return unreadable_crs(keys)
    return declared_crs(crs, keys, read_geo_texts(structure, ifd))


def _check_dataset(dataset: Any) -> None:
    """Check domains and sizes again as GDAL reads them, since it may read more than the gate."""
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
    """Return NumPy's name of a type. It has no complex integers, which rasterio reads as complex64."""
    return "complex64" if name.startswith("complex_int") else name


def _read_header(
    dataset: Any, texts: Any, tags: Tags, units: Sequence[str | None], place: Georeference
) -> SourceHeader:
    """Read the header of a page, with the full picture as its only level. `texts` is as of `readable`."""
    structure = dataset.tags(ns="IMAGE_STRUCTURE")
    control = place.control or Control((), None)
    photometric = tags.first(PHOTOMETRIC)
    # GDAL makes up a color table for scans of few bits. Its entries would count as classes, which cannot be averaged.
    made_up = photometric in GRAY_SCALES and COLOR_MAP not in tags.numbers
    flags = dataset.mask_flag_enums[0]
    return SourceHeader(
        width=dataset.width,
        height=dataset.height,
        bands=_bands(dataset, texts, units, tags.texts.get(GDAL_NODATA)),
        levels=(Level(None, dataset.width, dataset.height, *block_size(dataset)),),
        pixel_interleaved=structure.get("INTERLEAVE", "").upper() == "PIXEL",
        compression=structure.get("COMPRESSION", "NONE"),
        miniswhite=structure.get("MINISWHITE", "").upper() == "YES",
        alpha_premultiplied=ASSOCIATED_ALPHA in tags.numbers.get(EXTRA_SAMPLES, ()),
        has_mask=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
        palette=None if made_up else _palette(dataset),
        crs=horizontal(place.crs) if place.crs is not None else None,
        full_crs=place.crs,
        georeferencing=place.kind,
        transform=place.transform,
        gcps=control.points,
        gcp_residual=control.residual,
        gcp_spline=control.spline,
        gcp_polynomial_residual=control.polynomial_residual,
        rpc=place.rpc,
        displaced=place.doubt,
        caveat=place.caveat,
        crs_given=place.crs_given,
        pixel_is_point=texts.tags().get("AREA_OR_POINT") == "Point",
        pages=1,
        tags=_tags(texts),
        icc_profile=decoded(dataset.tags(ns="COLOR_PROFILE").get("SOURCE_ICC_PROFILE")),
        photometric=photometric,
        raw=photometric in RAW,
    )


def _crs_would_place(texts: Any, declared: DeclaredCrs) -> bool:
    """Whether a CRS alone would place the file. Tried with a CRS in meters, where any number can be a coordinate."""
    return georeference(texts, declared, CRS.from_epsg(METERS)).kind is not Georeferencing.NONE


def _bands(dataset: Any, texts: Any, units: Sequence[str | None], nodata_text: str | None) -> tuple[BandHeader, ...]:
    # rasterio reads each of these for all bands at once, so reading them band by band takes 6 s for 4,096 bands.
    dtypes, roles, nodata = dataset.dtypes, dataset.colorinterp, dataset.nodatavals
    scales, offsets, descriptions = dataset.scales, dataset.offsets, texts.descriptions
    wide = _wide_nodata(nodata_text, dtypes[0])
    if not is_number(nodata_text) or wide is not None:
        nodata = (wide,) * len(dtypes)
    found = []
    for place, (index, unit) in enumerate(itertools.zip_longest(dataset.indexes, units)):
        bits = dataset.tags(index, ns="IMAGE_STRUCTURE").get("NBITS")
        found.append(
            BandHeader(
                index=index,
                dtype=_numpy_type(dtypes[place]),
                colorinterp=roles[place].name,
                # ArcGIS writes a metadata item for each band instead of descriptions.
                description=_cleaned(descriptions[place] or texts.tags(index).get("BandName")),
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
    """Return (entries, 4) RGBA of band 1's color table."""
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
    """Return the descriptive tags of the file, from a list of harmless ones."""
    tags = dataset.tags()
    return tuple((name, clean(tags[name][:LONGEST_TAG])) for name in TAGS if name in tags)
