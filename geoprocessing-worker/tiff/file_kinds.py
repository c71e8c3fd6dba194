"""Recognizes other formats than TIFF by their first and last bytes, with a remedy for each.

The table is written by hand: libraries of magic numbers (filetype, puremagic) have few of the formats of maps, and no
remedies.
"""

from __future__ import annotations

import os
import re
from typing import BinaryIO, NamedTuple

from geoprocessing_worker.errors import JobError, invalid_input

READ_BYTES = 64 << 10  # at the beginning, and at the end
TEXT_LETTERS = 4096  # none of which may be a control character


class Kind(NamedTuple):
    """A format: its name with an article, and a sentence on how to get a GeoTIFF from it."""

    name: str
    cure: str


UNPACK = "Unpack it and upload the GeoTIFF in it."
CONVERT = "Convert it to GeoTIFF with QGIS or gdal_translate, and upload that."
PICTURE = "Save it as TIFF, or georeference it in QGIS and export it as GeoTIFF, and upload that."
VARIABLE = "Export the variable that you want to see as GeoTIFF, with QGIS or gdal_translate, and upload that."
SHAPES = "It holds shapes and no pixels: export a picture of it from a GIS as GeoTIFF, and upload that."
POINTS = "Make a raster of its points with PDAL or a GIS, and upload that as GeoTIFF."
TILES = "It holds tiles for a map already: upload the GeoTIFF that they were made of."
BESIDE = "It belongs to a map in another file: upload the .tif itself."
REFERS = "It only refers to files that were not uploaded: convert it to GeoTIFF with gdal_translate, and upload that."
RAW = "Develop it, export it as TIFF, and upload that."
TABLE = "It holds no pixels: upload the map as GeoTIFF."
PROGRAM = "Choose the .tif file and upload that."
SERVER = "The download of the map failed: open the file to read why, download the map again, and upload that."
AGAIN = "It was not copied or downloaded whole: download it again, and upload that."
BODY = "Send the file itself as the body of the request, as with curl --data-binary."
BODY_ONLY = "Save the body of the answer without its headers, and upload that."
DECODED = "Decode it to a binary file, and upload that."

# (offset, bytes, kind). The first match wins.
MAGICS: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\x1f\x8b", Kind("a gzip archive", UNPACK)),
    (0, b"BZh", Kind("a bzip2 archive", UNPACK)),
    (0, b"\xfd7zXZ\0", Kind("an xz archive", UNPACK)),
    (0, b"(\xb5/\xfd", Kind("a Zstandard archive", UNPACK)),
    (0, b"7z\xbc\xaf'\x1c", Kind("a 7z archive", UNPACK)),
    (0, b"Rar!\x1a\x07", Kind("a RAR archive", UNPACK)),
    (0, b"\x04\"M\x18", Kind("an LZ4 archive", UNPACK)),
    (0, b"LZIP", Kind("an lzip archive", UNPACK)),
    (0, b"\x1f\x9d", Kind("a compress archive", UNPACK)),
    (0, b"MSCF", Kind("a cabinet archive", UNPACK)),
    (257, b"ustar", Kind("a tar archive", UNPACK)),
    (0, b"\xff\xd8\xff", Kind("a JPEG picture", PICTURE)),
    (0, b"\x89PNG\r\n\x1a\n", Kind("a PNG picture", PICTURE)),
    (0, b"GIF8", Kind("a GIF picture", PICTURE)),
    (8, b"WEBP", Kind("a WebP picture", PICTURE)),
    (0, b"\0\0\0\x0cjP  ", Kind("a JPEG 2000 picture", CONVERT)),
    (0, b"\xffO\xffQ", Kind("a JPEG 2000 picture", CONVERT)),
    (0, b"\0\0\0\x0cJXL ", Kind("a JPEG XL picture", CONVERT)),
    (0, b"\xff\x0a", Kind("a JPEG XL picture", CONVERT)),
    (4, b"ftypavi", Kind("an AVIF picture", PICTURE)),
    *((4, b"ftyp" + brand, Kind("a HEIC picture", PICTURE)) for brand in (b"heic", b"heix", b"mif1", b"msf1", b"hevc")),
    (4, b"ftypcrx", Kind("a camera's raw picture", RAW)),
    (4, b"ftyp", Kind("a video", TABLE)),
    (8, b"AVI ", Kind("a video", TABLE)),
    (0, b"\x1aE\xdf\xa3", Kind("a video", TABLE)),
    (0, b"8BPS", Kind("a Photoshop picture", PICTURE)),
    (0, b"II\xbc", Kind("a JPEG XR picture", PICTURE)),
    (0, b"v/1\x01", Kind("an OpenEXR picture", PICTURE)),
    (0, b"DDS ", Kind("a DDS picture", PICTURE)),
    (0, b"IIU\0", Kind("a camera's raw picture", RAW)),
    (0, b"IIRO", Kind("a camera's raw picture", RAW)),
    (0, b"MMOR", Kind("a camera's raw picture", RAW)),
    (0, b"FUJIFILM", Kind("a camera's raw picture", RAW)),
    (128, b"DICM", Kind("a DICOM picture", PICTURE)),
    (0, b"SIMPLE  =", Kind("a FITS file", CONVERT)),
    (0, b"EHFA_HEADER_TAG", Kind("an ERDAS IMAGINE raster", CONVERT)),
    (0, b"ERDAS_IMG_EXTERNAL", Kind("the data of an ERDAS IMAGINE raster", BESIDE)),
    (0, b"msid", Kind("a MrSID raster", CONVERT)),
    *((0, b"e" + version, Kind("an ECW raster", CONVERT)) for version in (b"\x02", b"\x03")),
    (0, b"NITF0", Kind("an NITF raster", CONVERT)),
    (0, b"NSIF0", Kind("an NITF raster", CONVERT)),
    (0, b"GRIB", Kind("a GRIB file", VARIABLE)),
    (0, b"BUFR", Kind("a BUFR file", TABLE)),
    *((0, b"CDF" + version, Kind("a NetCDF file", VARIABLE)) for version in (b"\x01", b"\x02", b"\x05")),
    (0, b"\x89HDF\r\n\x1a\n", Kind("an HDF5 or NetCDF file", VARIABLE)),
    (0, b"\x0e\x03\x13\x01", Kind("an HDF4 file", VARIABLE)),
    *((0, b"DS" + kind, Kind("a Surfer grid", CONVERT)) for kind in (b"AA", b"BB", b"RB")),
    (0, b"UHL1", Kind("a DTED raster", CONVERT)),
    (0, b"PCIDSK", Kind("a PCIDSK raster", CONVERT)),
    (0, b"PMTiles", Kind("a PMTiles archive", TILES)),
    (0, b"\0\0\x27\x0a", Kind("a shapefile", SHAPES)),
    (0, b"LASF", Kind("a LAS or LAZ point cloud", POINTS)),
    (0, b"ASTM-E57", Kind("an E57 point cloud", POINTS)),
    (0, b"ply\n", Kind("a PLY point cloud", POINTS)),
    (0, b"AC10", Kind("a DWG drawing", SHAPES)),
    (0, b"AutoCAD Binary DXF", Kind("a DXF drawing", SHAPES)),
    (0, b"fgb\x03fgb", Kind("a FlatGeobuf file", SHAPES)),
    (0, b"PAR1", Kind("a Parquet file", SHAPES)),
    (0, b"ARROW1", Kind("an Arrow file", SHAPES)),
    (4, b"\x0a\x09OSMHeader", Kind("an OpenStreetMap extract", SHAPES)),
    (0, b"%!PS", Kind("a PostScript file", PICTURE)),
    (0, b"\xd0\xcf\x11\xe0", Kind("a Microsoft Office document", TABLE)),
    (0, b"{\\rtf", Kind("an RTF document", TABLE)),
    (0, b"\0\x05\x16\x07", Kind("a macOS companion file (its name begins with ._)", BESIDE)),
    (0, b"MZ", Kind("a Windows program", PROGRAM)),
    (0, b"\x7fELF", Kind("a Linux program", PROGRAM)),
    (0, b"\xcf\xfa\xed\xfe", Kind("a macOS program", PROGRAM)),
    (0, b"\xce\xfa\xed\xfe", Kind("a macOS program", PROGRAM)),
    (0, b"\xca\xfe\xba\xbe", Kind("a macOS or Java program", PROGRAM)),
    (0, b"II\0*", Kind("a TIFF with a damaged header", AGAIN)),
    (0, b"MM*\0", Kind("a TIFF with a damaged header", AGAIN)),
)  # fmt: skip

# Contents of a ZIP, by a part of a file's name in lower case.
ZIPS: tuple[tuple[bytes, Kind], ...] = (
    (b"[content_types].xml", Kind("a Microsoft Office document", TABLE)),
    (b"application/vnd.oasis.opendocument", Kind("an OpenDocument file", TABLE)),
    (b"androidmanifest.xml", Kind("an Android program", PROGRAM)),
    (b".tif", Kind("a ZIP archive", UNPACK)),
    (b".kml", Kind("a KMZ file", SHAPES)),
    (b".qgs", Kind("a QGIS project", REFERS)),
    (b".gdbtable", Kind("a zipped geodatabase", SHAPES)),
    (b".shp", Kind("a zipped shapefile", SHAPES)),
    (b".jp2", Kind("a zipped JPEG 2000 picture", "Unpack it, convert the picture to GeoTIFF, and upload that.")),
)  # fmt: skip
ZIP = Kind("a ZIP archive", UNPACK)

GEOPACKAGE = Kind("a GeoPackage", "Export the layer that you want to see as GeoTIFF, and upload that.")
DATABASE = Kind("an SQLite database", TABLE)
MBTILES = Kind("an MBTiles archive", TILES)

# Formats that begin with text and may continue with binary data.
HEADS: tuple[tuple[str, Kind], ...] = (
    (r"%pdf", Kind("a PDF document", "Open it in QGIS, export the map as GeoTIFF, and upload that.")),
    (r"--[^\n]{1,80}\r?\ncontent-disposition:", Kind("the body of a web form", BODY)),
    (r"http/[\d.]+ \d{3}\s", Kind("the answer of a web server with its headers", BODY_ONLY)),
    (r"p[1-7f]\s+(#[^\n]*\n\s*)?(width )?\d+\s", Kind("a PNM picture", PICTURE)),
)
# Starts of texts, after white space and in lower case. The first match wins.
TEXTS: tuple[tuple[str, Kind], ...] = (
    (r"version https://git-lfs", Kind("a Git LFS pointer", "Fetch the file with git lfs pull, and upload that.")),
    (r"(suk[qr]a|tu0ak|data:image/tiff)", Kind("a TIFF in base64", DECODED)),
    (r"(<\?xml[^>]*>\s*)?(<!--.{0,2000}?-->\s*)?(<!doctype html|<html|<head)", Kind("an HTML page", SERVER)),
    (
        r"(<\?xml[^>]*>\s*)?(<!doctype[^>]*>\s*)?<([\w-]+:)?(serviceexception|exceptionreport|error[>\s])",
        Kind("the error report of a server", SERVER),
    ),
    (r".{0,2000}<vrtdataset", Kind("a GDAL virtual raster", REFERS)),
    (r".{0,2000}<(gdal_wms|mrf_meta|gdaltileindexdataset)", Kind("a description of a raster for GDAL", REFERS)),
    (r".{0,2000}<pamdataset", Kind("an .aux.xml file", BESIDE)),
    (r".{0,2000}<(qgis|!doctype qgis)", Kind("a QGIS project or style", REFERS)),
    (r".{0,2000}<(\w+:)?kml[>\s]", Kind("a KML file", SHAPES)),
    (r".{0,2000}<(gpx|osm)[>\s]", Kind("a GPX or OpenStreetMap file", SHAPES)),
    (r".{0,2000}(<gml:|opengis\.net/gml)", Kind("a GML file", SHAPES)),
    (r".{0,2000}<svg[>\s]", Kind("an SVG picture", PICTURE)),
    (r"<\?xml|<[a-z!]", Kind("an XML file", TABLE)),
    (r"\{.{0,4000}\"stac_version\"\s*:", Kind("a STAC item or catalog", REFERS)),
    (r"\{.{0,4000}\"type\"\s*:\s*\"(feature|topology|geometry)", Kind("a GeoJSON file", SHAPES)),
    (r"[\[{].{0,4000}\"(errors?|message|detail|exception|fault)\"\s*:", Kind("the error report of a server", SERVER)),
    (r"[\[{]\s*[\"\[{\]}\d]", Kind("a JSON file", TABLE)),
    (r"(ncols|nrows|xllcorner)\s", Kind("an ESRI ASCII grid", CONVERT)),
    (r"envi\s", Kind("an ENVI header", BESIDE)),
    (r"datasetheader begin", Kind("an ER Mapper header", BESIDE)),
    (r"(pds_version_id|object\s*=\s*isiscube|ccsd3zf)", Kind("a PDS or ISIS file", CONVERT)),
    (r"!table", Kind("a MapInfo table", BESIDE)),
    (r"(projcs|geogcs|compd_cs|local_cs|projcrs|geogcrs)\[", Kind("a .prj file", BESIDE)),
    (r"(-?[\d.]+(e[-+]?\d+)?\s+){5}-?[\d.]+(e[-+]?\d+)?\s*$", Kind("a world file", BESIDE)),
    (r"(999\s|.{0,40}\b0\s+section\s)", Kind("a DXF drawing", SHAPES)),
    (r"(#\?radiance|#\?rgbe)", Kind("a Radiance picture", PICTURE)),
    (r"#!", Kind("a script", PROGRAM)),
)  # fmt: skip
TEXT = Kind("a text file", "Choose the .tif file and upload that; rows of x, y and z are made a GeoTIFF by gdal_grid.")
_HEADS, _TEXTS = ([(re.compile(pattern, re.DOTALL), kind) for pattern, kind in table] for table in (HEADS, TEXTS))

EMPTY = Kind("an empty file", AGAIN)
ZEROS = Kind("a file of zeros", AGAIN)
UNKNOWN = "This file is not a TIFF. Export it as GeoTIFF and upload it again."


def not_a_tiff(file: BinaryIO) -> JobError:
    """Return the error for a file, with the name of its format if that is known."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(READ_BYTES)
    file.seek(max(0, size - READ_BYTES))
    kind = kind_of(head, file.read(READ_BYTES))
    if kind is None:
        return invalid_input("not_a_tiff", UNKNOWN, magic=head[:4].hex())
    words = "is empty" if kind is EMPTY else f"is not a TIFF but {kind.name}"
    return invalid_input("not_a_tiff", f"This file {words}. {kind.cure}", magic=head[:4].hex(), found=kind.name)


def kind_of(head: bytes, tail: bytes) -> Kind | None:
    """Return the kind of a file by its first and last 64 kB, or `None` if it is unknown."""
    found = (recognize(head, tail) for recognize in (_blank, _zip, _database, _by_magic, _bitmap, _dbf, _text))
    return next(filter(None, found), None)


def _blank(head: bytes, tail: bytes) -> Kind | None:
    if not head:
        return EMPTY
    return None if head.strip(b"\0") or tail.strip(b"\0") else ZEROS


def _zip(head: bytes, tail: bytes) -> Kind | None:
    if not head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return None
    names = (head + tail).lower()
    return next((kind for name, kind in ZIPS if name in names), ZIP)


def _database(head: bytes, _tail: bytes) -> Kind | None:
    if not head.startswith(b"SQLite format 3\0"):
        return None
    if head[68:70] == b"GP" or b"gpkg_contents" in head:
        return GEOPACKAGE
    return MBTILES if head[68:72] == b"MPBX" or b"tile_column" in head else DATABASE


def _by_magic(head: bytes, _tail: bytes) -> Kind | None:
    return next((kind for offset, magic, kind in MAGICS if head.startswith(magic, offset)), None)


def _bitmap(head: bytes, _tail: bytes) -> Kind | None:
    """BM alone is ambiguous, so two reserved numbers must be 0, and the header size a known one."""
    sure = head[:2] == b"BM" and head[6:10] == bytes(4) and head[14:15] in {b"\x0c", b"\x28", b"\x38", b"\x6c", b"\x7c"}
    return Kind("a BMP picture", PICTURE) if sure else None


def _dbf(head: bytes, _tail: bytes) -> Kind | None:
    """DBASE has a version, a date, and a header of whole fields."""
    version, month, day = head[0], *head[2:4].ljust(2, b"\0")
    whole = int.from_bytes(head[8:10], "little") % 32 in {1, 8}
    sure = version in {0x03, 0x30, 0x83, 0x8B, 0xF5} and month in range(1, 13) and day in range(1, 32) and whole
    return Kind("a dBASE table", SHAPES) if sure else None


def _text(head: bytes, _tail: bytes) -> Kind | None:
    words = _decoded(head).lstrip().lower()
    binary = any(letter < " " and letter not in "\t\n\r\f\x1a\x1b" for letter in words[:TEXT_LETTERS])
    found = (kind for pattern, kind in (_HEADS if binary else (*_HEADS, *_TEXTS)) if pattern.match(words))
    return next(found, None if binary else TEXT)


def _decoded(head: bytes) -> str:
    for mark, codec in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"), (b"\xef\xbb\xbf", "utf-8")):
        if head.startswith(mark):
            return head[len(mark) :].decode(codec, errors="replace")
    return head.decode("latin-1")
