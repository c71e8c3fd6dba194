"""The two threads that a picture's pieces are worked on by."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")
Made = TypeVar("Made")

THREADS = 2


def in_order(work: Callable[[Piece], Made], pieces: Sequence[Piece]) -> Iterator[Made]:
    """What becomes of each piece, in their order; a single piece is worked on by the calling thread.

    Raises:
        Exception: what `work` raises.
    """
    if len(pieces) < THREADS:
        yield from map(work, pieces)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(work, pieces)
