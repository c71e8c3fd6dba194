"""Missing blocks of a sparse file cost no work, and those that are stored are shown where they lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window
from rio_cogeo.cogeo import cog_validate

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.handlers import TaskRequest, TaskResult
from geoprocessing_worker.raster import StoredBlocks
from geoprocessing_worker.render.task_options import CogOptions, TilesOptions
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.tasks.cog.job import make_cog
from geoprocessing_worker.tasks.tiles.job import make_tiles
from tests.support.rasters import picture_of, quiet, run

PLACE = Affine(1, 0, 400_000, 0, -1, 1_700_000)
VALUE = 200


def sparse(path: Path, size: tuple[int, int], blocks: list[tuple[int, int]], side: int = 512, **profile: Any) -> Path:
    """A file of (width, height) bytes of which these blocks, by (row, column), are stored."""
    options = {"tiled": True, "blockxsize": side, "blockysize": side, "compress": "deflate", "SPARSE_OK": True}
    shape = {"width": size[0], "height": size[1], "count": 1, "dtype": "uint8", "BIGTIFF": "YES"}
    with (
        gdal_environment(),
        rasterio.open(
            path, "w", driver="GTiff", crs="EPSG:32638", transform=PLACE, **{**shape, **options, **profile}
        ) as dataset,
    ):
        for row, column in blocks:
            window = Window(column * side, row * side, side, side)
            dataset.write(np.full((dataset.count, side, side), VALUE, dataset.dtypes[0]), window=window)
    return path


def request(source: Path, options: Any) -> TaskRequest[Any]:
    folder = source.parent / "out"
    folder.mkdir(exist_ok=True)
    return TaskRequest(source, folder, "a", options, source.name)


@pytest.mark.parametrize(
    "profile", [{}, {"count": 3, "interleave": "band"}, {"count": 3, "interleave": "pixel"}], ids=str
)
def test_stored_blocks_are_those_that_were_written(profile: dict[str, Any], tmp_path: Path) -> None:
    """Also where each band has blocks of its own."""
    source = sparse(tmp_path / "a.tif", (20_000, 10_000), [(0, 0), (3, 7), (18, 38)], **profile)
    stored = inspect_file(source).full.stored
    assert stored is not None
    assert stored.places().tolist() == [[0, 0], [3, 7], [18, 38]]
    assert stored.count_in(7 * 512, 3 * 512, 7 * 512 + 1, 3 * 512 + 1) == 1
    assert stored.count_in(0, 512, 20_000, 3 * 512) == 0
    assert stored.count_in(-5, -5, 30_000, 30_000) == 3


def test_whole_files_masks_and_overviews_are_not_taken_for_sparse(tmp_path: Path) -> None:
    """A level counts for itself, and a page with a mask is read whole."""
    whole = [(row, column) for row in range(8) for column in range(8)]
    source = sparse(tmp_path / "a.tif", (16_384, 16_384), whole, side=2048)
    assert inspect_file(source).full.stored is None
    half = sparse(tmp_path / "b.tif", (16_384, 16_384), whole[:5], side=2048)
    with gdal_environment(), rasterio.open(half, "r+") as dataset:
        dataset.build_overviews([2], rasterio.enums.Resampling.nearest)
    full, overview = inspect_file(half).levels
    assert full.stored is not None
    assert full.stored.count() == 5
    assert overview.stored is None
    masked = sparse(tmp_path / "c.tif", (16_384, 16_384), whole[:5], side=2048)
    with gdal_environment(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(masked, "r+") as dataset:
        dataset.write_mask(np.full((2048, 2048), 255, np.uint8), window=Window(0, 0, 2048, 2048))
    assert inspect_file(masked).full.stored is None


@pytest.mark.parametrize("nodata", [None, 0, 7])
def test_a_picture_shows_the_blocks_where_they_lie(nodata: int | None, tmp_path: Path) -> None:
    """60 gigapixels of which three blocks are stored: the rest is nodata, or black where there is none."""
    blocks = [(10, 20), (11, 20), (300, 500)]
    source = sparse(tmp_path / "a.tif", (300_000, 200_000), blocks, nodata=nodata)
    result = run(source, tmp_path / "out", max_size=3000, coordinate_system="native", resampling="nearest")
    picture = picture_of(result)
    seen = picture[..., 0] == VALUE
    for row, column in blocks:
        assert seen[round(row * 5.12 + 2.56), round(column * 5.12 + 2.56)]
        # A pixel at the border may show either side.
        seen[int(row * 5.12) - 1 : int(row * 5.12) + 8, int(column * 5.12) - 1 : int(column * 5.12) + 8] = False
    assert not seen.any()
    hidden = picture[..., 3] == 0
    assert hidden.mean() == pytest.approx(0 if nodata is None else 1, abs=0.001)
    assert (picture[~hidden & (picture[..., 0] != VALUE), :3] == 0).all()


def test_the_values_looked_at_are_those_that_are_stored(tmp_path: Path) -> None:
    """The stretch of a sparse file is made of its values, not of missing blocks."""
    source = sparse(tmp_path / "a.tif", (300_000, 200_000), [], dtype="uint16", nodata=0)
    with gdal_environment(), rasterio.open(source, "r+") as dataset:
        values = np.linspace(1000, 3000, 512 * 512).astype(np.uint16).reshape(1, 512, 512)
        dataset.write(values, window=Window(100 * 512, 77 * 512, 512, 512))
    choices: Any = run(source, tmp_path / "out", max_size=500).metadata["choices"]
    assert 1000 <= choices["stretch"]["lo"] < 1100
    assert 2900 < choices["stretch"]["hi"] <= 3000


def test_tiles_are_made_of_stored_blocks_alone(tmp_path: Path) -> None:
    """At the file's own resolution, although all of its area would be too many tiles."""
    source = sparse(tmp_path / "a.tif", (300_000, 200_000), [(10, 20), (300, 500)], nodata=0)
    result: TaskResult = make_tiles(request(source, TilesOptions.from_payload({})), quiet)
    told: Any = result.metadata["tiles"]
    assert told["maxzoom"] == 17
    assert 2 * 4 < told["tileCount"] < 120


def test_a_sparse_copy_has_the_blocks_and_no_others(tmp_path: Path) -> None:
    source = sparse(tmp_path / "a.tif", (20_000, 10_000), [(0, 0), (3, 7), (18, 38)], nodata=0)
    made = make_cog(request(source, CogOptions.from_payload({})), quiet).outputs[0]
    assert made.size_bytes < 200_000
    assert cog_validate(str(made.path), strict=True, quiet=True) == (True, [], [])
    before, after = inspect_file(source), inspect_file(made.path)
    assert before.full.stored is not None
    assert after.full.stored is not None
    assert before.full.stored.places().tolist() == after.full.stored.places().tolist()
    with rasterio.open(made.path) as dataset:
        assert (dataset.read(1, window=Window(7 * 512, 3 * 512, 512, 512)) == VALUE).all()
        assert dataset.overviews(1)


def test_area_without_blocks_is_not_free_for_a_copy(tmp_path: Path) -> None:
    """GDAL passes over missing blocks one by one: a square of a million pixels a side is refused."""
    source = sparse(tmp_path / "a.tif", (1_000_000, 1_000_000), [(0, 0)], side=1024)
    with pytest.raises(JobError) as caught:
        make_cog(request(source, CogOptions.from_payload({})), quiet)
    assert caught.value.code == "too_complex"


def test_counting_is_the_same_as_looking() -> None:
    """Against every window of a small field."""
    present = np.random.default_rng(1).random((5, 7)) < 0.3
    stored = StoredBlocks.of(present, 10, 20)
    for left in range(0, 70, 5):
        for top in range(0, 100, 10):
            expected = present[top // 20 : -(-(top + 30) // 20), left // 10 : -(-(left + 15) // 10)].sum()
            assert stored.count_in(left, top, left + 15, top + 30) == expected


def test_levels_are_the_same_with_and_without_known_blocks(tmp_path: Path) -> None:
    source = sparse(tmp_path / "a.tif", (20_000, 10_000), [(0, 0)])
    level = inspect_file(source).full
    assert replace(level, stored=None) == level
