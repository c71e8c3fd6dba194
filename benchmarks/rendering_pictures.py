"""Make the pictures of docs/RENDERING.md with the project itself: `python benchmarks/rendering_pictures.py`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found when run by path

from benchmarks.render_inputs import texture
from tests.support.rasters import Tiff, run

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE = 400
UTM = Affine(30.0, 0.0, 400_000.0, 0.0, -30.0, 1_700_000.0)


def main() -> None:
    """Render small rasters with `convert`, and keep each picture unchanged."""
    heights = texture(SIZE, 3, 0.35)[None] * 3000
    heights[heights < 1100] = -9999
    dem = Tiff(heights, crs="EPSG:32638", transform=UTM, nodata=-9999)
    turned = UTM @ Affine.rotation(25)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shown: tuple[tuple[str, Tiff, dict[str, Any]], ...] = (
            ("elevation", dem, {}),
            ("elevation-colormap", dem, {"colormap": "terrain", "stretch": "percentile:1,99"}),
            ("classes", _classes(), {}),
            ("turned", Tiff(heights, crs="EPSG:32638", transform=turned, nodata=-9999), {"colormap": "viridis"}),
            ("undeclared", Tiff(heights, crs="EPSG:32638", transform=UTM), {}),
            ("lines", _lines(), {}),
            ("polar", _world(), {"coordinate_system": "EPSG:3995"}),
            ("infrared", _four_bands(heights), {}),
        )
        for name, source, options in shown:
            path = source.write(folder / f"{name}.tif")
            picture = run(path, folder / name, max_size=320, **options).outputs[0].path
            with Image.open(picture) as image:
                image.convert("RGBA").quantize(256).save(IMAGES / f"{name}.png", optimize=True)


def _classes() -> Tiff:
    values = texture(SIZE, 4, 0.3)
    index = np.clip(values * 8, 0, 5).astype(np.uint8)[None]
    palette = {
        0: (0, 0, 0, 255), 1: (65, 107, 223, 255), 2: (57, 125, 73, 255), 3: (163, 197, 92, 255),
        4: (222, 196, 126, 255), 5: (245, 245, 240, 255),
    }  # fmt: skip
    return Tiff(index, crs="EPSG:32638", transform=UTM, nodata=0, palette=palette)


def _lines() -> Tiff:
    """Contour lines one pixel wide in classes of two, eight times as large as displayed."""
    rows, columns = np.indices((2400, 2400)) / 2400
    height = 40 * np.hypot(rows - 0.4, (columns - 0.55) * 0.8) + np.sin(columns * 9) + np.sin(rows * 7)
    steps = np.floor(height / 4)
    line = (np.diff(steps, axis=0, prepend=0) != 0) | (np.diff(steps, axis=1, prepend=0) != 0)
    line[0], line[:, 0] = False, False
    return Tiff(np.where(line, 1, 0).astype(np.uint8)[None], crs="EPSG:32638", transform=UTM)


def _world() -> Tiff:
    """The Earth in degrees: land by latitude, and a line for every 15 degrees."""
    land = texture(1440, 5, 0.3)[:720]
    rows, columns = np.indices(land.shape)
    cold = np.clip(np.abs(rows / 360 - 1) * 2 - 0.7, 0, 1)[..., None]
    ground = np.where(cold > 0.5, (235, 240, 245), (196, 180, 130) + cold * np.array((-60, 20, -20)))
    color = np.where((land > 0.5)[..., None], ground, (70, 120, 180) + cold * 60)
    color[((rows % 60 < 2) & (rows > 2)) | (columns % 60 < 1)] *= 0.7
    place = Affine(0.25, 0, -180, 0, -0.25, 90)
    return Tiff(np.moveaxis(color, 2, 0).astype(np.uint8), transform=place)


def _four_bands(heights: Any) -> Tiff:
    """Blue, green, red and near infrared of 12 bits, named like bands of satellites, with an empty corner."""
    level = np.clip(heights[0] / 3000, 0, 1)
    bands = np.stack([300 + level * 500, 400 + level * 900, 350 + level * 1300, 2500 - level * 1500])
    bands[:, :, :60] = 0
    names = ("B02", "B03", "B04", "B08")
    data = bands.astype(np.uint16)
    return Tiff(data, crs="EPSG:32638", transform=UTM, nodata=0, descriptions=names)


if __name__ == "__main__":
    main()
