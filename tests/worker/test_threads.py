"""Work on a picture's pieces: in order, and without a pool where there is but one."""

import threading

import pytest

from geoprocessing_worker.render.threads import in_order


def test_results_come_in_the_order_of_the_pieces() -> None:
    """A later piece that is ready first waits for its turn."""
    second_done = threading.Event()

    def work(piece: int) -> int:
        if piece == 0:
            assert second_done.wait(10)
        elif piece == 1:
            second_done.set()
        return piece * 10

    assert list(in_order(work, range(3))) == [0, 10, 20]


def test_a_single_piece_starts_no_thread() -> None:
    """A small picture is made by the calling thread, since a pool would cost more than the work."""
    assert list(in_order(lambda _: threading.current_thread(), [0])) == [threading.current_thread()]


@pytest.mark.parametrize("pieces", [1, 3])
def test_an_error_of_a_piece_is_raised(pieces: int) -> None:
    """An error in a piece is the caller's, with one piece as with several."""

    def work(piece: int) -> int:
        raise ValueError(piece)

    with pytest.raises(ValueError, match="0"):
        list(in_order(work, range(pieces)))
