"""All choices for one picture, made from the header and a sample, as one readable value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from geoprocessing_worker.color import colormaps
from geoprocessing_worker.color.arrays import PICKING
from geoprocessing_worker.color.bands import BandChoice, Color, choose_bands
from geoprocessing_worker.color.fill_value import FillValue, find_byte_fill, find_fill_values, without
from geoprocessing_worker.color.lab import check_scale
from geoprocessing_worker.color.profile import ColorProfile, choose_profile
from geoprocessing_worker.color.quantize import Quantizer, choose_quantizer
from geoprocessing_worker.color.stretch import Stretch, choose_stretch, few_near_values, few_values
from geoprocessing_worker.geo.crs import horizontal, parse_crs
from geoprocessing_worker.geo.crs_text import NATIVE
from geoprocessing_worker.geo.layout import Layout, lay_out
from geoprocessing_worker.geo.web_maps import placements
from geoprocessing_worker.geo.wkt import esri_wkt_note
from geoprocessing_worker.raster import Level, SampleKind, SourceHeader
from geoprocessing_worker.render.cost import WORK_BYTES, address_space_left, afford, cost
from geoprocessing_worker.render.notes import Chosen, notes
from geoprocessing_worker.render.options import OutputFormat, PixelOptions, RenderOptions
from geoprocessing_worker.source.sampling import Sample

# A format that cannot hold a larger picture limits maxSize.
LONGEST_SIDE = {OutputFormat.PNG: 16384, OutputFormat.JPEG: 16384, OutputFormat.WEBP: 16383}

SCATTERED = 0.01  # of the pixels sampled: with fewer valid ones, nearest neighbor downsampling may hide all


@dataclass(frozen=True, slots=True)
class ReadSize:
    """The size in pixels to which a level is reduced during reading, before warping."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class RenderPlan:
    """How a picture is read, quantized, resampled and placed.

    `keep_sparse`: when downsampling, an output pixel takes any valid, non-background pixel it covers, so that sparse
    features survive. `background` is the value of nearly all pixels.
    """

    bands: BandChoice
    sample_kind: SampleKind
    nodata: tuple[float | None, ...]
    stretch: Stretch
    excluded_values: tuple[FillValue, ...]
    invert: bool
    colormap: str | None
    profile: ColorProfile | None
    level: Level
    read_size: ReadSize
    quantizer: Quantizer | None
    layout: Layout
    resampling: str
    resampling_reason: str
    decoded_bytes: int
    keep_sparse: bool
    background: int | None
    notes: tuple[str, ...]

    @property
    def nodata_when_placed(self) -> bool:
        """Whether to look for nodata on the output: for picked values that is equivalent and less work."""
        return self.sample_kind is SampleKind.INDEXED and self.resampling == "nearest" and not self.keep_sparse

    def explain(self, *more_notes: str) -> dict[str, JsonValue]:
        """Return the plan as JSON, as `convert --explain` and the metadata show it."""
        stretch = self.stretch
        return {
            "bands": {
                "indexes": list(self.bands.indexes),
                "alpha": self.bands.alpha,
                "alphaTop": None if self.bands.alpha is None else self.bands.alpha_top,
                "shownAs": self.bands.color.value,
                "reason": self.bands.reason,
            },
            "stretch": {
                "kind": stretch.kind,
                "lo": stretch.lo,
                "hi": stretch.hi,
                "reason": stretch.reason,
                "excludedValues": [{"value": fill.value, "share": fill.share} for fill in self.excluded_values],
            },
            "colormap": self.colormap,
            "colorProfile": None if self.profile is None else "converted to sRGB",
            "inverted": self.invert,
            "alphaUnassociated": self.bands.premultiplied,
            "resampling": {"method": self.resampling, "reason": self.resampling_reason},
            "read": {
                "overview": self.level.overview,
                "width": self.level.width,
                "height": self.level.height,
                "decodedBytes": self.decoded_bytes,
                "readSize": [self.read_size.width, self.read_size.height],
                "bits": 8 if self.quantizer is None else 16,
            },
            "geometry": {
                "warped": self.layout.warp,
                "flippedRows": self.layout.flip_rows,
                "flippedColumns": self.layout.flip_columns,
                "reason": self.layout.reason,
            },
            "notes": [*self.notes, *more_notes],
        }


@dataclass(frozen=True, slots=True)
class SparseHints:
    """`pixels`: few are valid, so that picking would miss most. `values`: few are distinct, as in classes."""

    pixels: bool
    values: bool


@dataclass(frozen=True, slots=True)
class HeaderChoices:
    """The choices from the header alone, which the sample needs: bands, layout and level."""

    choice: BandChoice
    layout: Layout
    level: Level
    nodata: tuple[float | None, ...]
    decoded_bytes: int


def draft(header: SourceHeader, options: RenderOptions) -> HeaderChoices:
    """Make the choices that need no pixel.

    Raises:
        JobError: `bad_crs`, `invalid_payload` (a band that is not there), `too_complex`, `too_large`.
    """
    choice = choose_bands(header, options.bands)
    native = options.coordinate_system.strip().lower() == NATIVE
    crs = None if native else horizontal(parse_crs(options.coordinate_system))
    layout = lay_out(header, crs, min(options.max_size, LONGEST_SIDE[options.output_format]))
    level = header.level_for(layout.read_width, layout.read_height)
    predicted = cost(header, level, choice, layout)
    afford(predicted, address_space_left())
    nodata = tuple(header.band(index).nodata if options.nodata is None else options.nodata for index in choice.indexes)
    return HeaderChoices(choice, layout, level, nodata, predicted.decoded_bytes)


def make_plan(header: SourceHeader, choices: HeaderChoices, sample: Sample, options: PixelOptions) -> RenderPlan:
    """Make all choices for one file. Rendering checks whether any pixel is valid, since it sees every one.

    Raises:
        JobError: `unsupported_data_type`: L*a*b* on an unknown scale.
    """
    choice = sample.choice
    kind = _sample_kind(choice)
    values, excluded_values = _valid_values(choice, sample, options)
    scattered = 0 < sample.valid < sample.looked_at * SCATTERED
    hints = sparse_hints(choice, sample, values)
    resampling, why = choose_resampling(header, options.resampling, choice, values, hints)
    background = _background(choice, values, resampling)
    keep_sparse = scattered or background is not None
    stored = np.dtype(header.bands[0].dtype).itemsize
    samples = stored if kind is SampleKind.INDEXED else 3 if kind is SampleKind.RGB else 1
    single = kind is SampleKind.GRAY
    stretch = _stretch(header, choice, values, options, sample.ordered)
    quantizer = _quantizer(header, choice, stretch, resampling)
    pixel_bytes = samples * (1 if quantizer is None else 2)
    placed = placements(choices.layout.target)
    off = None if placed is None else placed.note
    lost = esri_wkt_note(choices.layout.target.crs)
    chosen = Chosen(choice, stretch, excluded_values, resampling, scattered, background, choices.layout.cut, off, lost)
    return RenderPlan(
        bands=choice,
        sample_kind=kind,
        nodata=choices.nodata[: len(choice.indexes)],
        stretch=stretch,
        excluded_values=excluded_values,
        invert=header.miniswhite and single,
        colormap=options.colormap if single and options.colormap in colormaps.NAMES else None,
        profile=_profile(header, choice, stretch),
        level=choices.level,
        read_size=_read_size(choices, "sparse" if keep_sparse else resampling, pixel_bytes),
        quantizer=quantizer,
        layout=choices.layout,
        resampling=resampling,
        resampling_reason=why,
        decoded_bytes=choices.decoded_bytes,
        keep_sparse=keep_sparse,
        background=background,
        notes=notes(header, options, sample, chosen),
    )


def _sample_kind(choice: BandChoice) -> SampleKind:
    if choice.color is Color.PALETTE:
        return SampleKind.INDEXED
    return SampleKind.GRAY if choice.color is Color.GRAY else SampleKind.RGB


def _valid_values(
    choice: BandChoice, sample: Sample, options: PixelOptions
) -> tuple[NDArray[Any], tuple[FillValue, ...]]:
    """Return the valid values of all shown bands without fill values, and the fill values."""
    values = np.concatenate(sample.values)
    asked = (options.stretch or "percentile").partition(":")[0]
    if choice.color not in {Color.GRAY, Color.RGB} or asked not in {"percentile", "stddev"}:
        return values, ()
    if values.dtype == np.uint8:
        fills = find_byte_fill(values) if choice.color is Color.GRAY and not sample.ordered else ()
    elif few_near_values(values) and not sample.ordered:
        return values, ()
    else:
        fills = find_fill_values(values, sample.collar)
    return without(values, fills), fills


def _stretch(
    header: SourceHeader, choice: BandChoice, values: NDArray[Any], options: PixelOptions, ordered: bool
) -> Stretch:
    band = header.band(choice.indexes[0])
    if choice.color is Color.PALETTE:
        return Stretch("none", 0.0, 255.0, "a color table defines the color of each value")
    if choice.color is Color.LAB:
        check_scale(values, band.dtype)
        return Stretch("none", 0.0, 255.0, "L*a*b* values are colors")
    if choice.color is Color.CMYK:
        top = float(np.iinfo(values.dtype).max) if values.dtype.kind in "iu" else 1.0
        return Stretch("range", 0.0, top, "the whole range of the inks")
    return choose_stretch(values, band.bits, options.stretch, color=choice.true_color, ordered=ordered)


def _profile(header: SourceHeader, choice: BandChoice, stretch: Stretch) -> ColorProfile | None:
    """Return the file's profile if its numbers are colors: inks, and unstretched RGB bytes."""
    rgb_bytes = choice.color is Color.RGB and header.band(choice.indexes[0]).dtype == "uint8"
    if choice.color is Color.CMYK or (rgb_bytes and stretch.identity):
        return choose_profile(header.icc_profile, len(choice.indexes))
    return None


def _quantizer(header: SourceHeader, choice: BandChoice, stretch: Stretch, resampling: str) -> Quantizer | None:
    """Quantize to sixteen bits where values are stretched and mixed. Other values stay bytes."""
    dtype = np.dtype(header.band(choice.indexes[0]).dtype)
    if resampling in PICKING or choice.color not in {Color.GRAY, Color.RGB}:
        return None
    if dtype == np.uint8 and (stretch.identity or stretch.kind == "bits"):
        return None  # nothing is clipped, so averages of bytes are right
    return choose_quantizer(dtype, stretch)


def _read_size(choices: HeaderChoices, resampling: str, pixel_bytes: int) -> ReadSize:
    """Return at most twice the size that the output needs, a whole fraction of the level if it fits, never below."""
    level, layout = choices.level, choices.layout
    least_w, least_h = min(level.width, layout.read_width), min(level.height, layout.read_height)
    if resampling in {"cubic", "lanczos", "sparse"}:
        return ReadSize(least_w, least_h)
    times = 1 if resampling in PICKING else max(1, min(level.width // least_w, level.height // least_h))
    width, height = max(least_w, level.width // times), max(least_h, level.height // times)
    room = max(WORK_BYTES, least_w * least_h * pixel_bytes) / (width * height * pixel_bytes)
    if room >= 1:
        return ReadSize(width, height)
    return ReadSize(max(least_w, int(width * room**0.5)), max(least_h, int(height * room**0.5)))


def sparse_hints(choice: BandChoice, sample: Sample, values: NDArray[Any]) -> SparseHints:
    """Return whether valid pixels or distinct values of a sample are few. `values` are those that count."""
    classes = choice.color is Color.GRAY and values.size > 0 and not sample.ordered and few_values(values)
    return SparseHints(0 < sample.valid < sample.looked_at * SCATTERED, classes)


def choose_resampling(
    header: SourceHeader, asked: str | None, choice: BandChoice, values: NDArray[Any], hints: SparseHints
) -> tuple[str, str]:
    """Return the least harmful method for the kind of data, unless the job asks for one, and the reason."""
    palette = choice.color is Color.PALETTE
    if asked is not None and (asked == "mode" or not palette):
        return asked, "asked for in the payload"
    if palette:
        return "nearest", "entries of a color table cannot be mixed"
    if hints.pixels:
        return "average", "few scattered valid pixels, most of which nearest neighbor would miss"
    if choice.color is Color.GRAY and _bilevel(header, choice, values):
        return "average", "black and white: averaging keeps thin lines as gray"
    if hints.values:
        return "nearest", "classes cannot be mixed"
    return "average", "measurements and imagery: averaging uses all pixels"


def _background(choice: BandChoice, values: NDArray[Any], resampling: str) -> int | None:
    """Return the value of nearly all pixels, if values are picked: picking would miss most of the others."""
    single = choice.color in {Color.GRAY, Color.PALETTE} and values.dtype.kind in "iu" and values.size > 0
    if not single or resampling != "nearest":
        return None
    # A value as common as that is the median. For bytes, counting is faster.
    common = int(np.bincount(values).argmax()) if values.dtype == np.uint8 else int(np.median(values))
    share = float(np.count_nonzero(values == common)) / values.size
    return common if 1 - SCATTERED <= share < 1 else None


def _bilevel(header: SourceHeader, choice: BandChoice, values: NDArray[Any]) -> bool:
    """Whether the band is a scan rather than classes: one bit, white as 0, or nothing but black and white."""
    if header.band(choice.indexes[0]).bits == 1 or header.miniswhite:
        return True
    if values.dtype.kind not in "iu" or values.size == 0:
        return False
    white = np.iinfo(values.dtype).max
    # White is the largest number. In types wider than bytes a lone 0 need not be black.
    return (values.dtype == np.uint8 or values.max() == white) and bool(((values == 0) | (values == white)).all())
