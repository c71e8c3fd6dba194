"""Assigns mask IFDs to pages, which GDAL gets wrong in files with several pages."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from geoprocessing_worker.tiff.structure import Ifd, TiffStructure
from geoprocessing_worker.tiff.tags import IS_MASK, IS_REDUCED


def _pages(structure: TiffStructure) -> Iterator[tuple[int, Ifd]]:
    """Yield the IFDs that hold a picture, with their 1-based numbers."""
    return ((number, ifd) for number, ifd in enumerate(structure.ifds, 1) if ifd.width and ifd.height)


def whole_pages(structure: TiffStructure) -> list[int]:
    """Return the IFDs with a full-size picture, where GDAL lists no pages.

    That is the first IFD. If that declares itself an overview, it is each IFD of the chain that does not.
    """
    _, first = next(_pages(structure), (1, None))
    if first is None or not first.subfile_type & IS_REDUCED:
        return [1]
    full_size = [
        number
        for number, ifd in _pages(structure)
        if number > 1 and not ifd.nested and not ifd.subfile_type & (IS_MASK | IS_REDUCED)
    ]
    return full_size or [1]


def incomplete_pages(structure: TiffStructure) -> frozenset[int]:
    """Return the IFDs with values beyond the end of the file. None of them is used."""
    return frozenset(number for number, ifd in _pages(structure) if ifd.incomplete)


def mask_sizes(structure: TiffStructure) -> frozenset[tuple[int, int]]:
    """Return (width, height) of all IFDs that declare themselves masks."""
    return frozenset((ifd.width, ifd.height) for _, ifd in _pages(structure) if ifd.subfile_type & IS_MASK)


def page_masks(structure: TiffStructure, pages: Collection[int]) -> dict[int, int]:
    """Return the mask IFD of each of the `pages` that has one.

    A mask follows its page. A mask added later is at the end of the file. It belongs to the first page of its size that
    has none.
    """
    sizes: dict[int, tuple[int, int]] = {}
    masks: dict[int, int] = {}
    for number, ifd in _pages(structure):
        size = ifd.width, ifd.height
        if number in pages:
            sizes[number] = size
        elif not ifd.nested and ifd.subfile_type & (IS_MASK | IS_REDUCED) == IS_MASK:
            unmasked = [page for page, page_size in sizes.items() if page_size == size and page not in masks]
            owner = unmasked[-1:] if unmasked[-1:] == list(sizes)[-1:] else unmasked[:1]
            masks |= dict.fromkeys(owner, number)
    return masks
