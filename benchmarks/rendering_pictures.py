"""Makes the pictures of docs/RENDERING.md with the project itself: `python benchmarks/rendering_pictures.py`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from affine import Affine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by path, it must find its own package

from benchmarks.render_inputs import texture
from tests.support.rasters import Tiff, run

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE = 400
UTM = Affine(30.0, 0.0, 400_000.0, 0.0, -30.0, 1_700_000.0)


def main() -> None:
    """Four small rasters through `convert`, each picture as it leaves the worker."""
    heights = np.asarray(texture(SIZE, 3, 0.35).numpy(), dtype=np.float32)[None] * 3000
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
        )
        for name, source, options in shown:
            path = source.write(folder / f"{name}.tif")
            picture = run(path, folder / name, max_size=320, **options).outputs[0].path
            image = pyvips.Image.new_from_file(str(picture))
            image.pngsave(str(IMAGES / f"{name}.png"), compression=9, palette=True, Q=90, keep="none")


def _classes() -> Tiff:
    values = np.asarray(texture(SIZE, 4, 0.3).numpy())
    index = np.clip(values * 8, 0, 5).astype(np.uint8)[None]
    palette = {
        0: (0, 0, 0, 255), 1: (65, 107, 223, 255), 2: (57, 125, 73, 255), 3: (163, 197, 92, 255),
        4: (222, 196, 126, 255), 5: (245, 245, 240, 255),
    }  # fmt: skip
    return Tiff(index, crs="EPSG:32638", transform=UTM, nodata=0, palette=palette)


if __name__ == "__main__":
    main()
