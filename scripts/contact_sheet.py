"""Pages of thumbnails for a folder of GeoTIFFs: `python scripts/contact_sheet.py FOLDER -o OUT`.

The worker's `convert` renders each file in its own process, which may fail. Hidden pixels show a checkerboard, refused
files their error code. Pages are PNGs, OUT/page-01.png and so on, with OUT/index.tsv beside them.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found when run by path

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.tasks.picture import ConversionRequest, convert

ACROSS, DOWN = 6, 4
CELL, WORDS = 230, 40  # pixels: side of a thumbnail, height of the text below it
PATIENCE = 120  # seconds for one file
SQUARE = 8  # pixels, of the checkerboard


@dataclass(frozen=True)
class SheetEntry:
    """A file with its thumbnail (height, width, 4), or `None`, and the choices or the error below it."""

    name: str
    thumbnail: Any
    words: str


def look(path: Path) -> SheetEntry:
    """Render a file at a small size."""
    options = RenderOptions(max_size=1024, thumbnail_size=CELL)
    with tempfile.TemporaryDirectory() as scratch:
        request = ConversionRequest(
            source=path, output_folder=Path(scratch), stem="a", options=options, source_name=path.name
        )
        try:
            result = convert(request, lambda *_: None)
        except JobError as error:
            return SheetEntry(path.name, None, f"{error.code}: {error.message}")
        with Image.open(Path(scratch) / "a_thumb.png") as image:
            return SheetEntry(path.name, np.asarray(image.convert("RGBA")), _chosen(result.metadata))


def _chosen(metadata: dict[str, Any]) -> str:
    source, choices = metadata["source"], metadata["choices"]
    stretch = choices["stretch"]
    types = source["bands"][0]["dtype"]
    return (
        f"{source['width']}x{source['height']}x{source['bandCount']} {types} {choices['bands']['shownAs']}"
        f" {metadata['mode']} {stretch['kind']} {stretch['lo']:.4g}..{stretch['hi']:.4g}"
        f" {choices['resampling']['method']} valid {metadata['validFraction']:.2f}"
    )


def entries_of(paths: Iterable[Path]) -> Iterator[SheetEntry]:
    """Yield the entry of each file, in order, also of those that kill their process."""
    for path in paths:
        with ProcessPoolExecutor(1) as pool:
            try:
                yield pool.submit(look, path).result(PATIENCE)
            except (BrokenProcessPool, TimeoutError) as error:
                yield SheetEntry(path.name, None, f"PROCESS LOST: {error!r}")
            except Exception as error:  # noqa: BLE001 - faults show on the page
                yield SheetEntry(path.name, None, f"TRACEBACK: {error!r}")


def page(entries: list[SheetEntry]) -> Image.Image:
    """Return a sheet of at most ACROSS x DOWN entries."""
    sheet = Image.new("RGB", (ACROSS * CELL, DOWN * (CELL + WORDS)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, entry in enumerate(entries):
        left, top = number % ACROSS * CELL, number // ACROSS * (CELL + WORDS)
        if entry.thumbnail is None:
            words = "\n".join(entry.words[start : start + 34] for start in range(0, min(len(entry.words), 340), 34))
            draw.multiline_text((left + 6, top + 40), words, fill="red")
        else:
            picture = _enlarged(Image.fromarray(entry.thumbnail))
            sheet.paste(_checkered(picture.width, picture.height), (left + 2, top))
            sheet.paste(picture, (left + 2, top), picture)
            draw.text((left + 3, top + CELL + 12), entry.words[:38], fill="gray")
            draw.text((left + 3, top + CELL + 24), entry.words[38:76], fill="gray")
        draw.text((left + 3, top + CELL), entry.name[:38], fill="black")
    return sheet


def _enlarged(picture: Image.Image) -> Image.Image:
    """Enlarge a small picture by a whole factor, so faults in eight pixels are visible."""
    times = max(1, CELL // max(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def _checkered(width: int, height: int) -> Image.Image:
    rows, columns = np.indices((height, width)) // SQUARE
    return Image.fromarray(np.where((rows + columns) % 2, 205, 235).astype(np.uint8)).convert("RGB")


def main() -> int:
    """Return 1 if a file gave neither a picture nor an error code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("contact-sheet"))
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.folder.iterdir() if path.suffix.lower() in {".tif", ".tiff"})
    arguments.output.mkdir(parents=True, exist_ok=True)
    entries = list(entries_of(paths))
    for start in range(0, len(entries), ACROSS * DOWN):
        name = f"page-{start // (ACROSS * DOWN) + 1:02}.png"
        page(entries[start : start + ACROSS * DOWN]).save(arguments.output / name)
    with (arguments.output / "index.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows((entry.name, entry.words) for entry in entries)
    refusals = sum(entry.thumbnail is None for entry in entries)
    print(f"{len(entries)} files, {refusals} without a picture: {arguments.output}")
    return int(any(entry.words.startswith(("PROCESS", "TRACEBACK")) for entry in entries))


if __name__ == "__main__":
    sys.exit(main())
