"""Other formats named .tif, files beside the file, and coordinate systems that are paths are not followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.crs
from pyproj import CRS

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.crs import from_gdal, parse_crs
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.sandbox.landlock import AllowedPaths
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.tasks.picture import ConversionRequest, ConversionResult, convert
from tests.support.canary import Canary
from tests.support.rasters import Tiff, picture_of, ramp, run
from tests.support.raw_tiff import geo_tags, placed, write_raw_tiff
from tests.support.tiffs import RawTiff, gray

DISGUISES = {
    "VRT": '<VRTDataset rasterXSize="20" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
    "<SourceFilename>{path}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>",
    "WMS": '<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}</ServerUrl></Service></GDAL_WMS>',
    "MRF": "<MRF_META><CachedSource><Source>{path}</Source></CachedSource><Raster></Raster></MRF_META>",
    "GTI": "<GDALTileIndexDataset><IndexDataset>{path}</IndexDataset></GDALTileIndexDataset>",
    "STAC": '{{"type": "FeatureCollection", "stac_version": "1.0.0", "features": [{{"assets": {{"a": "{url}"}}}}]}}',
    "ENVI": "ENVI\nsamples = 10\nlines = 10\nfile = {path}\n",
    "path": "{path}",
    "address": "/vsicurl/{url}",
}


@pytest.mark.parametrize("kind", DISGUISES)
def test_another_format_named_tif_is_refused(kind: str, bird: Canary, tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    source.write_text(DISGUISES[kind].format(path=bird.path, url=bird.url))
    with pytest.raises(JobError) as caught:
        run(source, tmp_path / "out")
    assert caught.value.code == "not_a_tiff"
    assert bird.touched() == []


@pytest.mark.parametrize("kind", DISGUISES)
def test_a_tiff_that_is_also_another_format_is_a_tiff(kind: str, bird: Canary, tmp_path: Path) -> None:
    """Data behind the picture, where other readers may look, is not read."""
    source = tmp_path / "a.tif"
    source.write_bytes(
        RawTiff([gray()], data=bytes(300) + DISGUISES[kind].format(path=bird.path, url=bird.url).encode()).bytes()
    )
    assert run(source, tmp_path / "out").outputs
    assert bird.touched() == []


@pytest.mark.parametrize("suffix", [".tif.aux.xml", ".tif.ovr", ".tif.msk", ".tfw", ".tif.vrt", ".prj", "_RPC.TXT"])
def test_files_beside_the_input_are_ignored(suffix: str, bird: Canary, tmp_path: Path) -> None:
    source = Tiff(ramp(600, 600), crs=None, transform=None).write(tmp_path / "a.tif")
    alone = picture_of(run(source, tmp_path / "alone", max_size=100))
    beside = tmp_path / f"a{suffix}"
    beside.write_text(
        f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{bird.path}</MDI></Metadata></PAMDataset>'
    )
    result = run(source, tmp_path / "out", max_size=100)
    assert np.array_equal(picture_of(result), alone)
    assert result.metadata["crs"] is None
    assert bird.touched() == []


_GEOGCRS = (
    'GEOGCRS["a",DATUM["a",ELLIPSOID["a",6378137,298.3]],CS[ellipsoidal,2],AXIS["lat",north],AXIS["lon",east],'
    'ANGLEUNIT["degree",0.0174532925199433]]'
)
_BOUND = (
    f'BOUNDCRS[SOURCECRS[{_GEOGCRS}],TARGETCRS[{_GEOGCRS}],ABRIDGEDTRANSFORMATION["a to b",METHOD["NTv2"],'
    'PARAMETERFILE["Latitude and longitude difference file","{path}"]]]'
)
_GEOGCS = 'GEOGCS["a",DATUM["a",SPHEROID["a",6378137,298.3]%s],PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]]'
_MERCATOR = 'PROJCS["a",' + _GEOGCS % "" + ',PROJECTION["Mercator_1SP"],UNIT["metre",1],%s]'
WITH_GRIDS = [
    _BOUND,
    _GEOGCS % ',EXTENSION["PROJ4_GRIDS","{path}"]',
    _MERCATOR % 'EXTENSION["PROJ4","+proj=merc +nadgrids={path} +type=crs"]',
]
PROJJSON = '{{"type": "BoundCRS", "transformation": {{"parameters": [{{"name": "file", "\\u0076alue": "{path}"}}]}}}}'
# PROJ's own language, at its places in WKT.
PROJ_WORDS = (
    "+proj=hgridshift +grids={path}",
    "+proj=pipeline +step proj=xyzgridshift grids={path}",
    "+proj=tinshift +file={path}",
    "+proj=defmodel +model={path}",
    "+init={path}:x",
)
_BY_METHOD = (
    f'PROJCRS["a",BASE{_GEOGCRS.partition(",CS[")[0]}],CONVERSION["b",METHOD["PROJ-based operation method: %s"]],'
    'CS[Cartesian,2],AXIS["e",east],AXIS["n",north],LENGTHUNIT["metre",1]]'
)
# A method of this name is a PROJ operation with its parameters.
_BY_NAME = _BY_METHOD.replace("PROJ-based operation method: ", "PROJ ")
OPERATIONS = ("hgridshift grids={path}", "ob_tran o_proj=hgridshift grids={path}", "tinshift file={path}")
_BY_EXTENSION = f'PROJCS["a",{_GEOGCS % ""},PROJECTION["custom_proj4"],UNIT["metre",1],EXTENSION["PROJ4","%s"]]'
SYSTEMS = [
    "{path}",
    "file://{path}",
    "{url}",
    "+proj=longlat +nadgrids={path} +type=crs",
    "+proj=longlat +nadgrids=@{url} +type=crs",
    "+init={path}:1",
    "+proj=pipeline +step +proj=hgridshift +grids={path}",
    "urn:ogc:def:crs:{path}",
    "@{path}",
    *WITH_GRIDS,
    PROJJSON,
    "+proj=ob_tran +o_proj=hgridshift +grids={path}",
    "+proj=utm +zone=33 +nadgrids=@null,{path}",
    "+proj=utm +zone=33 +ellps=bessel +geoidgrids={path}",
    *(_BY_METHOD % words for words in PROJ_WORDS),
    *(_BY_NAME % words for words in OPERATIONS),
    *(_BY_EXTENSION % words for words in PROJ_WORDS),
]


async def convert_in_a_child(source: Path, options: RenderOptions, out: Path) -> ConversionResult:
    """Convert in the sandbox of a job."""
    out.mkdir()
    request = ConversionRequest(source=source, output_folder=out, stem="a", options=options, source_name="a.tif")
    box = Sandbox(convert, ConversionResult, preload=("geoprocessing_worker.tasks.preload",))
    return await box.run(request, lambda *_: None, AllowedPaths((source,), (out,)))


@pytest.mark.parametrize("field", ["coordinateSystem", "sourceCrs"])
@pytest.mark.parametrize("system", SYSTEMS)
async def test_a_coordinate_system_opens_no_file(system: str, field: str, bird: Canary, tmp_path: Path) -> None:
    """Refused before PROJ parses it. The sandbox is the second layer."""
    source = Tiff(ramp(20, 20), crs=None if field == "sourceCrs" else "EPSG:4326").write(tmp_path / "a.tif")

    async def use(named: str) -> None:
        options = RenderOptions.from_payload({field: named}, RenderOptions())
        options.check()
        await convert_in_a_child(source, options, tmp_path / "out")

    with pytest.raises(JobError) as caught:
        await use(system.format(path=bird.path, url=bird.url))
    assert caught.value.code == "bad_crs"
    assert bird.touched() == []


def test_no_spelling_of_projjson_hides_a_file_name(bird: Canary) -> None:
    """Valid PROJJSON that PROJ would follow: a bound system with a grid, and PROJ's own language as a method."""
    shifted = CRS.from_user_input(f"+proj=longlat +ellps=bessel +nadgrids={bird.path} +type=crs")
    bound = shifted.to_json_dict()["transformation"]
    wgs84 = CRS.from_epsg(4326).to_json_dict()
    systems: list[dict[str, Any]] = [
        {"type": "BoundCRS", "source_crs": wgs84, "target_crs": wgs84, "transformation": bound},
        CRS.from_epsg(32638).to_json_dict(),
    ]
    systems[1]["conversion"] = {"name": "a", "method": {"name": f"PROJ-based operation method: +grids={bird.path}"}}
    for system in systems:
        plain = json.dumps(system)
        for text in (plain, plain.replace("PROJ-based", "PROJ-\\u0062ased").replace('"value"', '"v\\u0061lue"')):
            CRS.from_json(text)  # PROJ parses it
            with pytest.raises(JobError, match="Unknown coordinate system"):
                parse_crs(text)
    assert bird.touched() == []


@pytest.mark.parametrize("proj", ["+proj=tmerc +lon_0=9 +ellps=bessel +nadgrids=%s", "+proj=tinshift +file=%s"])
async def test_a_system_that_names_another_file_opens_no_file(proj: str, bird: Canary, tmp_path: Path) -> None:
    """A grid loses its shift, an operation the georeference. GDAL would open the latter's file. The sandbox holds."""
    words = _BY_EXTENSION.replace("custom_proj4", "Transverse_Mercator") % (proj % bird.path)
    keys = geo_tags({1024: 32767, 1025: 1, 3072: 32767, 3073: f"ESRI PE String = {words}"})
    source = write_raw_tiff(tmp_path / "a.tif", np.zeros((20, 20, 1), np.uint8), tags=keys | placed(9000, 5e6, 10))
    result = await convert_in_a_child(source, RenderOptions(), tmp_path / "out")
    assert (result.metadata["crs"] is None) == ("tinshift" in proj)
    assert bird.touched() == []


def test_a_system_with_a_file_name_counts_as_none() -> None:
    """If GDAL ever reads one from a file, PROJ does not follow it."""
    words = "+proj=tinshift +file=/etc/hostname"
    wkt = CRS.from_epsg(32638).to_wkt("WKT1_GDAL")
    wkt = wkt.replace(',AUTHORITY["EPSG","32638"]]', f',EXTENSION["PROJ4","{words}"]]')
    assert words in wkt
    assert from_gdal(rasterio.crs.CRS.from_wkt(wkt)) is None
