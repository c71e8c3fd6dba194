"""The one place that opens a stranger's file: GTiff driver only, nothing beside the file, no network, a small cache."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rasterio
import rasterio._env
import rasterio.crs
from rasterio._err import CPLE_BaseError
from rasterio.control import GroundControlPoint
from rasterio.errors import CRSError, NotGeoreferencedWarning
from rasterio.io import DatasetReader, MemoryFile

GDAL_OPTIONS: dict[str, Any] = {
    # Bytes, as rasterio takes it. 5 % of the host is the default; with a smaller cache blocks are decoded again.
    "GDAL_CACHEMAX": 96 << 20,
    "GDAL_NUM_THREADS": 1,
    # Sidecars are somebody else's words about the file. The first has no effect as an option of opening (rasterio 1.4).
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_HTTP_MAX_RETRY": 0,
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "CPL_DEBUG": "OFF",
    "PROJ_NETWORK": "OFF",
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    # A GCP file, or one without any reference, may hold an identity transform: say what is in the file, no more.
    "GTIFF_POINT_GEO_IGNORE": "NO",
}

# What is read, and what the results are checked with; COG only writes.
DRIVERS = frozenset({"GTiff", "COG", "PNG", "JPEG", "WEBP", "MEM"})

# GDAL's COG driver turns an alpha band into a JPEG's mask through a VRT in memory. Its `GDALTranslate` looks the driver
# up by name only. A driver of that name without functions is enough for that, and opens nothing. It also keeps the real
# one out: GDAL registers VRT again wherever it makes such a dataset and the name is free.
PLACEHOLDER = {b"DMD_LONGNAME": b"Placeholder", b"DCAP_RASTER": b"YES", b"DCAP_CREATECOPY": b"YES"}

OF_RASTER = 0x02  # GDAL_OF_RASTER
SMALL = 1 << 20  # pixels
MOST_KEPT = 32  # of the 256 files that a child may have open


def deregister_other_drivers() -> tuple[str, ...]:
    """Take all drivers but `DRIVERS` from GDAL, in this process for good; the names of those that are left.

    An empty driver takes the place of VRT (see `PLACEHOLDER`).

    GDAL_SKIP would need the names of all before the first is registered. rasterio's own module leads to the library
    that it is linked with, wherever that lies.
    """
    with rasterio.Env():
        gdal = ctypes.CDLL(rasterio._env.__file__)  # noqa: SLF001 - see above
        gdal.GDALGetDriver.restype = ctypes.c_void_p
        gdal.GDALGetDriverShortName.restype = ctypes.c_char_p
        gdal.GDALGetDriverShortName.argtypes = gdal.GDALDeregisterDriver.argtypes = [ctypes.c_void_p]
        drivers = [gdal.GDALGetDriver(number) for number in range(gdal.GDALGetDriverCount())]
        names = {driver: gdal.GDALGetDriverShortName(driver).decode() for driver in drivers}
        for driver, name in names.items():
            if name not in DRIVERS:
                gdal.GDALDeregisterDriver(driver)
        _register_placeholder(gdal, b"VRT")
    return tuple(name for name in names.values() if name in DRIVERS)


def _register_placeholder(gdal: ctypes.CDLL, name: bytes) -> None:
    """Register a driver that has a name and capabilities, but can neither open nor create anything."""
    gdal.GDALCreateDriver.restype = ctypes.c_void_p
    gdal.GDALSetDescription.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    gdal.GDALSetMetadataItem.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p]
    gdal.GDALRegisterDriver.argtypes = [ctypes.c_void_p]
    driver = gdal.GDALCreateDriver()
    gdal.GDALSetDescription(driver, name)
    for key, value in PLACEHOLDER.items():
        gdal.GDALSetMetadataItem(driver, key, value, None)
    gdal.GDALRegisterDriver(driver)


def read_system(name: str, driver: str) -> rasterio.crs.CRS | None:
    """Return the coordinate system of a dataset, or of its control points, in WKT2.

    rasterio 1.4 asks for WKT1, which cannot hold ESRI's Krovak, a prime meridian in radians, and others.

    Raises:
        rasterio.errors.CRSError: PROJ cannot parse it.
    """
    with rasterio.Env():
        gdal = ctypes.CDLL(rasterio._env.__file__)  # noqa: SLF001 - see above
        gdal.GDALOpenEx.restype = ctypes.c_void_p
        gdal.GDALClose.argtypes = gdal.VSIFree.argtypes = [ctypes.c_void_p]
        dataset = gdal.GDALOpenEx(name.encode(), OF_RASTER, _texts(driver.encode()), None, None)
        if not dataset:
            return None
        try:
            for ask in (gdal.GDALGetSpatialRef, gdal.GDALGetGCPSpatialRef):
                ask.restype, ask.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
                if (system := ask(dataset)) and (words := _in_wkt2(gdal, system)):
                    return rasterio.crs.CRS.from_wkt(words)
        finally:
            gdal.GDALClose(dataset)
    return None


def _in_wkt2(gdal: ctypes.CDLL, system: int) -> str:
    gdal.OSRExportToWktEx.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    text = ctypes.c_char_p()
    gdal.OSRExportToWktEx(system, ctypes.byref(text), _texts(b"FORMAT=WKT2_2019"))
    words = (text.value or b"").decode(errors="replace")
    gdal.VSIFree(text)
    return words


def _texts(*texts: bytes) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(texts) + 1))(*texts, None)


def clear_errors(dataset: Any) -> None:
    """Drop an error that opening has survived: rasterio would raise it at the next call.

    Coordinate systems that PROJ cannot read leave one, and tags of types that libtiff does not know.
    """
    with suppress(CPLE_BaseError):
        _ = dataset.colorinterp


def _find_overviews(dataset: Any) -> None:
    """Have GDAL walk the chain of directories, which it otherwise does at the first question about overviews or masks.

    A chain that ends at a pointer to no directory leaves an error, which rasterio would raise at a later call.
    With metadata of this domain GDAL would open the file that they name, before `inspection` refuses the domain.
    """
    with suppress(CPLE_BaseError):
        if "OVERVIEWS" not in dataset.tag_namespaces():
            dataset.overviews(1)


class _Source(DatasetReader):  # type: ignore[misc]  # compiled, without types
    """A dataset that reads its coordinate system when somebody asks for it: rasterio does so in opening, for 10 ms."""

    _opened = False
    crs_unreadable = False
    """Whether the file has a coordinate system that PROJ cannot parse. Set when it is read."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._opened = True

    def read_crs(self) -> rasterio.crs.CRS | None:
        """Return GDAL's reading of the file's keys, or `None` if PROJ cannot parse it.

        An unreadable system leaves no error behind for the next call.
        """
        if not self._opened:
            return None
        crs = None
        for read in (self._read_in_wkt2, super().read_crs):
            try:
                crs = crs or read()
            except CRSError:
                self.crs_unreadable = True
        clear_errors(self)
        return crs

    def _read_in_wkt2(self) -> rasterio.crs.CRS | None:
        crs = read_system(self.name, "GTiff")
        if crs is not None:
            crs.to_wkt()  # raises an error for a projection that PROJ cannot compute with its parameters
        return crs

    @property
    def gcps(self) -> tuple[list[GroundControlPoint], rasterio.crs.CRS | None]:
        """Return the ground control points and their system. rasterio has none of them if PROJ cannot parse it."""
        try:
            points, crs = super().get_gcps()
        except CRSError:
            self.crs_unreadable = True
            clear_errors(self)
            return [], None
        return points, crs

    @property
    def crs(self) -> rasterio.crs.CRS | None:
        """As `read_crs`; rasterio's own property would know that there was none when it was opened."""
        return self.read_crs()


@dataclass
class _Kept:
    closing: ExitStack
    datasets: dict[tuple[Path, int | None, int, bool], Any] = field(default_factory=dict)


_kept: ContextVar[_Kept | None] = ContextVar("kept", default=None)


@contextmanager
def gdal_environment(**overrides: Any) -> Iterator[None]:
    """GDAL as this package wants it, for the block."""
    with warnings.catch_warnings(), gdal_options(**overrides):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def gdal_options(**overrides: Any) -> rasterio.Env:
    """As `gdal_environment`, for a thread of its own: those of Python's filters of warnings are everybody's."""
    return rasterio.Env(**{**GDAL_OPTIONS, **overrides})


@contextmanager
def open_source(
    path: Path,
    overview_level: int | None = None,
    directory: int = 1,
    *,
    raw: bool = False,
    own: bool = False,
) -> Iterator[Any]:
    """One directory of the file (1 is the first) as a rasterio dataset; with `overview_level` that overview of it.

    0 is the largest overview. `raw`: samples as they stand in the file, where GDAL would turn inks and L*a*b* of bytes
    into light without their profile and their alpha. `own`: a handle that nobody else has, for another thread.

    `sharing` off: two handles never share GDAL's state.

    Raises:
        rasterio.errors.RasterioIOError: GDAL's GTiff driver cannot open it.
    """
    key, kept = (path, overview_level, directory, raw), _kept.get()
    if kept is not None and not own and key in kept.datasets:
        yield kept.datasets[key]
        return
    extra: dict[str, Any] = {} if overview_level is None else {"OVERVIEW_LEVEL": overview_level}
    # The first directory is opened by the file's own name, since by number GDAL leaves out overviews and mask.
    # An absolute path begins with a slash, so that no file's name is taken for a prefix of GDAL's.
    name = str(path.absolute()) if directory == 1 else f"GTIFF_DIR:{directory}:{path.absolute()}"
    if raw:
        name = f"GTIFF_RAW:{name}"
    with ExitStack() as closing:
        dataset = _Source(name, driver="GTiff", sharing=False, **extra)
        closing.enter_context(dataset)
        _find_overviews(dataset)
        clear_errors(dataset)
        if kept is not None and not own and dataset.width * dataset.height <= SMALL and len(kept.datasets) < MOST_KEPT:
            kept.datasets[key] = dataset
            kept.closing.push(closing.pop_all())
        yield dataset


@contextmanager
def open_without_mask(path: Path, directory: int) -> Iterator[Any]:
    """One directory of the file as a rasterio dataset, without overviews and mask, even if it is the first.

    Raises:
        rasterio.errors.RasterioIOError: GDAL's GTiff driver cannot open it.
    """
    with _Source(f"GTIFF_DIR:{directory}:{path.absolute()}", driver="GTiff", sharing=False) as dataset:
        clear_errors(dataset)
        yield dataset


@contextmanager
def open_bytes(content: bytes) -> Iterator[Any]:
    """A TIFF in memory, opened as `open_source` opens files."""
    with MemoryFile(content) as memory, _Source(memory.name, driver="GTiff", sharing=False) as dataset:
        yield dataset


@contextmanager
def cached_small_sources() -> Iterator[None]:
    """Within the block small pictures are opened once and stay open, with what was decoded of them in GDAL's cache.

    Opening and reading anew for the sample, the picture and the check is a fifth of a small job's time.
    """
    with ExitStack() as closing:
        before = _kept.set(_Kept(closing))
        try:
            yield
        finally:
            _kept.reset(before)
