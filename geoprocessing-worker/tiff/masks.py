"""Which directories of a TIFF are masks, and of which page: what GDAL gets wrong in files with several pages."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.tiff.directory import HEIGHT, IS_MASK, IS_REDUCED, SUBFILE_TYPE, WIDTH, Tiff


@dataclass(frozen=True, slots=True)
class _Page:
    """A directory by its 1-based number: the bits of its subfile type, (width, height), whether it is of the chain.

    `incomplete`: as in `Directory`.
    """

    number: int
    kind: int
    size: tuple[int, int]
    chained: bool
    incomplete: bool


def _pages(path: Path) -> Iterator[_Page]:
    """All directories that hold a picture, as far as they can be read."""
    with suppress(OSError, JobError), path.open("rb") as file:
        tiff = Tiff(file)
        for number, directory in enumerate(tiff.directories(), 1):
            kind, *size = (tiff.numbers(directory.find(tag))[:1].tolist() for tag in (SUBFILE_TYPE, WIDTH, HEIGHT))
            if all(size):
                whole = int(size[0][0]), int(size[1][0])
                yield _Page(number, int(kind[0]) if kind else 0, whole, not directory.nested, directory.incomplete)


def whole_pages(path: Path) -> list[int]:
    """Which directories are pictures of their own where GDAL lists none, by their 1-based numbers.

    The first; where that says that it is a smaller version, those of the chain that do not, as far as there are any.
    """
    pages = _pages(path)
    first = next(pages, None)
    if first is None or not first.kind & IS_REDUCED:
        return [1]
    return [page.number for page in pages if page.chained and not page.kind & (IS_MASK | IS_REDUCED)] or [1]


def incomplete_pages(path: Path) -> frozenset[int]:
    """The directories that lack values beyond the file's end, by their 1-based numbers. None of them is used."""
    return frozenset(page.number for page in _pages(path) if page.incomplete)


def mask_sizes(path: Path) -> frozenset[tuple[int, int]]:
    """(width, height) of all directories that say they are masks; none of a file that cannot be walked."""
    return frozenset(page.size for page in _pages(path) if page.kind & IS_MASK)


def page_masks(path: Path, pages: Collection[int]) -> dict[int, int]:
    """Which directory is the mask of which of the `pages`, both by their 1-based numbers.

    A mask follows its page. One that was added later stands at the end: it is the first page's of its size that has
    none.
    """
    sizes: dict[int, tuple[int, int]] = {}
    found: dict[int, int] = {}
    for page in _pages(path):
        if page.number in pages:
            sizes[page.number] = page.size
        elif page.chained and page.kind & (IS_MASK | IS_REDUCED) == IS_MASK:
            waiting = [number for number, size in sizes.items() if size == page.size and number not in found]
            owner = waiting[-1:] if waiting[-1:] == list(sizes)[-1:] else waiting[:1]
            found |= dict.fromkeys(owner, page.number)
    return found
