"""One page of thumbnails for a folder of GeoTIFFs, to be looked at: `python scripts/contact_sheet.py FOLDER -o OUT`.

Each file goes through the worker's own `convert`, in a process of its own that may fail. Hidden pixels show as a
chequerboard; refusals stand there by name. Pages are PNGs, OUT/page-01.png and so on, with OUT/index.tsv beside them.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by path, it must find its own package

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.tasks.png import ConversionRequest, convert

ACROSS, DOWN = 6, 4
CELL, WORDS = 230, 40  # pixels: the side of a thumbnail, and the height of the lines below it
PATIENCE = 120  # seconds for one file
SQUARE = 8  # pixels; of the chequerboard


@dataclass(frozen=True)
class OutboxEntry:
    """A file, its thumbnail (height, width, 4) or `None`, and what is written below: name, then what was chosen."""

    name: str
    thumbnail: Any
    words: str


def look(path: Path) -> OutboxEntry:
    """The file through the worker, small."""
    options = RenderOptions(max_size=1024, thumbnail_size=CELL)
    with tempfile.TemporaryDirectory() as scratch:
        request = ConversionRequest(
            source=path, output_folder=Path(scratch), stem="a", options=options, source_name=path.name
        )
        try:
            result = convert(request, lambda *_: None)
        except JobError as error:
            return OutboxEntry(path.name, None, f"{error.code}: {error.message}")
        with Image.open(Path(scratch) / "a_thumb.png") as image:
            return OutboxEntry(path.name, np.asarray(image.convert("RGBA")), _chosen(result.metadata))


def _chosen(metadata: dict[str, Any]) -> str:
    source, choices = metadata["source"], metadata["choices"]
    stretch = choices["stretch"]
    types = source["bands"][0]["dtype"]
    return (
        f"{source['width']}x{source['height']}x{source['bandCount']} {types} {choices['bands']['shownAs']}"
        f" {metadata['mode']} {stretch['kind']} {stretch['lo']:.4g}..{stretch['hi']:.4g}"
        f" {choices['resampling']['method']} valid {metadata['validFraction']:.2f}"
    )


def looked_at(paths: Iterable[Path]) -> Iterator[OutboxEntry]:
    """Every file's entry, in order, whatever a single one does to its process."""
    for path in paths:
        with ProcessPoolExecutor(1) as pool:
            try:
                yield pool.submit(look, path).result(PATIENCE)
            except (BrokenProcessPool, TimeoutError) as error:
                yield OutboxEntry(path.name, None, f"PROCESS LOST: {error!r}")
            except Exception as error:  # noqa: BLE001 - the page is where faults are to be seen
                yield OutboxEntry(path.name, None, f"TRACEBACK: {error!r}")


def page(entries: list[OutboxEntry]) -> Image.Image:
    """A sheet of at most ACROSS x DOWN entries."""
    sheet = Image.new("RGB", (ACROSS * CELL, DOWN * (CELL + WORDS)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, entry in enumerate(entries):
        left, top = number % ACROSS * CELL, number // ACROSS * (CELL + WORDS)
        if entry.thumbnail is None:
            words = "\n".join(entry.words[start : start + 34] for start in range(0, min(len(entry.words), 340), 34))
            draw.multiline_text((left + 6, top + 40), words, fill="red")
        else:
            picture = _enlarged(Image.fromarray(entry.thumbnail))
            sheet.paste(_chequered(picture.width, picture.height), (left + 2, top))
            sheet.paste(picture, (left + 2, top), picture)
            draw.text((left + 3, top + CELL + 12), entry.words[:38], fill="gray")
            draw.text((left + 3, top + CELL + 24), entry.words[38:76], fill="gray")
        draw.text((left + 3, top + CELL), entry.name[:38], fill="black")
    return sheet


def _enlarged(picture: Image.Image) -> Image.Image:
    """A small picture a whole number of times as large, since nobody sees what is wrong in eight pixels."""
    times = max(1, CELL // max(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def _chequered(width: int, height: int) -> Image.Image:
    rows, columns = np.indices((height, width)) // SQUARE
    return Image.fromarray(np.where((rows + columns) % 2, 205, 235).astype(np.uint8)).convert("RGB")


def main() -> int:
    """Exit code 1 if a file ended in neither a picture nor a named refusal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("contact-sheet"))
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.folder.iterdir() if path.suffix.lower() in {".tif", ".tiff"})
    arguments.output.mkdir(parents=True, exist_ok=True)
    entries = list(looked_at(paths))
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
