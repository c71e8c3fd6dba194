"""Opens untrusted files: GTiff driver only, no sidecar files, no network, a small cache."""

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
    # Bytes. GDAL's default is 5 % of the host. With a smaller cache, blocks are decoded again.
    "GDAL_CACHEMAX": 96 << 20,
    "GDAL_NUM_THREADS": 1,
    # Sidecar files are not part of the upload. The first has no effect as an open option (rasterio 1.4).
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_HTTP_MAX_RETRY": 0,
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "CPL_DEBUG": "OFF",
    "PROJ_NETWORK": "OFF",
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "GTIFF_POINT_GEO_IGNORE": "NO",
}

# For reading, and for checking results. COG only writes.
DRIVERS = frozenset({"GTiff", "COG", "PNG", "JPEG", "WEBP", "MEM"})

# GDAL's COG driver turns an alpha band into a JPEG's mask through a VRT in memory. Its `GDALTranslate` looks up the VRT
# driver by name alone, so an empty driver of that name is enough, and opens nothing. It also keeps the real driver out:
# GDAL registers VRT again whenever it makes such a dataset and the name is free.
PLACEHOLDER = {b"DMD_LONGNAME": b"Placeholder", b"DCAP_RASTER": b"YES", b"DCAP_CREATECOPY": b"YES"}

OF_RASTER = 0x02  # GDAL_OF_RASTER
SMALL_SOURCE_PIXELS = 1 << 20  # pixels
MAX_CACHED = 32  # of the 256 files that a child may have open


def deregister_other_drivers() -> tuple[str, ...]:
    """Deregister all GDAL drivers but `DRIVERS` in this process. Return the names of the remaining ones.

    An empty driver replaces VRT (see `PLACEHOLDER`).

    GDAL_SKIP would need all names before the first driver is registered. GDAL itself is reached through rasterio's
    module, which is linked with it.
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
    """Register a driver with a name and capabilities that can neither open nor create anything."""
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
    """Return the CRS of a dataset, or of its control points, through WKT2.

    rasterio 1.4 uses WKT1, which cannot express ESRI's Krovak or a prime meridian in radians, for example. It does not
    expose its dataset handle, so the file is opened once more.

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
            for getter in (gdal.GDALGetSpatialRef, gdal.GDALGetGCPSpatialRef):
                getter.restype, getter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
                if (reference := getter(dataset)) and (wkt := _in_wkt2(gdal, reference)):
                    return rasterio.crs.CRS.from_wkt(wkt)
        finally:
            gdal.GDALClose(dataset)
    return None


def _in_wkt2(gdal: ctypes.CDLL, reference: int) -> str:
    gdal.OSRExportToWktEx.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    text = ctypes.c_char_p()
    gdal.OSRExportToWktEx(reference, ctypes.byref(text), _texts(b"FORMAT=WKT2_2019"))
    wkt = (text.value or b"").decode(errors="replace")
    gdal.VSIFree(text)
    return wkt


def _texts(*texts: bytes) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(texts) + 1))(*texts, None)


def clear_errors(dataset: Any) -> None:
    """Clear a pending GDAL error that did not fail the open. rasterio would raise it at the next call.

    CRSs that PROJ cannot parse leave one, and tags of types unknown to libtiff.
    """
    with suppress(CPLE_BaseError):
        _ = dataset.colorinterp


def _find_overviews(dataset: Any) -> None:
    """Make GDAL walk the chain of IFDs now, instead of at the first access to overviews or masks.

    A broken chain leaves an error, which rasterio would raise at a later call. Skipped for metadata in the domain
    OVERVIEWS: GDAL would open the file that they name, before `inspection` rejects the domain.
    """
    with suppress(CPLE_BaseError):
        if "OVERVIEWS" not in dataset.tag_namespaces():
            dataset.overviews(1)


class _LazyCrsDataset(DatasetReader):  # type: ignore[misc]  # compiled, without types
    """A dataset that reads its CRS at the first access. rasterio reads it during opening, which takes 10 ms."""

    _opened = False
    crs_unreadable = False
    """Whether the file has a CRS that PROJ cannot parse. Set when the CRS is read."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._opened = True

    def read_crs(self) -> rasterio.crs.CRS | None:
        """Return GDAL's reading of the file's keys, or `None` if PROJ cannot parse it.

        An unreadable CRS leaves no error for the next call.
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
            crs.to_wkt()  # raises an error for projection parameters that PROJ cannot use
        return crs

    @property
    def gcps(self) -> tuple[list[GroundControlPoint], rasterio.crs.CRS | None]:
        """Return the ground control points and their CRS. Without points if PROJ cannot parse the CRS."""
        try:
            points, crs = super().get_gcps()
        except CRSError:
            self.crs_unreadable = True
            clear_errors(self)
            return [], None
        return points, crs

    @property
    def crs(self) -> rasterio.crs.CRS | None:
        """As `read_crs`. rasterio's own property would return the value cached during opening."""
        return self.read_crs()


@dataclass
class _Cache:
    closing: ExitStack
    datasets: dict[tuple[Path, int | None, int, bool], Any] = field(default_factory=dict)


_cache: ContextVar[_Cache | None] = ContextVar("cache", default=None)


@contextmanager
def gdal_environment(**overrides: Any) -> Iterator[None]:
    """Configure GDAL for the block."""
    with warnings.catch_warnings(), gdal_options(**overrides):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def gdal_options(**overrides: Any) -> rasterio.Env:
    """As `gdal_environment`, for use in threads: warning filters apply to the whole process."""
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
    """Open an IFD of a file as a rasterio dataset.

    Datasets never share GDAL's state (`sharing` is off).

    Args:
        path: the file.
        overview_level: open this overview. 0 is the largest.
        directory: 1-based number of the IFD.
        raw: return samples as stored. GDAL would convert inks and L*a*b* of bytes to RGB, without profile and alpha.
        own: open a separate handle, for another thread.

    Raises:
        rasterio.errors.RasterioIOError: GDAL's GTiff driver cannot open it.
    """
    key, cache = (path, overview_level, directory, raw), _cache.get()
    if cache is not None and not own and key in cache.datasets:
        yield cache.datasets[key]
        return
    extra: dict[str, Any] = {} if overview_level is None else {"OVERVIEW_LEVEL": overview_level}
    # The first IFD is opened by the file's name, since GDAL ignores overviews and mask if it is opened by number.
    # An absolute path begins with a slash, so that no file name is read as a GDAL prefix.
    name = str(path.absolute()) if directory == 1 else f"GTIFF_DIR:{directory}:{path.absolute()}"
    if raw:
        name = f"GTIFF_RAW:{name}"
    with ExitStack() as closing:
        dataset = _LazyCrsDataset(name, driver="GTiff", sharing=False, **extra)
        closing.enter_context(dataset)
        _find_overviews(dataset)
        clear_errors(dataset)
        small = dataset.width * dataset.height <= SMALL_SOURCE_PIXELS
        if cache is not None and not own and small and len(cache.datasets) < MAX_CACHED:
            cache.datasets[key] = dataset
            cache.closing.push(closing.pop_all())
        yield dataset


@contextmanager
def open_without_mask(path: Path, directory: int) -> Iterator[Any]:
    """Open an IFD of a file as a rasterio dataset without overviews and mask, even if it is the first.

    Raises:
        rasterio.errors.RasterioIOError: GDAL's GTiff driver cannot open it.
    """
    with _LazyCrsDataset(f"GTIFF_DIR:{directory}:{path.absolute()}", driver="GTiff", sharing=False) as dataset:
        clear_errors(dataset)
        yield dataset


@contextmanager
def open_bytes(content: bytes) -> Iterator[Any]:
    """Open a TIFF in memory, as `open_source` does files."""
    with MemoryFile(content) as memory, _LazyCrsDataset(memory.name, driver="GTiff", sharing=False) as dataset:
        yield dataset


@contextmanager
def cached_small_sources() -> Iterator[None]:
    """Open small pictures once within the block, and reuse them with their decoded blocks in GDAL's cache.

    Opening and reading again for the sample, the picture and the check is a fifth of a small job's time.
    """
    with ExitStack() as closing:
        token = _cache.set(_Cache(closing))
        try:
            yield
        finally:
            _cache.reset(token)
