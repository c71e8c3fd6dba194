"""Files of many kinds from public projects through real processes. Each gives a placed picture or an error code."""

from pathlib import Path

import pytest
import rasterio

from tests.support.processes import FINAL, ROOT, Programs
from tests.support.waiting import wait_until

CORPUS = ROOT.parent / "shared" / "corpus"

# Twenty different files with their expected results.
PICTURES = [
    "rasterio__RGB.byte.tif",  # RGB with nodata, UTM
    "MapServer__east.tif",  # RGBA
    "MapServer__nan.tif",  # sparse float32 of 62 megapixels without a valid pixel
    "MapServer__grey_rot.tif",  # no CRS
    "MapServer__contour_gwm.tif",  # seven bands of float64
    "MapServer__tileSG-000-019_3-3.tif",  # interrupted projection, int16
    "rio-cogeo__image_geos.tif",  # YCbCr JPEG with a mask
    "rio-cogeo__image_web_z5_z11.tif",  # 71 megapixels with overviews
    "rio-tiler__cog_cmap.tif",  # palette with alpha
    "rio-tiler__cog_dateline.tif",  # across 180°
    "rio-tiler__cog_gcps_ovr.tif",  # ground control points only
    "rio-tiler__cog_int16.tif",  # int16 with nodata
    "rio-tiler__cog_nonearth.tif",  # BigTIFF of Europa
    "rioxarray__test_rpcs.tif",  # RPC only
    "rioxarray__2d_test.tif",  # rotated
    "async-tiff__miniswhite-1c-1b.tiff",  # bilevel, white is 0
    "image-tiff__seq-1c-8b-multipage-adeefdcc.tiff",  # three pages
    "async-tiff__cmyk-3c-32b-float.tiff",  # CMYK
]
REFUSALS = {
    "geotrellis__aspect-tiled-bilinear-linux.tif": "not_a_tiff",
    "geotrellis__jpeg-test-deflate-small.tif": "corrupt_block",
}


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus stands beside the project only where it is developed")
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # some are refused with a code
def test_twenty_kinds_of_files_pass_through_the_whole_stack(stack: Programs, tmp_path: Path) -> None:
    stack.worker(CONCURRENT_JOBS="2")
    names = [*PICTURES, *REFUSALS]
    ids = {name: stack.submit(CORPUS / name, {"maxSize": 512}) for name in names}
    person = stack.person()

    def states() -> dict[str, str]:
        return {name: person.get(f"/api/geo-jobs/{one}").json()["state"] for name, one in ids.items()}

    wait_until(lambda: set(states().values()) <= set(FINAL), "all jobs to end", 100)
    jobs = {name: stack.look(one) for name, one in ids.items()}
    errors = {name: job["error"] and job["error"]["code"] for name, job in jobs.items()}  # type: ignore[index]
    assert errors == dict.fromkeys(PICTURES) | REFUSALS
    for name in PICTURES:
        results = stack.download(ids[name], tmp_path / name)
        with rasterio.open(results[f"{Path(name).stem}.png"]) as picture:
            assert max(picture.shape) <= 512
            assert picture.dataset_mask().any() == (jobs[name]["metadata"]["validFraction"] > 0)  # type: ignore[index]
            placed = jobs[name]["metadata"]["crs"] is not None  # type: ignore[index]
            assert (picture.crs is not None) == placed
    assert list(stack.folder.glob("*/jobs/geojob_*")) == []
