"""The `geoprocessing` block of the metadata: every choice with its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from geoprocessing_worker.geo.crs import describe
from geoprocessing_worker.geo.outline import lonlat_bounds
from geoprocessing_worker.geo.web_maps import placements
from geoprocessing_worker.output.stac import Json, native_bounds
from geoprocessing_worker.raster import Grid, Picture, SourceHeader
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.render.plan import RenderPlan
from geoprocessing_worker.source.sampling import Sample

BUCKETS = 32


@dataclass(frozen=True, slots=True)
class Rendered:
    """A picture with its origin: the file's uploaded name, header and sample, the job's options and the plan."""

    name: str
    header: SourceHeader
    sample: Sample
    options: RenderOptions
    plan: RenderPlan
    picture: Picture


def summary(rendered: Rendered) -> Json:
    """Return the `geoprocessing` block, which the API also stores with the job: strict JSON, no NaN."""
    plan, picture, grid = rendered.plan, rendered.picture, rendered.picture.grid
    placed = placements(grid)
    notes = ["no pixel has data: the picture is fully transparent"] if picture.valid_fraction == 0 else []
    return finite(
        {
            "width": grid.width,
            "height": grid.height,
            "mode": picture.mode,
            "format": rendered.options.output_format.value,
            **describe_place(grid),
            "validFraction": picture.valid_fraction,
            "maps": None if placed is None else placed.as_json(),
            "source": describe_header(rendered.header, rendered.name),
            "choices": plan.explain(*notes),
            "statistics": band_statistics(plan.bands.indexes, rendered.sample, rendered.header),
        }
    )


def describe_place(grid: Grid) -> Json:
    """Return a raster's coordinate system and place."""
    bounds = lonlat_bounds(grid)
    return {
        "crs": describe(grid.crs),
        "transform": None if grid.transform is None else [*grid.transform][:6],
        "bounds": native_bounds(grid),
        "bboxLonLat": None if bounds is None else [*bounds],
    }


def describe_header(header: SourceHeader, source_name: str) -> Json:
    """Return the header of the uploaded file."""
    return {
        "fileName": source_name,
        "width": header.width,
        "height": header.height,
        "bands": [
            {
                "dtype": band.dtype,
                "colorInterpretation": band.colorinterp,
                "description": band.description,
                "nodata": _json_nodata(band.nodata),
                "bits": band.bits,
                "scale": band.scale,
                "offset": band.offset,
                "unit": band.unit,
            }
            for band in header.bands[:64]
        ],
        "bandCount": len(header.bands),
        "compression": header.compression,
        "crs": describe(header.full_crs),
        "georeferencing": header.georeferencing.value,
        "gcpCount": len(header.gcps),
        "gcpResidualPx": header.gcp_residual,
        "gcpMethod": _gcp_method(header),
        "gcpPolynomialResidualPx": header.gcp_polynomial_residual,
        "tags": dict(header.tags),
        "page": header.page,
        "transform": None if header.transform is None else [*header.transform][:6],
        "pixelIs": "point" if header.pixel_is_point else "area",
        "overviews": len(header.levels) - 1,
        "mask": header.has_mask,
        "pages": header.pages,
        "notes": list(header.notes),
    }


def _gcp_method(header: SourceHeader) -> str | None:
    if not header.gcps:
        return None
    return "thin_plate_spline" if header.gcp_spline else "polynomial"


def band_statistics(indexes: Sequence[int], sample: Sample, header: SourceHeader) -> Json:
    """Return statistics per band, over the valid pixels of the sample, also scaled if the file declares a scale."""
    return {
        "from": sample.source,
        "pixels": sample.looked_at,
        "valid": sample.valid,
        "bands": [
            {"index": index, **_of_band(values, header.band(index).scale, header.band(index).offset)}
            for index, values in zip(indexes, sample.values, strict=True)
            if values.size
        ],
    }


def _of_band(values: NDArray[Any], scale: float, offset: float) -> Json:
    levels, weights = _levels(values)
    low, high = float(levels.min()), float(levels.max())
    with np.errstate(over="ignore", invalid="ignore"):  # sums near the largest double overflow
        mean = float(np.average(levels, weights=weights))
        spread = float(np.sqrt(np.average((levels - mean) ** 2, weights=weights)))
    numbers = {"minimum": low, "maximum": high, "mean": mean, "stddev": spread}
    found: Json = {**numbers}
    limits = _limits(low, high)
    if math.isfinite(limits[1] - limits[0]):
        counts, _ = np.histogram(levels, BUCKETS, limits, weights=weights)
        found["histogram"] = {"count": BUCKETS, "min": low, "max": high, "buckets": counts.astype(int).tolist()}
    if (scale, offset) != (1.0, 0.0):
        found["scaled"] = {
            name: number * scale if name == "stddev" else number * scale + offset for name, number in numbers.items()
        }
    return found


def _limits(low: float, high: float) -> tuple[float, float]:
    """Return the histogram's range, widened if the values are too close for distinct buckets."""
    if math.isfinite(high - low) and np.all(np.diff(np.linspace(low, high, BUCKETS + 1)) > 0):
        return low, high
    with np.errstate(over="ignore"):
        half = max(0.5, BUCKETS * float(np.spacing(max(abs(low), abs(high)))))
    return low - half, high + half


def _levels(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.intp] | None]:
    """Return the values as floats. Small integers occur once with their count, a fifth of the work to sum."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        return values.astype(np.float64), None
    first = int(values.min())
    counts = np.bincount(values.astype(np.intp) - first)
    found = np.flatnonzero(counts)
    return (found + first).astype(np.float64), counts[found]


def _json_nodata(value: float | None) -> float | str | None:
    """Return nodata as JSON, which has neither NaN nor infinity: those become text."""
    return value if value is None or math.isfinite(value) else str(value)


def finite(block: Json) -> Json:
    """Replace numbers that JSON cannot hold by null."""
    return {key: _finite(value) for key, value in block.items()}


def _finite(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return finite(value)
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
