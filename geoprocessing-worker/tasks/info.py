"""`geotiff_info`: the header of a file and the statistics of its values, without a picture."""

from __future__ import annotations

import time
from pathlib import Path

from rasterio.errors import CRSError, RasterioError
from rio_cogeo.cogeo import cog_validate

from geoprocessing_worker.geo.crs import parse_crs
from geoprocessing_worker.handlers import ProgressCallback, TaskRequest, TaskResult
from geoprocessing_worker.output.describe import describe_source, own_grid, sample_bands
from geoprocessing_worker.output.stac import Json, write_item
from geoprocessing_worker.render.task_options import InfoOptions
from geoprocessing_worker.source.gdal import cached_small_sources, gdal_environment
from geoprocessing_worker.source.gdal_errors import named, named_errors
from geoprocessing_worker.source.inspection import inspect_file


def describe_file(request: TaskRequest[InfoOptions], report: ProgressCallback) -> TaskResult:
    """Describe header, place and statistics of a file, and its validity as a cloud optimized GeoTIFF.

    Raises:
        JobError: as `inspect_file`. Errors of GDAL are converted to these.
    """
    source, options, started = request.file, request.options, time.perf_counter()
    with gdal_environment(), cached_small_sources(), named_errors(source):
        report("inspect", 0.0, "Reading the file's header")
        crs = None if options.source_crs is None else parse_crs(options.source_crs)
        header = inspect_file(source, options.page, crs, validate_headers=request.validate_headers)
        report("inspect", 50.0, "Sampling its values")
        damage = None
        try:
            sampled = sample_bands(source, header)
        except RasterioError as error:
            # The header is right all the same, and helps to find out why no picture comes out.
            sampled, damage = None, named(error).code
        grid = own_grid(header)
        block = describe_source(request.source_name, header, grid, sampled)
        layout = _layout(source)
    block["damage"] = damage
    block["cloudOptimized"] = layout
    asset: Json = {"href": request.source_name, "type": "image/tiff", "roles": ["data"]}
    output = write_item(request.output_folder / f"{request.stem}.json", header, grid, block, {"source": asset})
    return TaskResult(outputs=(output,), metadata=block, timings={"inspect": time.perf_counter() - started})


def _layout(source: Path) -> Json:
    """Return rio-cogeo's verdict on the layout."""
    try:
        valid, errors, warnings = cog_validate(str(source), quiet=True)
    except UnicodeDecodeError:
        # rasterio reads the coordinate system, as UTF-8, while it opens the file.
        valid, errors, warnings = False, ["the name of its coordinate system is not UTF-8"], []
    except CRSError:
        valid, errors, warnings = False, ["PROJ cannot parse its coordinate system"], []
    except ZeroDivisionError:  # rio-cogeo 7.0.4 divides by the decimation, which rounds to 0
        valid, errors, warnings = False, ["an overview is larger than the picture"], []
    return {"valid": valid, "errors": [*errors], "warnings": [*warnings]}
