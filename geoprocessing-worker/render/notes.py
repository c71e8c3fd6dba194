"""Notes about a picture besides its choices, for its reader: one sentence per condition."""

from __future__ import annotations

from dataclasses import dataclass

from geoprocessing_worker.color.bands import BandChoice, Color
from geoprocessing_worker.color.fill_value import FillValue
from geoprocessing_worker.color.logluv import is_logluv
from geoprocessing_worker.color.stretch import Stretch
from geoprocessing_worker.raster import SourceHeader
from geoprocessing_worker.render.options import OutputFormat, PixelOptions
from geoprocessing_worker.source.sampling import Sample

LITTLE_CONTRAST = 26  # gray levels, a tenth of what a screen has


@dataclass(frozen=True, slots=True)
class Chosen:
    """The choices that notes describe.

    `scattered`: so few pixels are valid that downsampling would lose most of them. `background`: the value of nearly
    all pixels. `cut`: parts of the file are omitted. `off_web_maps`: a sentence on a picture that a web map
    would misplace. `projection_file`: a sentence on information that it cannot hold.
    """

    bands: BandChoice
    stretch: Stretch
    excluded_values: tuple[FillValue, ...]
    resampling: str
    scattered: bool
    background: int | None
    cut: bool
    off_web_maps: str | None
    projection_file: str | None


def notes(header: SourceHeader, options: PixelOptions, sample: Sample, chosen: Chosen) -> tuple[str, ...]:
    """Return the sentences, most important first."""
    conditions = (
        (header.pages > 1, f"the file has {header.pages} pages; page {header.page} is shown"),
        (header.has_mask, "the file's own mask hides pixels"),
        (
            header.mask_overviews_unlike > 0,
            f"the mask's overviews contradict it ({header.mask_overviews_unlike:.2%} of pixels) and are not used",
        ),
        (header.bands[0].dtype.startswith("complex"), "complex samples are shown as magnitude in dB"),
        (is_logluv(header.photometric, chosen.bands.indexes), "LogLuv is shown as light, evenly spaced to the eye"),
        (header.georeferencing.value == "rpc", "placed by its RPC at one constant height: approximate"),
        (header.georeferencing.value == "gcps", _control_points(header)),
        (header.caveat is not None, header.caveat or ""),
        (header.crs is None or header.displaced is not None, no_place(header)),
        (
            chosen.cut,
            "only the part of the file that the coordinate system asked for is made for is shown: "  # noqa: ISC004 - see above
            "farther away it enlarges a hundredfold. EPSG:4326 or native show all",
        ),
        (chosen.off_web_maps is not None, chosen.off_web_maps or ""),
        (chosen.projection_file is not None, chosen.projection_file or ""),
        (options.source_crs is not None, _source_crs(header)),
        (options.output_format is OutputFormat.JPEG, "JPEG has no transparency: hidden pixels are white"),
        (
            options.colormap is not None and chosen.bands.color is not Color.GRAY,
            "the colormap was not used, since the picture has colors of its own",
        ),
        (
            chosen.scattered,
            "few scattered pixels are valid: in a picture smaller than the file they look larger",
        ),
        (
            chosen.background is not None and not chosen.scattered,
            f"hardly a pixel is not {chosen.background}: in a picture smaller than the file these few look larger",
        ),
        (_has_little_contrast(sample, chosen), _contrast(sample)),
    )
    return (
        *chosen.bands.notes,
        *(text for holds, text in conditions if holds),
        *(_excluded_value(fill) for fill in chosen.excluded_values),
        *header.remarks,
    )


def no_place(header: SourceHeader) -> str:
    """Return a sentence on a file without a place on Earth, with the cure."""
    if header.displaced is not None:
        return f"{header.displaced}; the picture is not placed{': give sourceCrs' if header.crs_would_place else ''}"
    if header.crs_would_place:
        return (
            "the file has coordinates but no coordinate system, so the picture has no place on Earth: give sourceCrs. "
            "A .prj or .aux.xml beside the file is not uploaded with it"
        )
    return (
        "the file has no place on Earth, so the picture has none: put the place into the file, with QGIS or "
        "gdal_translate. A world file or .aux.xml beside the file is not uploaded with it"
    )


def _excluded_value(fill: FillValue) -> str:
    value = str(fill.value) if isinstance(fill.value, int) else f"{fill.value:.17g}"
    return (
        f"{fill.share:.1%} of the pixels hold {value}, far from all others: left out of the stretch, "
        f'but not hidden. If it means no data, set {{"nodata": {value}}}'
    )


def _has_little_contrast(sample: Sample, chosen: Chosen) -> bool:
    """Whether unstretched values make a picture with hardly any contrast."""
    as_they_are = chosen.stretch.identity and chosen.bands.color in {Color.GRAY, Color.RGB}
    if not as_they_are or not sample.valid:
        return False
    low, high = _range(sample)
    return 0 < high - low < LITTLE_CONTRAST


def _contrast(sample: Sample) -> str:
    low, high = _range(sample) if sample.valid else (0, 0)
    return f'the values run from {low} to {high} of 255 only: {{"stretch": "percentile:2,98"}} shows more'


def _range(sample: Sample) -> tuple[int, int]:
    return min(int(plane.min()) for plane in sample.values), max(int(plane.max()) for plane in sample.values)


def _source_crs(header: SourceHeader) -> str:
    if header.crs_given:
        return "placed by sourceCrs, since the file has no coordinate system that can be trusted"
    if header.crs is None:
        return "sourceCrs was not used: it cannot place this file"
    return "sourceCrs was not used: the file has a coordinate system that can be trusted"


def _control_points(header: SourceHeader) -> str:
    points = f"{len(header.gcps)} ground control points"
    if header.gcp_spline:
        polynomial = header.gcp_polynomial_residual
        reason = "cannot be solved" if polynomial is None else f"misses them by {polynomial:.2f} pixels (RMS)"
        return f"placed by a thin-plate spline that meets its {points}, since a polynomial {reason}"
    off = "" if header.gcp_residual is None else f", which it misses by {header.gcp_residual:.2f} pixels (RMS)"
    return f"placed by a curve through {points}{off}"
