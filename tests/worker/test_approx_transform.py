"""The guarantees of the approximate transform that spare a check of each pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geoprocessing_worker.geo.approx_transform import STEP, ApproxTransform, Points

ROWS, COLUMNS, SIZE = 64, 48, 100

places = st.floats(-20, 120, width=32)


def never(columns: Points, rows: Points) -> tuple[Points, Points]:
    raise AssertionError("no cell is bent")


def mesh_of(nodes: list[float], bent: bool = False) -> ApproxTransform:
    """Columns that wander between the given positions from node to node. x equals y."""
    down = np.array(nodes, dtype=np.float32)[:, None] + np.linspace(-30, 30, COLUMNS, dtype=np.float32)
    cells = np.full((len(nodes) - 1, COLUMNS // STEP), bent)
    return ApproxTransform(np.stack([down, down], axis=-1), cells, never, 1.0, 1.0)


@given(nodes=st.lists(places, min_size=ROWS // STEP + 1, max_size=ROWS // STEP + 1), first=st.integers(0, ROWS - 1))
def test_columns_reported_inside_are_inside(nodes: list[float], first: int) -> None:
    """No position in the columns that are called surely inside lies outside of the source, whatever the rows asked."""
    mesh = mesh_of(nodes)
    sure = mesh.surely_inside(first, ROWS, SIZE, SIZE)
    found = mesh.rows(first, ROWS)[:, sure]
    assert ((found >= 0) & (found < SIZE)).all()


def test_columns_inside_are_found_between_those_outside() -> None:
    """A source with edges that cross the picture still has a middle that needs no check."""
    sure = mesh_of([20.0] * 5).surely_inside(0, ROWS, SIZE, SIZE)
    assert sure.stop - sure.start > COLUMNS // 2
    assert sure.start > 0


def test_nothing_is_sure_in_bent_cells() -> None:
    """Between nodes that are joined by a curve no promise is made."""
    assert mesh_of([50.0] * 5, bent=True).surely_inside(0, ROWS, SIZE, SIZE) == slice(0, 0)
