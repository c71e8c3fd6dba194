"""What a job may ask of the renderer: the settings' defaults, and the payload's own values within limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from geoprocessing_worker import colormaps
from geoprocessing_worker.crs import NATIVE, parse_crs
from geoprocessing_worker.errors import refused


class OutputFormat(StrEnum):
    """The formats that a picture can leave in."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


STRETCHES = "percentile:lo,hi | minmax | stddev:n | range:lo,hi | none"
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_STRETCH = re.compile(
    rf"percentile:{_NUMBER},{_NUMBER}|minmax|stddev:{_NUMBER}|range:{_NUMBER},{_NUMBER}|none", re.IGNORECASE
)


def _stretch(text: str) -> str:
    compact = text.replace(" ", "").lower()
    if not _STRETCH.fullmatch(compact):
        raise ValueError(f"allowed: {STRETCHES}")
    kind, _, rest = compact.partition(":")
    numbers = [float(part) for part in rest.split(",")] if rest else []
    if kind == "percentile" and not 0 <= numbers[0] < numbers[1] <= 100:
        raise ValueError("percentile needs 0 <= lo < hi <= 100")
    if kind == "range" and not numbers[0] < numbers[1]:
        raise ValueError("range needs lo < hi")
    if kind == "stddev" and not 0 < numbers[0] <= 100:
        raise ValueError("stddev needs a number above 0, at most 100")
    return compact


def _colormap(name: str) -> str:
    if name.lower() not in colormaps.NAMES:
        raise ValueError(f"allowed: {', '.join(sorted(colormaps.ANCHORS))}, each also with _r for reversed")
    return name.lower()


def _format(value: Any) -> Any:
    lowered = value.lower() if isinstance(value, str) else value
    return "jpeg" if lowered == "jpg" else lowered


def _strict_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("allowed: a number")  # noqa: TRY004 - pydantic turns only ValueError into a field's error
    return value


Resampling = Literal["nearest", "bilinear", "cubic", "average", "lanczos", "mode"]
Whole = Annotated[int, BeforeValidator(_strict_number)]
BandIndex = Annotated[Whole, Field(ge=1, le=65535)]


class RenderOptions(BaseModel):
    """What to make of a file. Frozen; sizes in pixels; `None` leaves the choice to the plan."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", allow_inf_nan=False
    )

    max_size: Annotated[Whole, Field(ge=1, le=16384)] = 4096
    output_format: Annotated[OutputFormat, BeforeValidator(_format)] = OutputFormat.PNG
    coordinate_system: Annotated[str, Field(min_length=1, max_length=8192)] = "EPSG:4326"
    bands: Annotated[tuple[BandIndex, ...], Field(min_length=1, max_length=4)] | None = None
    stretch: Annotated[str, Field(max_length=200), AfterValidator(_stretch)] | None = None
    colormap: Annotated[str, Field(max_length=64), AfterValidator(_colormap)] | None = None
    resampling: Resampling | None = None
    nodata: Annotated[float, BeforeValidator(_strict_number)] | None = None
    page: Annotated[Whole, Field(ge=1, le=65535)] | None = None
    source_crs: Annotated[str, Field(min_length=1, max_length=8192)] | None = None
    generate_thumbnails: bool = True
    thumbnail_size: Annotated[Whole, Field(ge=16, le=1024)] = 256
    quality: Annotated[Whole, Field(ge=1, le=100)] = 85

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any], defaults: RenderOptions) -> Self:
        """The defaults, overridden by the job's `inputPayload`; unknown keys and nulls are ignored.

        Raises:
            JobError: `invalid_payload`, naming each field, what was given and what is allowed; `bad_crs`.
        """
        asked = {
            name: payload[field.alias]
            for name, field in cls.model_fields.items()
            if field.alias is not None and payload.get(field.alias) is not None
        }
        try:
            options = cls.model_validate({**defaults.model_dump(), **asked})
        except ValidationError as error:
            faults = [_fault(item, payload) for item in error.errors(include_url=False)]
            raise refused("invalid_payload", "The job's options cannot be used: " + "; ".join(faults) + ".") from None
        if options.coordinate_system.strip().lower() != NATIVE:
            parse_crs(options.coordinate_system)
        if options.source_crs is not None:
            parse_crs(options.source_crs)
        return options


def _fault(item: Any, payload: Mapping[str, Any]) -> str:
    """One field's trouble in a sentence: its name in the payload, the value given, the rule that it breaks."""
    name = to_camel(str(item["loc"][0])) if item["loc"] else "inputPayload"
    name = name if name in payload else str(item["loc"][0])
    given = repr(payload.get(name))
    rule = str(item["msg"]).removeprefix("Value error, ")
    return f"{name} was {given if len(given) <= 80 else given[:77] + '...'}: {rule}"
