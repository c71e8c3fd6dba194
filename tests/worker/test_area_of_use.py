"""A CRS that stretches parts of a file without bound shows its area of use only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from pyproj import CRS

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.layout import lay_out
from geoprocessing_worker.geo.outline import lonlat_bounds
from geoprocessing_worker.raster import SourceHeader
from tests.support.headers import header_of
from tests.support.rasters import Tiff, picture_of, run

WORLD = Affine(1, 0, -180, 0, -1, 90)
FROM_0_TO_360 = Affine(1, 0, 0, 0, -1, 90)
GNOMONIC = "+proj=gnom +lat_0=45 +lon_0=10"


def world(transform: Affine = WORLD, height: int = 180) -> SourceHeader:
    return header_of(360, height, transform, 4326)


@pytest.mark.parametrize("transform", [WORLD, FROM_0_TO_360], ids=["from -180", "from 0"])
@pytest.mark.parametrize(
    ("code", "width"),
    [(3995, 6.6e6), (3413, 6.6e6), (3031, 6.6e6), (32638, 7e5), (31287, 6.5e5), (2056, 4e5)],
)
def test_a_world_is_cut_to_where_the_system_is_of_use(code: int, width: float, transform: Affine) -> None:
    """Polar, conical and transverse systems keep about the width of their area of use, at the file's own scale."""
    layout = lay_out(world(transform), CRS.from_epsg(code), 4096)
    target = layout.target
    assert layout.cut
    assert target.transform is not None
    assert target.transform.a * target.width == pytest.approx(width, rel=0.25)
    assert 1.5e4 < target.transform.a < 1.2e5  # a degree is 111 km, towards the pole ever less


def test_a_world_without_the_other_pole_is_cut_too() -> None:
    """Nothing is infinite there, but at 60 degrees south everything is 225 times larger than in the north."""
    layout = lay_out(world(height=150), CRS.from_epsg(3995), 4096)
    assert layout.cut
    assert layout.target.transform is not None
    assert layout.target.transform.a * layout.target.width < 7e6


@pytest.mark.parametrize("code", ["EPSG:3035", "EPSG:3857", "EPSG:3395", "ESRI:54009", "ESRI:54030", "EPSG:8857"])
def test_a_world_that_a_system_can_show_is_shown_whole(code: str) -> None:
    """Bounded systems, however bent, and Mercator, which has an end of its own, lose nothing."""
    layout = lay_out(world(), CRS.from_user_input(code), 4096)
    assert not layout.cut
    assert layout.target.transform is not None
    assert layout.target.transform.a * layout.target.width > 2.4e7


def test_a_system_without_an_area_of_use_is_cut_where_it_grows() -> None:
    """Along great circles the horizon is infinitely far away. Areas that are not far beyond the rest are kept."""
    layout = lay_out(world(), CRS.from_proj4(GNOMONIC), 1024)
    assert layout.cut
    assert layout.target.transform is not None
    assert 1e7 < layout.target.transform.a * layout.target.width < 8e7


@pytest.mark.parametrize(("code", "zone"), [(32638, (400_000, 1_700_000)), (3995, (-3e6, 3e6)), (3031, (1e6, 1e6))])
def test_a_file_that_lies_in_place_keeps_all_of_it(code: int, zone: tuple[float, float]) -> None:
    """A picture made in a CRS can be shown in it, even slightly outside of its area of use."""
    facts = header_of(600, 600, Affine(10_000, 0, zone[0], 0, -10_000, zone[1]), code)
    turned = lay_out(facts, CRS.from_epsg(4326), 1024).target
    assert lonlat_bounds(turned) is not None
    again = header_of(turned.width, turned.height, turned.transform, 4326)
    assert not lay_out(again, CRS.from_epsg(code), 1024).cut


def test_a_file_of_the_other_pole_is_refused_by_name() -> None:
    """The error has the bounds of the CRS's area of use."""
    with pytest.raises(JobError, match="from 60 to 90 degrees north") as caught:
        lay_out(world(Affine(1, 0, -180, 0, -1, 40), height=130), CRS.from_epsg(3995), 512)
    assert caught.value.code == "bad_crs"


def test_the_arctic_of_a_world_fills_its_picture_and_the_cut_is_noted(tmp_path: Path) -> None:
    """Four meridians in four colors meet in the middle. Nothing is empty, and the notes mention the crop."""
    data = np.zeros((3, 180, 360), dtype=np.uint8)
    for quarter, color in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))):
        data[:, :, quarter * 90 : quarter * 90 + 90] = np.array(color)[:, None, None]
    source = Tiff(data, transform=WORLD).write(tmp_path / "a.tif")
    result = run(source, tmp_path / "out", coordinate_system="EPSG:3995")
    picture = picture_of(result)
    assert picture.shape[1] % 2 == 1, "pixels lie on the meridian where the world closes"
    assert (picture[..., 3] == 255).all()
    h, w = picture.shape[:2]
    found = [picture[int(h * y), int(w * x), :3].tolist() for x, y in ((0.2, 0.2), (0.2, 0.8), (0.8, 0.8), (0.8, 0.2))]
    assert found == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
    choices: Any = result.metadata["choices"]
    assert any("only the part of the file" in note for note in choices["notes"])
