"""Options of the other task types."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from geoprocessing_worker.handlers import Payload, invalid_input, strict_number
from geoprocessing_worker.payload import Boolean
from geoprocessing_worker.payload_schema import AT_LEAST
from geoprocessing_worker.render.options import PixelOptions, SourceCrs, Whole, check_system, named


class Compression(StrEnum):
    """The codec of a cloud optimized GeoTIFF."""

    DEFLATE = "deflate"
    ZSTD = "zstd"
    LZW = "lzw"
    JPEG = "jpeg"
    WEBP = "webp"


LOSSY = frozenset({Compression.JPEG, Compression.WEBP})

Page = Annotated[Whole, Field(ge=1, le=65535)] | None


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class InfoOptions(Payload):
    """Options of `geotiff_info`: the page, and the coordinate system of a file that declares none."""

    page: Page = None
    source_crs: SourceCrs | None = None

    def check(self) -> None:
        """Refuse an unknown coordinate system.

        Raises:
            JobError: `bad_crs`.
        """
        check_system(self.source_crs)


class CogOptions(Payload):
    """Options of `geotiff_to_cog`. `None` leaves the choice to the file's content. Sizes are in pixels."""

    compression: Annotated[Compression, BeforeValidator(_lower), named(*Compression)] = Compression.DEFLATE
    quality: Annotated[Whole, Field(ge=1, le=100)] = 85
    resampling: Literal["nearest", "bilinear", "cubic", "average", "lanczos", "mode"] | None = None
    block_size: Literal[256, 512, 1024] | None = None
    web_optimized: Boolean = False
    page: Page = None


HIGHEST_ZOOM = 24
Zoom = Annotated[int, BeforeValidator(strict_number), Field(ge=0, le=HIGHEST_ZOOM)] | None


class TilesOptions(PixelOptions):
    """Options of `geotiff_to_tiles`: how values become colors, and the range of zooms."""

    min_zoom: Zoom = None
    max_zoom: Annotated[Zoom, Field(json_schema_extra={AT_LEAST: "minZoom"})] = None

    def check(self) -> None:
        """Refuse zooms out of order, and an unknown coordinate system.

        Raises:
            JobError: `invalid_payload`, `bad_crs`.
        """
        super().check()
        if self.min_zoom is not None and self.max_zoom is not None and self.min_zoom > self.max_zoom:
            words = f"minZoom {self.min_zoom} is more than maxZoom {self.max_zoom}. Lower minZoom or raise maxZoom."
            raise invalid_input("invalid_payload", words)
