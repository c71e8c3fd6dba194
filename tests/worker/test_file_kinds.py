"""Other formats than TIFF are rejected by name, with a way to a GeoTIFF: real files of each kind."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import sqlite3
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.io import MemoryFile

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.tasks.builtin import GEOTIFF_INFO, GEOTIFF_TO_COG, GEOTIFF_TO_PNG, GEOTIFF_TO_TILES
from geoprocessing_worker.tiff.file_kinds import HEADS, MAGICS, TEXTS, ZIPS, kind_of
from tests.support.rasters import DEGREES, Tiff, ramp, run
from tests.support.task_runs import perform_on
from tests.support.tiffs import RawTiff, gray


def zipped(*names: str) -> bytes:
    with io.BytesIO() as made:
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, bytes(range(256)) * 400)
        return made.getvalue()


def tarred(mode: Any) -> bytes:
    with io.BytesIO() as made:
        with tarfile.open(fileobj=made, mode=mode) as archive:
            archive.addfile(tarfile.TarInfo("map.tif"))
        return made.getvalue()


def picture(kind: str) -> bytes:
    with io.BytesIO() as made:
        Image.linear_gradient("L").convert("RGB").save(made, kind)
        return made.getvalue()


def raster(driver: str) -> bytes:
    """As GDAL writes it."""
    with MemoryFile() as memory:
        options = {"ICORDS": "G"} if driver == "NITF" else {}
        with memory.open(
            driver=driver, width=16, height=16, count=1, dtype="uint8", crs="EPSG:4326", transform=DEGREES, **options
        ) as made:
            made.write(ramp(16, 16))
        content: bytes = memory.read()
        return content


def database(*statements: str, application: int = 0) -> bytes:
    with closing(sqlite3.connect(":memory:")) as made:
        made.execute(f"PRAGMA application_id = {application}")
        for statement in statements:
            made.execute(statement)
        return made.serialize()


def dbase() -> bytes:
    field = b"NAME".ljust(11, b"\0") + b"C" + bytes(4) + bytes([10]) + bytes(15)
    return struct.pack("<4BIHH20x", 3, 126, 11, 29, 0, 65, 11) + field + b"\r\x1a"


TILE_TABLE = "CREATE TABLE tiles (zoom_level integer, tile_column integer, tile_row integer, tile_data blob)"
GML = '<?xml version="1.0"?><a:b xmlns:gml="http://www.opengis.net/gml"><gml:Point/></a:b>'
FORM = (
    b'--------------------------d74496d6\r\nContent-Disposition: form-data; name="file"; filename="a.tif"\r\n\r\nII*\0'
)
WMS_ERROR = (
    '<?xml version="1.0"?>\n<ServiceExceptionReport version="1.3.0"><ServiceException/></ServiceExceptionReport>'
)
OWS_ERROR = '<?xml version="1.0"?><ows:ExceptionReport xmlns:ows="http://www.opengis.net/ows"/>'
S3_ERROR = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code></Error>'
WKT = 'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]]]'

KINDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "nothing": ("is empty", lambda: b""),
    "zeros": ("a file of zeros", lambda: bytes(300_000)),
    "zip": ("a ZIP archive", lambda: zipped("readme.txt")),
    "zip with a map": ("a ZIP archive. Unpack it", lambda: zipped("doc/readme.txt", "maps/A.TIF", "a.kml")),
    "empty zip": ("a ZIP archive", zipped),
    "kmz": ("a KMZ file", lambda: zipped("doc.kml", "files/overlay.png")),
    "xlsx": ("a Microsoft Office document", lambda: zipped("[Content_Types].xml", "xl/workbook.xml")),
    "zipped shapefile": ("a zipped shapefile", lambda: zipped("a.shp", "a.dbf", "a.shx")),
    "many files first": ("a zipped shapefile", lambda: zipped(*(f"{n}.bin" for n in range(500)), "a.shp")),
    "qgz": ("a QGIS project", lambda: zipped("a.qgs")),
    "gzip": ("a gzip archive", lambda: gzip.compress(b"II*\0")),
    "bzip2": ("a bzip2 archive", lambda: bz2.compress(b"II*\0")),
    "xz": ("an xz archive", lambda: lzma.compress(b"II*\0")),
    "tar": ("a tar archive", lambda: tarred("w")),
    "tgz": ("a gzip archive", lambda: tarred("w:gz")),
    "zstd": ("a Zstandard archive", lambda: b"\x28\xb5\x2f\xfd\x04\x00" + bytes(9)),
    "7z": ("a 7z archive", lambda: b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(30)),
    "rar": ("a RAR archive", lambda: b"Rar!\x1a\x07\x01\0" + bytes(30)),
    "jpeg": ("a JPEG picture", lambda: picture("JPEG")),
    "png": ("a PNG picture", lambda: picture("PNG")),
    "gif": ("a GIF picture", lambda: picture("GIF")),
    "webp": ("a WebP picture", lambda: picture("WEBP")),
    "bmp": ("a BMP picture", lambda: picture("BMP")),
    "jp2": ("a JPEG 2000 picture", lambda: picture("JPEG2000")),
    "j2k": ("a JPEG 2000 picture", lambda: b"\xff\x4f\xff\x51\x00\x29" + bytes(40)),
    "ppm": ("a PNM picture", lambda: picture("PPM")),
    "avif": ("an AVIF picture", lambda: b"\0\0\0 ftypavif\0\0\0\0avifmif1"),
    "heic": ("a HEIC picture", lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
    "jxl": ("a JPEG XL picture", lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20)),
    "bare jxl": ("a JPEG XL picture", lambda: b"\xff\x0a\xfa\x1f" + bytes(20)),
    "mp4": ("a video", lambda: b"\0\0\0\x18ftypmp42\0\0\0\0"),
    "psd": ("a Photoshop picture", lambda: b"8BPS\0\x01" + bytes(30)),
    "cr3": ("a camera's raw picture", lambda: b"\0\0\0\x18ftypcrx \0\0\0\0"),
    "img": ("an ERDAS IMAGINE raster", lambda: raster("HFA")),
    "nitf": ("an NITF raster", lambda: raster("NITF")),
    "netcdf 3": ("a NetCDF file", lambda: b"CDF\x01" + bytes(60)),
    "netcdf 4": ("an HDF5 or NetCDF file", lambda: b"\x89HDF\r\n\x1a\n" + bytes(60)),
    "hdf 4": ("an HDF4 file", lambda: b"\x0e\x03\x13\x01" + bytes(60)),
    "grib": ("a GRIB file", lambda: b"GRIB\0\0\0\x02" + bytes(60)),
    "ecw": ("an ECW raster", lambda: b"e\x02\x01\0\0" + bytes(60)),
    "mrsid": ("a MrSID raster", lambda: b"msid\x03\0" + bytes(60)),
    "ascii grid": ("an ESRI ASCII grid", lambda: b"ncols         4\r\nnrows 6\nxllcorner 0.0\nyllcorner 0\n1 2 3 4\n"),
    "capitals": ("an ESRI ASCII grid", lambda: b"NCOLS 4\nNROWS 6\nXLLCENTER 0.0\n"),
    "surfer": ("a Surfer grid", lambda: b"DSBB" + bytes(60)),
    "envi header": ("an ENVI header", lambda: b"ENVI\nsamples = 10\nlines = 10\n"),
    "vrt": ("a GDAL virtual raster", lambda: b'<?xml version="1.0"?>\n<VRTDataset rasterXSize="1"></VRTDataset>'),
    "wms": ("a description of a raster for GDAL", lambda: b"<GDAL_WMS></GDAL_WMS>"),
    "fits": ("a FITS file", lambda: b"SIMPLE  =                    T".ljust(80)),
    "pdf": ("a PDF document", lambda: b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\0"),
    "postscript": ("a PostScript file", lambda: b"%!PS-Adobe-3.0\n"),
    "gpkg": ("a GeoPackage", lambda: database("CREATE TABLE gpkg_contents (a)", application=0x47504B47)),
    "mbtiles": ("an MBTiles archive", lambda: database(TILE_TABLE)),
    "sqlite": ("an SQLite database", lambda: database("CREATE TABLE a (b)")),
    "pmtiles": ("a PMTiles archive", lambda: b"PMTiles\x03" + bytes(120)),
    "shp": ("a shapefile", lambda: struct.pack(">i20xi", 9994, 50) + bytes(72)),
    "dbf": ("a dBASE table", dbase),
    "las": ("a LAS or LAZ point cloud", lambda: b"LASF" + bytes(200)),
    "dwg": ("a DWG drawing", lambda: b"AC1032\0\0" + bytes(30)),
    "dxf": ("a DXF drawing", lambda: b"  0\r\nSECTION\r\n  2\r\nHEADER\r\n"),
    "flatgeobuf": ("a FlatGeobuf file", lambda: b"fgb\x03fgb\x00" + bytes(30)),
    "kml": ("a KML file", lambda: b'<?xml version="1.0"?>\n<kml xmlns="http://www.opengis.net/kml/2.2"></kml>'),
    "gml": ("a GML file", GML.encode),
    "gpx": ("a GPX or OpenStreetMap file", lambda: b'<?xml version="1.0"?><gpx version="1.1"></gpx>'),
    "svg": ("an SVG picture", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'),
    "xml": ("an XML file", lambda: b'<?xml version="1.0"?><a/>'),
    "utf-16 xml": ("an XML file", lambda: '\ufeff<?xml version="1.0"?><a/>'.encode("utf-16-le")),
    "geojson": ("a GeoJSON file", lambda: json.dumps({"type": "FeatureCollection", "features": []}).encode()),
    "stac": ("a STAC item", lambda: json.dumps({"type": "Feature", "stac_version": "1.0.0"}).encode()),
    "json": ("a JSON file", lambda: b'{"a": 1}'),
    "error in json": ("the error report of a server", lambda: b'{"detail": "Not found"}'),
    "html": ("an HTML page", lambda: b"\r\n<!DOCTYPE html>\n<html><title>404 Not Found</title></html>"),
    "html with a mark": ("an HTML page", lambda: b"\xef\xbb\xbf<html><body>Sign in</body></html>"),
    "xhtml": ("an HTML page", lambda: b'<?xml version="1.0"?><!-- a --><!DOCTYPE html PUBLIC "x"><html/>'),
    "wms error": ("the error report of a server", WMS_ERROR.encode),
    "ows error": ("the error report of a server", OWS_ERROR.encode),
    "s3 error": ("the error report of a server", S3_ERROR.encode),
    "world file": ("a world file", lambda: b"30.0\n0.0\n0.0\n-30.0\n400015.0\n1.699985e+06\n"),
    "prj": ("a .prj file", WKT.encode),
    "aux.xml": ("an .aux.xml file", lambda: b"<PAMDataset>\n</PAMDataset>"),
    "csv": ("a text file", lambda: b"x,y,z\n1,2,3\n"),
    "lfs": ("a Git LFS pointer", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
    "appledouble": ("a macOS companion file", lambda: b"\0\x05\x16\x07\0\x02\0\0Mac OS X        "),
    "answer": ("the answer of a web server", lambda: b"HTTP/1.1 200 OK\r\nContent-Type: image/tiff\r\n\r\nII*\0"),
    "form": ("the body of a web form", lambda: FORM),
    "base64": ("a TIFF in base64", lambda: b"SUkqAAgAAAAAAA=="),
    "windows program": ("a Windows program", lambda: b"MZ\x90\0\x03" + bytes(60)),
    "linux program": ("a Linux program", lambda: Path(sys.executable).resolve().read_bytes()[:100_000]),
    "script": ("a script", lambda: b"#!/bin/sh\necho\n"),
    "swapped": ("a TIFF with a damaged header", lambda: b"II\0*" + bytes(60)),
}


@pytest.mark.parametrize("validate_headers", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_tiff_is_refused_by_its_name(kind: str, validate_headers: bool, tmp_path: Path) -> None:
    """With the gate and without, then one sentence on the way to a GeoTIFF."""
    name, content = KINDS[kind]
    (tmp_path / "a.tif").write_bytes(content())
    with pytest.raises(JobError) as caught:
        run(tmp_path / "a.tif", tmp_path / "out", validate_headers=validate_headers)
    assert caught.value.code == "not_a_tiff"
    assert name in caught.value.message
    assert re.fullmatch(
        r"This file is (empty|not a TIFF but an? .+)\. [A-Z].*\.|.* but the .+\. [A-Z].*\.", caught.value.message
    )


@pytest.mark.parametrize("handler", [GEOTIFF_TO_PNG, GEOTIFF_TO_COG, GEOTIFF_TO_TILES, GEOTIFF_INFO])
def test_every_kind_of_job_names_it(handler: Any, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(zipped("a.tif"))
    with pytest.raises(JobError, match=r"ZIP archive\. Unpack it and upload the GeoTIFF in it\.") as caught:
        perform_on(handler, tmp_path / "a.tif", tmp_path / "out")
    assert caught.value.detail["found"] == "a ZIP archive"


def test_unknown_bytes_are_not_given_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(np.random.default_rng(1).bytes(5000))
    with pytest.raises(JobError, match=r"This file is not a TIFF\. Export it as GeoTIFF and upload it again\."):
        run(tmp_path / "a.tif", tmp_path / "out")


def test_no_tiff_is_taken_for_anything_else(tmp_path: Path) -> None:
    """Of either byte order, classic and big. Names are for files without one of the four magic numbers."""
    for order in "<>":
        for big in (False, True):
            content = RawTiff([gray()], data=bytes(300), order=order, big=big).bytes()
            (tmp_path / "a.tif").write_bytes(content)
            assert run(tmp_path / "a.tif", tmp_path / "out").outputs
    made = Tiff(ramp(16, 16)).write(tmp_path / "b.tif")
    with rasterio.open(made) as dataset:
        assert dataset.driver == "GTiff"


def test_every_kind_has_a_name_and_a_sentence() -> None:
    """Each remedy gives a way to an accepted file, and ends."""
    kinds = [kind for _, _, kind in MAGICS] + [kind for table in (ZIPS, HEADS, TEXTS) for _, kind in table]
    for kind in kinds:
        assert re.match(r"(an?|the) \S", kind.name)
        assert re.fullmatch(r"[A-Z][^.]*(\.(tif|prj)\b[^.]*)*\.", kind.cure), kind.cure


@given(st.binary(max_size=300), st.binary(max_size=50))
def test_any_bytes_are_looked_at_without_an_error(head: bytes, tail: bytes) -> None:
    for start in (b"", b"PK\x03\x04", b"BM", b"\x03", b"SQLite format 3\0", b"<?xml", b"{", b"\xff\xfe"):
        kind_of(start + head, tail)


def test_a_long_text_takes_no_time() -> None:
    """No pattern backtracks on hostile text."""
    for text in (b"1" * 65_536, b"<!--" + b"-" * 65_000, b'{"type"' + b" " * 65_000, b"1 " * 32_000, b"<" * 65_000):
        kind_of(text, text)
