"""`geotiff_to_png`: one GeoTIFF to one georeferenced picture (PNG, JPEG or WebP), in the job's child process."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path

from PIL import Image
from pyproj import CRS

from geoprocessing_worker.geo.crs import describe, parse_crs, reachable, to_gdal
from geoprocessing_worker.geo.wkt import esri_wkt
from geoprocessing_worker.handlers import Explanation, OutputFile, ProgressCallback, TaskRequest, TaskResult
from geoprocessing_worker.output.metadata import Rendered, finite, summary
from geoprocessing_worker.output.package import write_companions, write_picture
from geoprocessing_worker.output.pixel_check import check_pixels
from geoprocessing_worker.output.sidecars import WORLD_EXTENSIONS, auxiliary_file
from geoprocessing_worker.output.stac import Json, written_at
from geoprocessing_worker.output.verify import verify
from geoprocessing_worker.raster import Grid, SourceHeader
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.render.picture import render
from geoprocessing_worker.render.plan import RenderPlan, draft, make_plan
from geoprocessing_worker.source import known_crs
from geoprocessing_worker.source.gdal import cached_small_sources, deregister_other_drivers, gdal_environment
from geoprocessing_worker.source.gdal_errors import named_errors
from geoprocessing_worker.source.inspection import inspect_file
from geoprocessing_worker.source.sampling import Sample, take_sample

PACKAGING = ("encode", "companions", "check")

__all__ = ["ConversionRequest", "ConversionResult", "OutputFile", "ProgressCallback", "convert", "explain", "preload"]


ConversionRequest = TaskRequest[RenderOptions]


class ConversionResult(TaskResult):
    """The outputs. `packaging` has the times of the last stage's parts."""

    packaging: dict[str, float]


def convert(request: ConversionRequest, report: ProgressCallback) -> ConversionResult:
    """Write the picture and its sidecars to `request.output_folder`.

    Raises:
        JobError: a named refusal, or `self_check_failed`. Errors of GDAL and OpenCV are converted to these.
        OSError: the output folder cannot be written.
    """
    watch = _Watch()
    source, folder, options = request.file, request.output_folder, request.options
    with gdal_environment(), cached_small_sources(), named_errors(source):
        report("inspect", 0.0, "Reading the file's header")
        header, sample, plan = _inspect(source, options, request.validate_headers)
        watch.lap("inspect")
        report("render", 0.0, _sentence(header, plan))
        picture = render(source, header, plan, lambda part: report("render", round(part * 100, 1), "Rendering"))
        watch.lap("render")
        report("package", 0.0, "Writing picture, sidecars and metadata")
        image = write_picture(folder, request.stem, picture, options)
        watch.lap("encode")
        rendered = Rendered(request.source_name, header, sample, options, plan, picture)
        block = summary(rendered)
        companions = write_companions(folder, request.stem, rendered, block)
        watch.lap("companions")
        report("package", 80.0, "Checking the outputs")
        matches = check_pixels(source, header, plan, picture)
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
                "placesCompared": matches.compared,
                "matches": matches.matching,
            },
        },
        timings={name: watch.laps[name] for name in ("inspect", "render")}
        | {"package": sum(watch.laps[name] for name in PACKAGING)},
        packaging={name: watch.laps[name] for name in PACKAGING},
    )


class _Watch:
    """A stopwatch: seconds since the previous lap, by name."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def explain(source: Path, options: RenderOptions, *, validate_headers: bool = True) -> Json:
    """Return the plan for a file as JSON, without rendering it.

    Raises:
        JobError: as `convert`, for all errors that precede rendering.
    """
    with gdal_environment(), named_errors(source):
        _, _, plan = _inspect(source, options, validate_headers)
    return finite(plan.explain())


def explain_request(request: ConversionRequest, report: ProgressCallback) -> Explanation:
    """Return the plan for a job's file: `convert --explain`."""
    report("inspect", 0.0, "Looking at the file")
    return Explanation(plan=explain(request.file, request.options, validate_headers=request.validate_headers))


LAZY = (
    "numpy.ma",
    "_strptime",
    "encodings.ascii",
    "PIL.WebPImagePlugin",
    "multiprocessing.popen_forkserver",
    "geoprocessing_worker.tasks.child",
)
"""Modules that are imported at their first use: 55 ms for each job otherwise."""


def preload() -> None:
    """Warm up the fork server: imports, PROJ's database, few drivers. No thread starts, since none survives a fork."""
    for name in LAZY:
        import_module(name)
    Image.preinit()  # imports the plugins of its usual formats
    written_at("1970:01:01 00:00:00")  # compiles its format
    with gdal_environment():
        for crs in (*map(parse_crs, known_crs.USUAL), *known_crs.learn()):
            _look_up(crs)
    deregister_other_drivers()


def _look_up(crs: CRS) -> None:
    """Look up a system, so that PROJ caches it before the fork. A new look-up reopens its database, in 12 ms."""
    to_gdal(crs)
    auxiliary_file(Grid(1, 1, None, crs))
    describe(crs)
    globe = parse_crs(known_crs.GLOBE)
    reachable(crs, globe)
    reachable(globe, crs)
    if crs.utm_zone is None:  # 14 ms each, and few pictures are in UTM
        esri_wkt(crs)


def _inspect(source: Path, options: RenderOptions, validate_headers: bool) -> tuple[SourceHeader, Sample, RenderPlan]:
    source_crs = None if options.source_crs is None else parse_crs(options.source_crs)
    header = inspect_file(source, options.page, source_crs, validate_headers=validate_headers)
    choices = draft(header, options)
    sample = take_sample(source, header, choices.choice, choices.nodata, choices.level)
    return header, sample, make_plan(header, choices, sample, options)


def _sentence(header: SourceHeader, plan: RenderPlan) -> str:
    target = plan.layout.target
    bands = "band" if len(header.bands) == 1 else "bands"
    return f"{header.width} x {header.height}, {len(header.bands)} {bands} → {target.width} x {target.height} pixels"
