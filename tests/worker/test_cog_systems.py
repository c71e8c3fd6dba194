"""Refusals and notes of `geotiff_to_cog` about geographic systems in units other than degrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from geoprocessing_worker.errors import JobError
from tests.worker.test_cog import cog
from tests.worker.test_own_system import BESSEL, UNITS, USER, write


@pytest.mark.parametrize("unit", ["grads", "radians"])
def test_a_refusal_advises_no_web_copy_where_that_is_refused_too(unit: str, tmp_path: Path) -> None:
    """GeoTIFF keys of the copy lose the meridian, and GDAL cannot align such a unit with web tiles."""
    keys, per_degree = UNITS[unit]
    system = {1024: 2, 2048: USER, 2050: USER, 2056: BESSEL, **keys, 2051: USER, 2061: 10.0 * per_degree}
    source = write(tmp_path / "a.tif", system, per_degree, 50 * per_degree, 0.001 * per_degree)
    with pytest.raises(JobError, match="an unnamed geographic system") as caught:
        cog(source, tmp_path / "out")
    assert caught.value.code == "unsupported_crs"
    assert "Reproject" in str(caught.value)
    assert "webOptimized" not in str(caught.value)
    with pytest.raises(JobError, match="Omit webOptimized"):
        cog(source, tmp_path / "web", webOptimized=True)


def test_the_note_on_a_system_without_heights_names_no_horizontal_part(tmp_path: Path) -> None:
    """A two-dimensional system in a unit of its own is copied whole, in other keys."""
    keys, per_degree = UNITS["thousandths of a degree"]
    system = {1024: 2, 2048: USER, 2050: USER, 2056: BESSEL, **keys}
    source = write(tmp_path / "a.tif", system, per_degree, 50 * per_degree, 0.001 * per_degree)
    block: Any = cog(source, tmp_path / "out").metadata["cog"]
    assert block["notes"][0] == (
        "GeoTIFF keys cannot hold an unnamed geographic system as the file has it: the copy has an equivalent system"
    )
    assert ["datum" in note for note in block["notes"][1:]] == [True]
