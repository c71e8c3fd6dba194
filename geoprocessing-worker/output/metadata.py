"""The `geoprocessing` block of the metadata, which tells every choice with its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoprocessing_worker.geo.crs import describe
from geoprocessing_worker.geo.outline import lonlat_bounds
from geoprocessing_worker.geo.web_maps import placements
from geoprocessing_worker.output.stac import native_bounds
from geoprocessing_worker.raster import Picture, SourceHeader
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.render.plan import RenderPlan
from geoprocessing_worker.source.sampling import Sample

BUCKETS = 32


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """The file that was read: the name that its uploader knows it by, its header, and the sample taken of it."""

    name: str
    header: SourceHeader
    sample: Sample


def summary(source: SourceSummary, plan: RenderPlan, picture: Picture, options: RenderOptions) -> dict[str, Any]:
    """The `geoprocessing` block, which is also what the API keeps of a job: strict JSON, no NaN."""
    grid = picture.grid
    placed = placements(grid)
    choices = plan.explain()
    if picture.valid_fraction == 0:
        choices["notes"].append("no pixel has data: the picture is wholly transparent")
    found: dict[str, Any] = finite(
        {
            "width": grid.width,
            "height": grid.height,
            "mode": picture.mode,
            "format": options.output_format.value,
            "crs": describe(grid.crs),
            "transform": list(grid.transform)[:6] if grid.transform is not None else None,
            "bounds": native_bounds(grid),
            "bboxLonLat": _listed(lonlat_bounds(grid)),
            "validFraction": picture.valid_fraction,
            "maps": None if placed is None else placed.as_json(),
            "source": source_facts(source.header, source.name),
            "choices": choices,
            "statistics": band_statistics(plan.bands.indexes, source.sample, source.header),
        }
    )
    return found


def source_facts(header: SourceHeader, source_name: str) -> dict[str, Any]:
    """What the uploaded file said about itself."""
    return {
        "fileName": source_name,
        "width": header.width,
        "height": header.height,
        "bands": [
            {
                "dtype": band.dtype,
                "colorInterpretation": band.colorinterp,
                "description": band.description,
                "nodata": _told(band.nodata),
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
        "transform": list(header.transform)[:6] if header.transform is not None else None,
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


def band_statistics(indexes: Sequence[int], sample: Sample, header: SourceHeader) -> dict[str, Any]:
    """Per band of the sample, over the valid pixels of the sample; scaled too where the file gives scale or offset."""
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


def _of_band(values: NDArray[Any], scale: float, offset: float) -> dict[str, Any]:
    levels, weights = _levels(values)
    low, high = float(levels.min()), float(levels.max())
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers as large as doubles get there is no mean
        mean = float(np.average(levels, weights=weights))
        spread = float(np.sqrt(np.average((levels - mean) ** 2, weights=weights)))
    facts = {"minimum": low, "maximum": high, "mean": mean, "stddev": spread}
    found: dict[str, Any] = {**facts}
    limits = _limits(low, high)
    if math.isfinite(limits[1] - limits[0]):
        counts, _ = np.histogram(levels, BUCKETS, limits, weights=weights)
        found["histogram"] = {"count": BUCKETS, "min": low, "max": high, "buckets": counts.astype(int).tolist()}
    if (scale, offset) != (1.0, 0.0):
        found["scaled"] = {
            name: number * scale if name == "stddev" else number * scale + offset for name, number in facts.items()
        }
    return found


def _limits(low: float, high: float) -> tuple[float, float]:
    """Where the histogram begins and ends: wider than the values where they are too close to be told apart."""
    if math.isfinite(high - low) and np.all(np.diff(np.linspace(low, high, BUCKETS + 1)) > 0):
        return low, high
    with np.errstate(over="ignore"):
        half = max(0.5, BUCKETS * float(np.spacing(max(abs(low), abs(high)))))
    return low - half, high + half


def _levels(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.intp] | None]:
    """The values as floats; small whole numbers each once, with how often, which is a fifth of the work to add up."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        return values.astype(np.float64), None
    first = int(values.min())
    counts = np.bincount(values.astype(np.intp) - first)
    found = np.flatnonzero(counts)
    return (found + first).astype(np.float64), counts[found]


def _listed(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)


def _told(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity; as nodata they are facts worth telling."""
    return value if value is None or math.isfinite(value) else str(value)


def finite(value: Any) -> Any:
    """The same JSON without a number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
