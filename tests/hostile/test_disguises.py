"""Other formats named .tif, files beside the file, and coordinate systems that are paths: none of them is followed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from geoprocessing_worker.confinement import Reach
from geoprocessing_worker.conversion import ConversionRequest, ConversionResult, convert
from geoprocessing_worker.errors import JobError
from geoprocessing_worker.options import RenderOptions
from geoprocessing_worker.sandbox import Sandbox
from tests.support.canary import Canary
from tests.support.rasters import Tiff, picture_of, ramp, run
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
def test_another_format_by_the_name_of_a_tiff_is_none(kind: str, bird: Canary, tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    source.write_text(DISGUISES[kind].format(path=bird.path, url=bird.url))
    with pytest.raises(JobError) as caught:
        run(source, tmp_path / "out")
    assert caught.value.code == "not_a_tiff"
    assert bird.touched() == []


@pytest.mark.parametrize("kind", DISGUISES)
def test_a_tiff_that_is_something_else_too_is_a_tiff(kind: str, bird: Canary, tmp_path: Path) -> None:
    """What stands behind the picture, where other readers may look for it, is not read."""
    source = tmp_path / "a.tif"
    source.write_bytes(
        RawTiff([gray()], data=bytes(300) + DISGUISES[kind].format(path=bird.path, url=bird.url).encode()).bytes()
    )
    assert run(source, tmp_path / "out").outputs
    assert bird.touched() == []


@pytest.mark.parametrize("suffix", [".tif.aux.xml", ".tif.ovr", ".tif.msk", ".tfw", ".tif.vrt", ".prj", "_RPC.TXT"])
def test_what_lies_beside_a_file_says_nothing_about_it(suffix: str, bird: Canary, tmp_path: Path) -> None:
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
]


@pytest.mark.parametrize("field", ["coordinateSystem", "sourceCrs"])
@pytest.mark.parametrize("system", SYSTEMS)
async def test_a_coordinate_system_opens_nothing(system: str, field: str, bird: Canary, tmp_path: Path) -> None:
    """Refused before PROJ sees it; should that fail, the child's walls stand behind."""
    source = Tiff(ramp(20, 20), crs=None if field == "sourceCrs" else "EPSG:4326").write(tmp_path / "a.tif")
    out = tmp_path / "out"
    out.mkdir()

    async def use(named: str) -> None:
        options = RenderOptions.from_payload({field: named}, RenderOptions())
        request = ConversionRequest(source=source, output_folder=out, stem="a", options=options, source_name="a.tif")
        box = Sandbox(convert, ConversionResult, preload=("geoprocessing_worker.forkserver",))
        await box.run(request, lambda *_: None, Reach((source,), (out,)))

    with pytest.raises(JobError) as caught:
        await use(system.format(path=bird.path, url=bird.url))
    assert caught.value.code == "bad_crs"
    assert bird.touched() == []
