"""What jobs that make no picture tell of a file: its header, its place, a sample of its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geoprocessing_worker.color.bands import BandChoice, choose_bands
from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.crs import describe, parse_crs
from geoprocessing_worker.geo.layout import lay_out
from geoprocessing_worker.geo.outline import lonlat_bounds
from geoprocessing_worker.output.metadata import band_statistics, finite, source_facts
from geoprocessing_worker.output.stac import native_bounds
from geoprocessing_worker.raster import Grid, SourceHeader
from geoprocessing_worker.source.sampling import Sample, take_sample

OUTLINE = 1024  # pixels; the size of the grid by which files without an affine transform are outlined


def own_grid(header: SourceHeader) -> Grid:
    """Where a file lies by its own word: its pixels, or for ground control and RPC the box round them in degrees."""
    if header.transform is not None or header.crs is None:
        return Grid(header.width, header.height, header.transform, header.crs)
    try:
        return lay_out(header, parse_crs("EPSG:4326"), OUTLINE).target
    except JobError:
        return Grid(header.width, header.height, None, None)  # it can be read all the same


def sample_of(path: Path, header: SourceHeader) -> tuple[BandChoice, Sample]:
    """The bands that a picture would show, and a look at their values."""
    choice = choose_bands(header, None)
    nodata = tuple(header.band(index).nodata for index in choice.indexes)
    sample = take_sample(path, header, choice, nodata, header.level_for())
    return sample.choice, sample


def facts(name: str, header: SourceHeader, grid: Grid, sampled: tuple[BandChoice, Sample] | None) -> dict[str, Any]:
    """The `geoprocessing` block: strict JSON, no NaN; `sampled` is None for a file whose pixels cannot be read."""
    bounds = lonlat_bounds(grid)
    told: dict[str, Any] = finite(
        {
            "width": header.width,
            "height": header.height,
            "crs": describe(grid.crs),
            "transform": list(grid.transform)[:6] if grid.transform is not None else None,
            "bounds": native_bounds(grid),
            "bboxLonLat": None if bounds is None else list(bounds),
            "source": source_facts(header, name),
            "levels": [
                {"width": level.width, "height": level.height, "block": [level.block_width, level.block_height]}
                for level in header.levels
            ],
            "statistics": None if sampled is None else band_statistics(sampled[0].indexes, sampled[1], header),
        }
    )
    return told
