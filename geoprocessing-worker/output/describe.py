"""Describe a file for jobs without a picture: header, place, statistics of a sample."""

from __future__ import annotations

from pathlib import Path

from geoprocessing_worker.color.bands import BandChoice, choose_bands
from geoprocessing_worker.errors import JobError
from geoprocessing_worker.geo.crs import parse_crs
from geoprocessing_worker.geo.layout import lay_out
from geoprocessing_worker.output.metadata import band_statistics, describe_header, describe_place, finite
from geoprocessing_worker.output.stac import Json
from geoprocessing_worker.raster import Grid, SourceHeader
from geoprocessing_worker.source.sampling import Sample, take_sample

OUTLINE = 1024  # pixels: the size of the grid that outlines files without an affine transform


def own_grid(header: SourceHeader) -> Grid:
    """Return the file's own grid. For control points and RPC it is their bounding box in degrees."""
    if header.transform is not None or header.crs is None:
        return Grid(header.width, header.height, header.transform, header.crs)
    try:
        return lay_out(header, parse_crs("EPSG:4326"), OUTLINE).target
    except JobError:
        return Grid(header.width, header.height, None, None)  # the pixels are readable


def sample_bands(path: Path, header: SourceHeader) -> tuple[BandChoice, Sample]:
    """Choose bands as for a picture, and sample their values."""
    choice = choose_bands(header, None)
    nodata = tuple(header.band(index).nodata for index in choice.indexes)
    sample = take_sample(path, header, choice, nodata, header.level_for())
    return sample.choice, sample


def describe_source(name: str, header: SourceHeader, grid: Grid, sampled: tuple[BandChoice, Sample] | None) -> Json:
    """Return the `geoprocessing` block: strict JSON, no NaN. `sampled` is None for a file with unreadable pixels."""
    return finite(
        {
            "width": header.width,
            "height": header.height,
            **describe_place(grid),
            "source": describe_header(header, name),
            "levels": [
                {"width": level.width, "height": level.height, "block": [level.block_width, level.block_height]}
                for level in header.levels
            ],
            "statistics": None if sampled is None else band_statistics(sampled[0].indexes, sampled[1], header),
        }
    )
