"""The handlers of the built-in task types, in the form that any other package uses."""

from __future__ import annotations

from geoprocessing_worker.handlers import INTERFACE, OutputSlot, TaskHandler, TaskType
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.render.task_options import CogOptions, InfoOptions, TilesOptions

MB = 1 << 20
PICTURE = 1100 * MB  # 16384² RGBA of noise, which does not compress, is smaller. Usual pictures are far smaller.


def _text(suffix: str, content_type: str, *formats: str, megabytes: int = 1) -> OutputSlot:
    return OutputSlot(suffix=suffix, content_type=content_type, max_bytes=megabytes * MB, formats=formats or None)


def _picture(output_format: str, suffix: str, world: str) -> tuple[OutputSlot, ...]:
    return (
        OutputSlot(suffix=suffix, content_type=f"image/{output_format}", max_bytes=PICTURE, formats=(output_format,)),
        _text(world, "text/plain", output_format),
        _text(f"{suffix}.aux.xml", "application/xml", output_format, megabytes=4),
    )


METADATA = _text(".json", "application/json", megabytes=4)

RENDERING = ("cmap", "deflate", "numpy", "opencv-python-headless", "pillow", "pyproj", "rasterio", "zlib-ng")
"""Distributions that rendering imports."""

GEOTIFF_TO_PNG = TaskHandler(
    interface=INTERFACE,
    task_type=TaskType(
        name="geotiff_to_png",
        outputs=(
            *_picture("png", ".png", ".pgw"),
            *_picture("jpeg", ".jpg", ".jgw"),
            *_picture("webp", ".webp", ".wpw"),
            _text(".prj", "text/plain"),
            OutputSlot(suffix="_thumb.png", content_type="image/png", max_bytes=16 * MB),
            METADATA,
        ),
    ),
    payload=RenderOptions,
    stages={"inspect": 5, "render": 45, "package": 10},
    work="geoprocessing_worker.tasks.picture:convert",
    explain="geoprocessing_worker.tasks.picture:explain_request",
    self_test="geoprocessing_worker.tasks.selftests:picture",
    lighter="Try a smaller maxSize, or add overviews to the file.",
    needs=RENDERING,
    preload=("cmap",),
    settings={
        "max_size": "max_image_size",
        "quality": "compression_quality",
        "generate_thumbnails": "generate_thumbnails",
        "thumbnail_size": "thumbnail_size",
        "coordinate_system": "coordinate_system",
    },
)

GEOTIFF_TO_COG = TaskHandler(
    interface=INTERFACE,
    task_type=TaskType(
        name="geotiff_to_cog",
        outputs=(OutputSlot(suffix=".tif", content_type="image/tiff", max_bytes=PICTURE), METADATA),
    ),
    payload=CogOptions,
    stages={"inspect": 5, "translate": 45, "check": 10},
    work="geoprocessing_worker.tasks.cog.job:make_cog",
    self_test="geoprocessing_worker.tasks.selftests:cog",
    needs=("numpy", "pyproj", "rasterio", "rio-cogeo"),
    preload=("rio_cogeo.cogeo",),
    settings={"quality": "compression_quality"},
)

GEOTIFF_TO_TILES = TaskHandler(
    interface=INTERFACE,
    task_type=TaskType(
        name="geotiff_to_tiles",
        outputs=(
            OutputSlot(suffix=".pmtiles", content_type="application/vnd.pmtiles", max_bytes=4096 * MB),
            METADATA,
        ),
        timeout_seconds=7200,
        backoff_seconds=(60, 300, 900, 1800, 3600),
    ),
    payload=TilesOptions,
    stages={"inspect": 2, "render": 55, "package": 3},
    work="geoprocessing_worker.tasks.tiles.job:make_tiles",
    self_test="geoprocessing_worker.tasks.selftests:tiles",
    lighter="Try a smaller maxZoom.",
    needs=(*RENDERING, "pmtiles"),
    settings={"quality": "compression_quality"},
)

GEOTIFF_INFO = TaskHandler(
    interface=INTERFACE,
    task_type=TaskType(name="geotiff_info", outputs=(METADATA,)),
    payload=InfoOptions,
    stages={"inspect": 1},
    work="geoprocessing_worker.tasks.info:describe_file",
    self_test="geoprocessing_worker.tasks.selftests:info",
    needs=("numpy", "pyproj", "rasterio", "rio-cogeo"),
    preload=("rio_cogeo.cogeo",),
)
