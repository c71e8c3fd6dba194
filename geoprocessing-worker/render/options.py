"""Options of rendering: the settings' defaults, and the payload's values within limits."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from geoprocessing_worker.color import colormaps
from geoprocessing_worker.geo.crs_text import CODE_PATTERN, NATIVE, PROJ_PATTERN, PROJJSON_PATTERN, WKT_PATTERN
from geoprocessing_worker.handlers import JobError, Payload, invalid_input, strict_number
from geoprocessing_worker.payload import Boolean
from geoprocessing_worker.payload_schema import ASCENDING, CRS_FORMAT, IGNORE_CASE


class OutputFormat(StrEnum):
    """The formats of a picture."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


STRETCHES = "percentile:lo,hi (0 to 100) | minmax | stddev:n (above 0 to 100) | range:lo,hi | none"
SMALLEST, LARGEST = 1e-200, 1e300
"""Doubles can represent stretches between these."""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_STRETCH = re.compile(
    rf"percentile:{_NUMBER},{_NUMBER}|minmax|stddev:{_NUMBER}|range:{_NUMBER},{_NUMBER}|none", re.IGNORECASE
)
# Spaces do not count. The worker checks numbers with exponents and those of a range.
_SCIENTIFIC = r"\+?[.\d]+[eE][-+]?\d+"
_PERCENT = rf"(?:[-+]?0+(?:\.0*)?|\+?0*(?:100(?:\.0*)?|[1-9]\d?(?:\.\d*)?|\.\d+)|{_SCIENTIFIC})"
_DEVIATIONS = rf"(?:\+?0*(?:100(?:\.0*)?|[1-9]\d?(?:\.\d*)?|\.\d*[1-9]\d*)|{_SCIENTIFIC})"
_STRETCH_SCHEMA = WithJsonSchema(
    {
        "type": "string",
        "maxLength": 200,
        "pattern": (
            rf"^\s*(?:[Pp]ercentile|PERCENTILE)\s*:\s*{_PERCENT}\s*,\s*{_PERCENT}\s*$"
            r"|^\s*(?:[Rr]ange|RANGE)\s*:\s*[-+.\deE]+\s*,\s*[-+.\deE]+\s*$"
            rf"|^\s*(?:[Ss]td[Dd]ev|STDDEV)\s*:\s*{_DEVIATIONS}\s*$"
            r"|^\s*(?:[Mm]in[Mm]ax|MINMAX|[Nn]one|NONE)\s*$"
        ),
        "description": STRETCHES,
        ASCENDING: True,
    }
)


def _stretch(text: str) -> str:
    compact = text.replace(" ", "").lower()
    if not _STRETCH.fullmatch(compact):
        raise ValueError(f"allowed: {STRETCHES}")
    kind, _, rest = compact.partition(":")
    numbers = [float(part) for part in rest.split(",")] if rest else []
    if kind == "range" and not all(number == 0 or SMALLEST <= abs(number) <= LARGEST for number in numbers):
        raise ValueError(f"range needs numbers between {SMALLEST:g} and {LARGEST:g}")
    if kind == "percentile" and not 0 <= numbers[0] < numbers[1] <= 100:
        raise ValueError("percentile needs 0 <= lo < hi <= 100")
    if kind == "range" and not numbers[1] - numbers[0] >= SMALLEST:
        raise ValueError("range needs lo < hi")
    if kind == "stddev" and not 0 < numbers[0] <= 100:
        raise ValueError("stddev needs a number above 0, at most 100")
    return compact


def _colormap(name: str) -> str:
    if name.lower() not in colormaps.NAMES:
        raise ValueError("allowed: a colormap that docs/RENDERING.md lists, such as viridis, also with _r for reversed")
    return name.lower()


def _format(value: Any) -> Any:
    lowered = value.lower() if isinstance(value, str) else value
    return "jpeg" if lowered == "jpg" else lowered


def _nodata(value: Any) -> Any:
    """Keep integers as integers: beyond 2^53 a double would change them."""
    number = strict_number(value)
    try:
        double = float(number)
    except OverflowError:
        double = math.inf
    if not math.isfinite(double):
        raise ValueError("allowed: a finite number")
    return number if abs(number) < 1 << 64 else double


def check_system(text: str | None) -> None:
    """Refuse an unknown coordinate system. Only the child process imports PROJ.

    Raises:
        JobError: `bad_crs`.
    """
    if text is not None:
        from geoprocessing_worker.geo.crs import parse_crs  # noqa: PLC0415 - see above

        parse_crs(text)


def _check_target(text: str) -> None:
    """Refuse an unknown output coordinate system. Only this one of the payload's two may be `native`."""
    try:
        check_system(text)
    except JobError as error:
        raise invalid_input(
            error.code, f'{error.message} "native" keeps the file\'s own system.', **error.detail
        ) from None


LONGEST_CRS = 8192


def named(*names: str) -> WithJsonSchema:
    """The schema of a text that is one of these names, in any case."""
    return WithJsonSchema({"type": "string", "enum": list(names), IGNORE_CASE: True})


def crs_schema(*, or_native: bool) -> WithJsonSchema:
    """The schema of a coordinate system, by the rules of `crs.parse_crs`."""
    forms = [CODE_PATTERN, WKT_PATTERN, PROJJSON_PATTERN, PROJ_PATTERN]
    if or_native:
        forms.append("[Nn][Aa][Tt][Ii][Vv][Ee]\\s*$")
    return WithJsonSchema(
        {
            "type": "string",
            "format": CRS_FORMAT,
            "minLength": 1,
            "maxLength": LONGEST_CRS,
            "pattern": rf"^\s*(?:{'|'.join(forms)})",
            "description": "an authority's code such as EPSG:4326, WKT, PROJJSON"
            + (", a PROJ string without grids or native" if or_native else " or a PROJ string without grids"),
        }
    )


SourceCrs = Annotated[str, Field(min_length=1, max_length=LONGEST_CRS), crs_schema(or_native=False)]
Resampling = Literal["nearest", "bilinear", "cubic", "average", "lanczos", "mode"]
Whole = Annotated[int, BeforeValidator(strict_number)]
BandIndex = Annotated[Whole, Field(ge=1, le=65535)]


class PixelOptions(Payload):
    """How a file's values become colors. Frozen. With `None` the plan chooses."""

    output_format: Annotated[OutputFormat, BeforeValidator(_format), named("png", "jpeg", "jpg", "webp")] = (
        OutputFormat.PNG
    )
    bands: Annotated[tuple[BandIndex, ...], Field(min_length=1, max_length=4)] | None = None
    stretch: Annotated[str, Field(max_length=200), AfterValidator(_stretch), _STRETCH_SCHEMA] | None = None
    colormap: (
        Annotated[str, Field(max_length=64), AfterValidator(_colormap), named(*sorted(colormaps.NAMES))] | None
    ) = None
    resampling: Resampling | None = None
    nodata: Annotated[int | float, BeforeValidator(_nodata), WithJsonSchema({"type": "number"})] | None = None
    page: Annotated[Whole, Field(ge=1, le=65535)] | None = None
    source_crs: SourceCrs | None = None
    quality: Annotated[Whole, Field(ge=1, le=100)] = 85

    def check(self) -> None:
        """Refuse an unknown source coordinate system.

        Raises:
            JobError: `bad_crs`.
        """
        check_system(self.source_crs)


class RenderOptions(PixelOptions):
    """How to render a file as one picture. Sizes are in pixels."""

    max_size: Annotated[Whole, Field(ge=1, le=16384)] = 4096
    coordinate_system: Annotated[str, Field(min_length=1, max_length=LONGEST_CRS), crs_schema(or_native=True)] = (
        "EPSG:4326"
    )
    generate_thumbnails: Boolean = True
    thumbnail_size: Annotated[Whole, Field(ge=16, le=1024)] = 256

    def check(self) -> None:
        """Refuse unknown coordinate systems.

        Raises:
            JobError: `bad_crs`.
        """
        if self.coordinate_system.strip().lower() != NATIVE:
            _check_target(self.coordinate_system)
        super().check()
