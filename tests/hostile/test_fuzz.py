"""Mutated TIFFs through the walker and the real child: each ends in a picture or an error code."""

from pathlib import Path

import pytest

from tests.support.fuzz import Fuzzer

COUNT = 500


@pytest.mark.timeout(400)  # on a busy machine. Alone half a minute
async def test_mutated_files_end_in_a_picture_or_an_error_code(tmp_path: Path) -> None:
    """`make fuzz` runs thousands."""
    fuzzer = Fuzzer(seed=20, folder=tmp_path)
    done = await fuzzer.run(0, COUNT)
    assert done == COUNT
    assert fuzzer.tally.faults == []
    assert fuzzer.tally.outcomes["picture"] > COUNT / 10, "hardly any mutation was worth looking at"


def test_mutations_are_reproducible(tmp_path: Path) -> None:
    one, other = Fuzzer(seed=1, folder=tmp_path), Fuzzer(seed=1, folder=tmp_path)
    assert one.content(7) == other.content(7)
    assert one.content(7) != one.content(8)
