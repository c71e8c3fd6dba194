"""The size of the metadata that GDAL writes into a copy."""

from __future__ import annotations

import re
from typing import Any
from xml.sax.saxutils import escape

from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.tiff.gate import LARGEST_METADATA

# Written as tags of their own.
_AS_TAGS = re.compile(r"TIFFTAG_|AREA_OR_POINT$")
_DROPPED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_AROUND = len("<GDALMetadata>\n</GDALMetadata>\n\0")
_ITEM = len('  <Item name=""></Item>\n')
_TILING_SCHEME = 130  # two items


def refuse_large_metadata(dataset: Any, *, web_optimized: bool) -> None:
    """Refuse a file with more metadata in its copy than this program reads.

    The copy can have more than the file: GDAL escapes values twice, and gives each item a line.

    Raises:
        JobError: `too_large`.
    """
    found = metadata_bytes(dataset, web_optimized=web_optimized)
    if found > LARGEST_METADATA:
        raise invalid_input(
            "too_large",
            f"The copy would have {found:,} bytes of metadata. The limit is {LARGEST_METADATA:,}. "
            "Save the file with fewer of them.",
            limit="metadata",
            found=found,
            allowed=LARGEST_METADATA,
        )


def metadata_bytes(dataset: Any, *, web_optimized: bool) -> int:
    """Return the size of the tag GDAL_METADATA in a copy of a dataset."""
    items = [_item(name, value) for name, value in dataset.tags().items() if not _AS_TAGS.match(name)]
    for index in dataset.indexes:
        # GDAL's warp drops the metadata and the description of a band.
        own = {} if web_optimized else dataset.tags(index)
        named = [_item(name, value) for name, value in own.items()] + _roles(dataset, index, web_optimized)
        items += [size + len(f' sample="{index - 1}"') for size in named]
    if web_optimized:
        items.append(_TILING_SCHEME)
    return _AROUND + sum(items)


def _roles(dataset: Any, index: int, web_optimized: bool) -> list[int]:
    """Return the sizes of the items for a band's properties."""
    scale, offset = dataset.scales[index - 1], dataset.offsets[index - 1]
    texts = {"DESCRIPTION": None if web_optimized else dataset.descriptions[index - 1]}
    texts["UNITTYPE"] = dataset.units[index - 1]
    if (scale, offset) != (1.0, 0.0):
        texts |= {"SCALE": f"{scale:.17g}", "OFFSET": f"{offset:.17g}"}
    return [_item(name, text) + len(f' role="{name.lower()}"') for name, text in texts.items() if text]


def _item(name: str, value: str) -> int:
    return _ITEM + len(_escaped(name)) + len(_escaped(_escaped(value).decode()))


def _escaped(text: str) -> bytes:
    return escape(_DROPPED.sub("", text), {'"': "&quot;"}).encode()
