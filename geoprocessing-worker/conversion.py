"""One GeoTIFF to one georeferenced picture: the pipeline, from top to bottom, as the job's child process runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pyvips
from affine import Affine
from pydantic import BaseModel, ConfigDict, JsonValue
from pyproj import CRS
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from geoprocessing_worker.crs import describe, from_gdal, horizontal, parse_crs, reachable, to_gdal
from geoprocessing_worker.directory import COMPRESSION, malformed, tag_values
from geoprocessing_worker.header import SourceHeader
from geoprocessing_worker.inspection import inspect_file
from geoprocessing_worker.metadata import Source, finite, summary, written_at
from geoprocessing_worker.opening import forget_other_drivers, gdal_environment, small_sources_kept
from geoprocessing_worker.options import RenderOptions
from geoprocessing_worker.package import OutputFile, write_companions, write_picture
from geoprocessing_worker.plan import RenderPlan, draft, make_plan
from geoprocessing_worker.raster import Grid
from geoprocessing_worker.refusals import named
from geoprocessing_worker.render import render
from geoprocessing_worker.resemblance import resemblance
from geoprocessing_worker.sampling import Sample, take_sample
from geoprocessing_worker.sidecars import WORLD_EXTENSIONS, auxiliary_file, projection_file
from geoprocessing_worker.verify import verify

PACKAGING = ("encode", "companions", "check")

Report = Callable[[str, float, str], None]
"""Told the stage, the percent done within it (0 to 100), and a sentence."""

__all__ = ["ConversionRequest", "ConversionResult", "OutputFile", "Report", "convert", "explain", "preload"]


class ConversionRequest(BaseModel):
    """What to convert, where to, and how; `source_name` is the name that the uploader knows the file by.

    `validate_headers`: look at the file's structure before GDAL does.
    """

    model_config = ConfigDict(frozen=True)

    source: Path
    output_folder: Path
    stem: str
    options: RenderOptions
    source_name: str
    validate_headers: bool = True


class ConversionResult(BaseModel):
    """What was made; `timings` in seconds per stage, `packaging` the parts of the last one."""

    model_config = ConfigDict(frozen=True)

    outputs: tuple[OutputFile, ...]
    metadata: dict[str, JsonValue]
    timings: dict[str, float]
    packaging: dict[str, float]


def convert(
    request: ConversionRequest, report: Report, clock: Callable[[], float] = time.perf_counter
) -> ConversionResult:
    """Makes the picture and its sidecars in `request.output_folder`.

    Raises:
        JobError: a named refusal, or `self_check_failed`. Errors of GDAL and libvips come out as those.
        OSError: the output folder cannot be written.
    """
    watch = _Watch(clock)
    folder, options = request.output_folder, request.options
    with gdal_environment(), small_sources_kept(), _named_errors(request.source):
        report("inspect", 0.0, "Reading the file's header")
        header, sample, plan = _inspect(request.source, options, request.validate_headers)
        watch.lap("inspect")
        report("render", 0.0, _sentence(header, plan))
        picture = render(request.source, header, plan, lambda part: report("render", round(part * 100, 1), "Rendering"))
        watch.lap("render")
        report("package", 0.0, "Writing picture, sidecars and metadata")
        image = write_picture(folder, request.stem, picture, options)
        watch.lap("encode")
        block = summary(Source(request.source_name, header, sample), plan, picture, options)
        companions = write_companions(folder, request.stem, picture, options, block)
        watch.lap("companions")
        report("package", 80.0, "Checking what was made")
        likeness = resemblance(request.source, header, plan, picture)
    world = folder / f"{request.stem}.{WORLD_EXTENSIONS[options.output_format]}"
    distance = verify(image.path, world if world.exists() else None, header, picture.grid)
    watch.lap("check")
    report("package", 100.0, "Done")
    return ConversionResult(
        outputs=(image, *companions),
        metadata={
            **block,
            "selfCheck": {
                "maxDistancePx": distance,
                "placesCompared": likeness.compared,
                "placesAlike": likeness.alike,
            },
        },
        timings={name: watch.laps[name] for name in ("inspect", "render")}
        | {"package": sum(watch.laps[name] for name in PACKAGING)},
        packaging={name: watch.laps[name] for name in PACKAGING},
    )


class _Watch:
    """Seconds since the lap before, by name."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._last = clock, clock()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = self._clock()
        self.laps[name], self._last = now - self._last, now


def explain(source: Path, options: RenderOptions, *, validate_headers: bool = True) -> dict[str, Any]:
    """The plan for a file as JSON, without rendering it.

    Raises:
        JobError: as `convert`, for all that shows before pixels are rendered.
    """
    with gdal_environment(), _named_errors(source):
        _, _, plan = _inspect(source, options, validate_headers)
    explained: dict[str, Any] = finite(plan.explain())
    return explained


GLOBE = "EPSG:4326"
USUAL = (GLOBE, "EPSG:3857")
"""The coordinate systems that most pictures are in."""

LAZY = ("numpy.ma", "_strptime", "encodings.ascii")
"""What libraries import at their first use: 50 ms that each job would spend anew."""


def preload() -> None:
    """Warms what a fork server should have before it forks: imports, PROJ's database, few drivers. Starts no thread.

    libvips makes its threads at the first picture, so none is made here: threads do not survive a fork.
    """
    for name in LAZY:
        import_module(name)
    written_at("1970:01:01 00:00:00")  # compiles its expression
    with gdal_environment():
        for code in USUAL:
            for crs in (parse_crs(code), _as_read(code)):
                _look_up(crs)
    forget_other_drivers()


def _look_up(crs: CRS) -> None:
    """What PROJ was asked it knows after a fork too; only for what is new it opens its database again, for 12 ms."""
    to_gdal(crs)
    projection_file(crs)
    auxiliary_file(Grid(1, 1, None, crs))
    describe(crs)
    globe = parse_crs(GLOBE)
    reachable(crs, globe)
    reachable(globe, crs)


def _as_read(code: str) -> CRS:
    """The system as GDAL tells it of a file, which is not word for word what its code stands for."""
    shape = {"width": 1, "height": 1, "count": 1, "dtype": "uint8"}
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", crs=code, transform=Affine.scale(1.0, -1.0), **shape):
            pass
        with memory.open() as dataset:
            return horizontal(from_gdal(dataset.crs) or parse_crs(code))


@contextmanager
def _named_errors(source: Path) -> Iterator[None]:
    """What GDAL, libvips or the machine raise leaves the block as a `JobError`."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, pyvips.Error, MemoryError) as error:
        raise named(error, tag_values(source, COMPRESSION)) from error
    except UnicodeDecodeError as error:
        # rasterio takes all texts of GDAL's for UTF-8, also those that a damaged file left half of.
        raise malformed("a text in it cannot be read", reason=error.reason) from error


def _inspect(source: Path, options: RenderOptions, validate_headers: bool) -> tuple[SourceHeader, Sample, RenderPlan]:
    source_crs = None if options.source_crs is None else parse_crs(options.source_crs)
    header = inspect_file(source, options.page, source_crs, validate_headers=validate_headers)
    drafted = draft(header, options)
    sample = take_sample(source, header, drafted.choice, drafted.nodata, drafted.level)
    return header, sample, make_plan(header, drafted, sample, options)


def _sentence(header: SourceHeader, plan: RenderPlan) -> str:
    target = plan.layout.target
    bands = "band" if len(header.bands) == 1 else "bands"
    return f"{header.width} x {header.height}, {len(header.bands)} {bands} → {target.width} x {target.height} pixels"
