"""A note or error advises only working remedies: each one is followed here, and changes the outcome."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.shutil
from affine import Affine
from rasterio.control import GroundControlPoint

from geoprocessing_worker.errors import CURES, JobError
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.render.task_options import TilesOptions
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.tasks.builtin import GEOTIFF_TO_PNG, GEOTIFF_TO_TILES
from geoprocessing_worker.tasks.tiles.grid import HALF_GIRTH, Coverage, choose_zooms
from geoprocessing_worker.tiff.gate import admit
from tests.support.rasters import DEGREES, UTM, Tiff, picture_of, ramp, run
from tests.support.raw_tiff import ASCII, DOUBLE, SHORT, write_raw_tiff
from tests.support.task_runs import perform_on
from tests.support.tiffs import UNDEFINED, RawTiff, gray

POINTS = [
    GroundControlPoint(row, col, 400_000 + 30 * col, 1_700_000 - 30 * row)
    for row, col in ((0, 0), (0, 16), (16, 0), (16, 16))
]
ON_A_LINE = [GroundControlPoint(n, n, 400_000 + n, 1_700_000 + n) for n in (0, 4, 8, 12)]
LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'
CITATION = {34735: (SHORT, (1, 1, 0, 1, 1024, 0, 1, 32767))}


def raw(path: Path, tags: dict[int, Any]) -> Path:
    return write_raw_tiff(path, ramp(16, 16)[0][..., None], tags=tags)


def tiff(path: Path, **place: Any) -> Path:
    return Tiff(ramp(16, 16), **place).write(path)


def points(path: Path, found: list[GroundControlPoint], crs: bool) -> Path:
    """Tie points, with keys of EPSG:32638 or with none."""
    numbers = [number for point in found for number in (point.col, point.row, 0, point.x, point.y, 0)]
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32638)
    return raw(path, {33922: (DOUBLE, numbers)} | ({34735: (SHORT, keys)} if crs else {}))


SOURCES = {
    "placed": lambda path: tiff(path, crs="EPSG:32638", transform=UTM),
    "no system": lambda path: tiff(path, crs=None, transform=UTM),
    "no system, turned": lambda path: tiff(path, crs=None, transform=UTM @ Affine.rotation(20)),
    "no system, degrees": lambda path: tiff(path, crs=None, transform=DEGREES),
    "a local system": lambda path: tiff(path, crs=LOCAL, transform=UTM),
    "meters called degrees": lambda path: tiff(path, crs="EPSG:4326", transform=UTM),
    "keys without a system": lambda path: raw(
        path, {33550: (DOUBLE, [30, 30, 0]), 33922: (DOUBLE, [0, 0, 0, 400_000, 1_700_000, 0])} | CITATION
    ),
    "nothing": lambda path: tiff(path, crs=None, transform=None),
    "a system without a place": lambda path: tiff(path, crs="EPSG:32638", transform=None),
    "a flat transform": lambda path: raw(path, {34264: (DOUBLE, [30, 0, 0, 4e5, *[0] * 3, 1.7e6, *[0] * 7, 1])}),
    "no numbers": lambda path: raw(path, {34264: (DOUBLE, [math.nan] * 16)}),
    "too far": lambda path: raw(path, {33550: (DOUBLE, [1e15, 1e15, 0]), 33922: (DOUBLE, [0, 0, 0, 1e16, 1e16, 0])}),
    "points without a system": lambda path: points(path, POINTS, crs=False),
    "points": lambda path: points(path, POINTS, crs=True),
    "points on a line": lambda path: points(path, ON_A_LINE, crs=False),
    "two points": lambda path: points(path, POINTS[:2], crs=False),
}  # fmt: skip


@pytest.mark.parametrize("handler", [GEOTIFF_TO_PNG, GEOTIFF_TO_TILES], ids=lambda handler: handler.task_type.name)
@pytest.mark.parametrize("kind", SOURCES)
def test_source_crs_is_advised_where_it_places_the_file_and_nowhere_else(
    kind: str, handler: Any, tmp_path: Path
) -> None:
    """Whatever a file lacks: the advice stands where a system is all that is missing, and following it helps."""
    source = SOURCES[kind](tmp_path / "a.tif")

    def outcome(**payload: Any) -> tuple[bool, list[str]]:
        try:
            told: Any = perform_on(handler, source, tmp_path / "out", **payload).metadata
        except JobError as error:
            assert error.code == "not_georeferenced"  # noqa: PT017 - of tiles
            return False, [error.message]
        return told["crs"] is not None, told["choices"]["notes"]

    placed, notes = outcome()
    helped, told = outcome(sourceCrs="EPSG:32638")
    advised = any("sourceCrs" in note for note in notes)
    assert not (advised and placed)
    if kind == "meters called degrees":  # the note has the numbers by which their owner knows the system
        assert helped
        assert any("the coordinate system is another one" in note for note in notes)
        return
    assert advised == (helped and not placed)
    if placed or not helped:
        assert not any("give sourceCrs" in note for note in told)


def test_the_nodata_value_that_a_note_proposes_hides_those_pixels(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(100, 20, (1, 64, 64)).astype(np.float32)
    data[0, :20] = -9999
    source = Tiff(data).write(tmp_path / "a.tif")
    before: Any = run(source, tmp_path / "out").metadata
    (note,) = (note for note in before["choices"]["notes"] if '"nodata"' in note)
    advice = json.loads(re.search(r"\{.*\}", note)[0])  # type: ignore[index]
    after: Any = perform_on(GEOTIFF_TO_PNG, source, tmp_path / "out", **advice).metadata
    assert after["validFraction"] < before["validFraction"] == 1.0
    assert not any('"nodata"' in note for note in after["choices"]["notes"])


@pytest.mark.parametrize("rare", [False, True])
def test_the_stretch_that_a_note_proposes_shows_more(rare: bool, tmp_path: Path) -> None:
    """Also where all but a few pixels are one value."""
    data = np.full((3, 64, 64), 100, np.uint8)
    data[:, 0, :3] = [103, 110, 120]
    if not rare:
        data[:] = ramp(64, 64, low=100, high=120)
    source = Tiff(data, colors=("red", "green", "blue")).write(tmp_path / "a.tif")
    before = run(source, tmp_path / "out")
    choices: Any = before.metadata["choices"]
    (note,) = (note for note in choices["notes"] if '"stretch"' in note)
    advice = json.loads(re.search(r"\{.*\}", note)[0])  # type: ignore[index]
    seen = np.ptp(picture_of(before)[..., 0])
    after = run(source, tmp_path / "after", **advice)
    assert np.ptp(picture_of(after)[..., 0]) > 5 * seen
    assert '"stretch"' not in str(after.metadata["choices"])


def test_the_systems_that_a_note_proposes_show_all(tmp_path: Path) -> None:
    world = Affine(1.0, 0, -180, 0, -1.0, 90)
    source = Tiff(ramp(180, 360), transform=world).write(tmp_path / "a.tif")

    def notes(system: str) -> str:
        told: Any = run(source, tmp_path / "out", coordinate_system=system).metadata
        return " ".join(told["choices"]["notes"])

    assert "EPSG:4326 or native show all" in notes("EPSG:3995")
    assert "show all" not in notes("EPSG:4326") + notes("native")


def test_native_is_proposed_for_the_picture_alone() -> None:
    """As the system of a file it is none, so the refusal of `sourceCrs` does not propose it."""
    for field, proposed in (("coordinateSystem", True), ("sourceCrs", False)):
        for given in ("EPSG:99999", "nonsense", *([] if proposed else ["native"])):
            with pytest.raises(JobError) as caught:
                RenderOptions.from_payload({field: given}, RenderOptions()).check()
            assert caught.value.code == "bad_crs"
            assert (caught.value.message.count("native") > (given == "native")) == proposed
    RenderOptions.from_payload({"coordinateSystem": "native"}, RenderOptions()).check()


def test_tiles_never_propose_another_system(tmp_path: Path) -> None:
    """They have one only. A file that it cannot show is rejected for that."""
    south = Affine(0.01, 0, 0, 0, -0.01, -89.5)
    source = Tiff(ramp(16, 16), transform=south).write(tmp_path / "a.tif")
    with pytest.raises(JobError) as caught:
        perform_on(GEOTIFF_TO_TILES, source, tmp_path / "out")
    assert "another" not in caught.value.message
    assert caught.value.code in {"not_georeferenced", "no_valid_pixels"}


@pytest.mark.parametrize(("first", "last"), [(12, 12), (12, 13), (None, 12)])
def test_the_zooms_that_a_refusal_proposes_are_taken(first: int | None, last: int) -> None:
    """Where the lowest zoom asked for has too many tiles by itself, a lower maxZoom alone would be refused."""
    world = Coverage(-HALF_GIRTH, -HALF_GIRTH, HALF_GIRTH, HALF_GIRTH)
    with pytest.raises(JobError) as caught:
        choose_zooms(world, 1000.0, first, last)
    assert caught.value.code == "too_many_tiles"
    proposed = int(re.search(r"maxZoom of at most (\d+)", caught.value.message)[1])  # type: ignore[index]
    assert ("minZoom" in caught.value.message) == (first is not None)
    payload = {"maxZoom": proposed} | ({} if first is None else {"minZoom": proposed})
    taken = TilesOptions.from_payload(payload, TilesOptions())
    taken.check()
    assert choose_zooms(world, 1000.0, taken.min_zoom, taken.max_zoom).last == proposed


def test_every_limit_has_a_cure_of_its_own(tmp_path: Path) -> None:
    """ "Save it in tiles" helps no file that has too many tags."""
    huge = RawTiff([gray(t50000=(UNDEFINED, [0] * 10))], counts={50000: 100_000_000}, places={50000: 300})
    huge.write(tmp_path / "a.tif")
    with (tmp_path / "a.tif").open("r+b") as file:
        file.truncate(100_000_400)
    with pytest.raises(JobError) as caught:
        admit(tmp_path / "a.tif")
    assert caught.value.message.endswith(CURES["tag"])
    assert len(CURES) == 13


@pytest.mark.parametrize("width", [512, 30_000])
def test_small_tiles_band_by_band_cure_a_block_that_is_too_large(width: int, tmp_path: Path) -> None:
    tags: dict[int, Any] = {"t277": (SHORT, [4000]), "t258": (SHORT, [64] * 4000), "t339": (SHORT, [3] * 4000)}  # type: ignore[dict-item]
    RawTiff([gray(width, 512, t279=(4, [100]), **tags)], data=bytes(100)).write(tmp_path / "a.tif")  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"Save it in tiles of 512 by 512 pixels, band by band") as caught:
        admit(tmp_path / "a.tif")
    assert caught.value.detail["limit"] == "block"
    profile = {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "band", "SPARSE_OK": True}
    with (
        gdal_environment(),
        rasterio.open(
            tmp_path / "b.tif", "w", driver="GTiff", width=width, height=512, count=400, dtype="float64", **profile
        ),
    ):
        pass
    admit(tmp_path / "b.tif")


def test_gdal_translate_leaves_out_tags_that_it_does_not_know(tmp_path: Path) -> None:
    """As the remedy for too many tags proposes. GDAL's copy is that of gdal_translate."""
    source = raw(tmp_path / "a.tif", {50999: (ASCII, b"x" * 5000 + b"\0")})
    with gdal_environment():
        rasterio.shutil.copy(source, tmp_path / "b.tif", driver="GTiff")
    assert b"x" * 5000 in source.read_bytes()
    assert b"x" * 5000 not in (tmp_path / "b.tif").read_bytes()
