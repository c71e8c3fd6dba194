"""Named refusals: which error of GDAL, libvips or the machine means what to the person who uploaded the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyvips
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from geoprocessing_worker.compression import Codec, codec_in, unsupported
from geoprocessing_worker.errors import ErrorClass, JobError, malformed, refused


class Symptom(NamedTuple):
    """A pattern in a library's own words, and the refusal that it stands for."""

    pattern: re.Pattern[str]
    code: str
    message: str


def _symptom(pattern: str, code: str, message: str) -> Symptom:
    return Symptom(re.compile(pattern, re.IGNORECASE), code, message)


# The first match wins, so the narrow patterns stand above the wide ones.
SYMPTOMS: tuple[Symptom, ...] = (
    _symptom(
        r"not recognized as being in a supported file format|not a TIFF|bad magic|does not exist in the file system",
        "not_a_tiff",
        "This file is not a TIFF. Export it as GeoTIFF and upload it again.",
    ),
    _symptom(
        r"compression (scheme|method)|\bcodec\b|WEBP.*not (configured|supported)|cannot open.*compression|"
        r"unsupported (JPEG (data precision|process)|marker type)",
        "unsupported_compression",
        "The file is compressed in a way that cannot be read here. Save it with DEFLATE, LZW or ZSTD.",
    ),
    _symptom(
        r"not enough data|cannot read \d+ bytes at offset|cannot read TIFF header|failed to read directory|read error|"
        r"end of file|unexpected EOF|short read|IO error during reading",
        "truncated",
        "The file ends before its picture does: it was not copied or uploaded whole. Upload it again.",
    ),
    _symptom(
        r"can ?not handle|unsupported (data|sample)|bits ?(per ?|/)sample|sample format|photometric|"
        r"no.*color.*conversion",
        "unsupported_data_type",
        "The file stores its pixels in a form that cannot be read here. Save it as an 8, 16 or 32 bit GeoTIFF.",
    ),
    _symptom(
        r"out of memory|cannot allocate|memory allocation|too much memory",
        "out_of_memory",
        "There was not enough memory for this file.",
    ),
)

CORRUPT = (
    "Part of the picture in this file is damaged and cannot be decoded. Save it again from the program that made it."
)


@contextmanager
def named_errors(source: Path) -> Iterator[None]:
    """What GDAL, libvips or the machine raise over a file leaves the block as a `JobError`."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, pyvips.Error, MemoryError) as error:
        raise named(error, codec_in(source)) from error
    except UnicodeDecodeError as error:
        # rasterio takes all texts of GDAL's for UTF-8, also those that a damaged file left half of.
        raise malformed("a text in it cannot be read", reason=error.reason) from error


def named(error: BaseException, codec: Codec | None = None) -> JobError:
    """The refusal that a library's error stands for; a damaged file if nothing says otherwise.

    `codec` is the file's: where it is none that is read here, no words of a library mean anything else. rasterio
    hides GDAL's words in the chain of causes, so the whole chain is read.
    """
    if isinstance(error, JobError):
        return error
    if isinstance(error, pyvips.Error) and not SYMPTOMS[-1].pattern.search(_words(error)):
        # libvips never touches the uploaded file, so this is no fault of the file's.
        return JobError(
            "render_failed", "The picture could not be made.", ErrorClass.INTERNAL, {"reason": _words(error)}
        )
    if isinstance(error, MemoryError):
        return _with_class("out_of_memory", SYMPTOMS[-1].message, _words(error))
    words = _words(error)
    if codec is not None and not codec.read:
        return unsupported(codec, reason=words)
    for symptom in SYMPTOMS:
        if symptom.pattern.search(words):
            return _with_class(symptom.code, symptom.message, words, codec)
    return refused("corrupt_block", CORRUPT, reason=words)


def _with_class(code: str, message: str, words: str, codec: Codec | None = None) -> JobError:
    if code == "unsupported_compression" and codec is not None:
        return unsupported(codec, reason=words)
    kind = ErrorClass.RESOURCE if code == "out_of_memory" else ErrorClass.INVALID_INPUT
    return JobError(code, message, kind, {"reason": words})


def _words(error: BaseException) -> str:
    """All messages of a chain of errors, without the folder that the file lay in."""
    seen: list[str] = []
    link: BaseException | None = error
    while link is not None and len(seen) < 8:
        text = str(link).strip()
        if text and text not in seen:
            seen.append(text)
        link = link.__cause__ or link.__context__
    return re.sub(r"(?<![\w.])/(?:[^\s/'\":]+/)+", "", "; ".join(seen))[:600]
