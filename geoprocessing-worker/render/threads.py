"""The two threads that work on a picture's chunks."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import cv2

Chunk = TypeVar("Chunk")
Made = TypeVar("Made")

THREADS = 2

cv2.setNumThreads(1)  # OpenCV's own threads would come on top of these


def in_order(work: Callable[[Chunk], Made], chunks: Sequence[Chunk]) -> Iterator[Made]:
    """Yield the result for each chunk, in order. The calling thread works on a single chunk.

    Raises:
        Exception: any error of `work`.
    """
    if len(chunks) < THREADS:
        yield from map(work, chunks)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(work, chunks)
