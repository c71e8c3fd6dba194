"""The comparison of pixels with the source before upload: a wrong picture is not uploaded, even in the right place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoprocessing_worker.errors import ErrorClass, JobError
from geoprocessing_worker.output.pixel_check import check_pixels
from geoprocessing_worker.raster import Picture
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.render.picture import render
from geoprocessing_worker.render.plan import draft, make_plan
from geoprocessing_worker.source.gdal import gdal_environment
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.source.sampling import take_sample
from tests.support.rasters import UTM, Tiff, run

SIZE = 400
WAVES = np.sin(np.indices((SIZE, SIZE))[0] / 23.0) + np.cos(np.indices((SIZE, SIZE))[1] / 31.0) * 1.3
PHOTO = np.stack([WAVES * 40 + 128, WAVES[::-1] * 40 + 128, WAVES.T * 40 + 128]).astype(np.uint8)
PALETTE = {value: (value * 9 % 256, 255 - value, value * 31 % 256, 255) for value in range(256)}

SOURCES: dict[str, Tiff] = {
    "photograph": Tiff(PHOTO, crs="EPSG:32638", transform=UTM),
    "heights": Tiff((WAVES[None] * 500).astype(np.float32), crs="EPSG:32638", transform=UTM),
    "palette": Tiff(PHOTO[:1] // 9, crs="EPSG:32638", transform=UTM, palette=PALETTE),
    "half hidden": Tiff(
        np.where(np.arange(SIZE) < 200, PHOTO, 0).astype(np.uint8), crs="EPSG:32638", transform=UTM, nodata=0
    ),
}

FAULTS: dict[str, Callable[[Any], Any]] = {
    "upside down": lambda pixels: pixels[::-1],
    "mirrored": lambda pixels: pixels[:, ::-1],
    "moved by a tenth": lambda pixels: np.roll(pixels, SIZE // 10, axis=(0, 1)),
    "empty": np.zeros_like,
}


def looked_at(source: Path, change: Callable[[Any], Any] | None, **options: Any) -> Any:
    chosen = RenderOptions(**options)
    with gdal_environment():
        header = inspect_file(source)
        choices = draft(header, chosen)
        sample = take_sample(source, header, choices.choice, choices.nodata, choices.level)
        plan = make_plan(header, choices, sample, chosen)
        picture: Picture = render(source, header, plan, lambda _: None)
        if change is not None:
            picture = replace(picture, pixels=np.ascontiguousarray(change(picture.pixels)))
        return check_pixels(source, header, plan, picture)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("resampling", [None, "nearest", "mode", "bilinear", "cubic", "lanczos"])
@pytest.mark.parametrize("max_size", [4096, 150])
def test_correct_pictures_match(kind: str, resampling: str | None, max_size: int, tmp_path: Path) -> None:
    """Reduced or not, and by every method."""
    source = SOURCES[kind].write(tmp_path / "a.tif")
    found = looked_at(source, None, max_size=max_size, resampling=resampling)
    assert (found.compared, found.matching) == (16, 16)


# Upside down, the hidden half of a half-hidden picture matches.
WRONG = [(kind, fault) for kind in SOURCES for fault in FAULTS if (kind, fault) != ("half hidden", "upside down")]


@pytest.mark.parametrize(("kind", "fault"), WRONG)
def test_picture_of_something_else_is_caught(kind: str, fault: str, tmp_path: Path) -> None:
    """Mirrored, moved and empty pictures are the worker's own fault, and are called so."""
    source = SOURCES[kind].write(tmp_path / "a.tif")
    with pytest.raises(JobError, match="something else") as caught:
        looked_at(source, FAULTS[fault])
    assert (caught.value.code, caught.value.error_class) == ("self_check_failed", ErrorClass.INTERNAL)


def test_bands_in_another_order_are_caught(tmp_path: Path) -> None:
    """Blue for red."""
    with pytest.raises(JobError, match="something else"):
        looked_at(SOURCES["photograph"].write(tmp_path / "a.tif"), lambda pixels: pixels[..., [2, 1, 0, 3]])


def test_number_of_compared_places_is_reported(tmp_path: Path) -> None:
    """The metadata have the number of compared places and of matches."""
    check: Any = run(SOURCES["photograph"].write(tmp_path / "a.tif"), tmp_path / "out").metadata["selfCheck"]
    assert (check["placesCompared"], check["matches"]) == (16, 16)
