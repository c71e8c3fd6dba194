"""Maps errors of GDAL, OpenCV and the host to job errors with a code and a remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from geoprocessing_worker.errors import ErrorClass, JobError, invalid_input, malformed
from geoprocessing_worker.tiff.compression import Codec, codec_in, unsupported


class Symptom(NamedTuple):
    """A pattern in a library's message, and the code and message of the job error."""

    pattern: re.Pattern[str]
    code: str
    message: str


def _symptom(pattern: str, code: str, message: str) -> Symptom:
    return Symptom(re.compile(pattern, re.IGNORECASE), code, message)


CORRUPT = (
    "Part of the picture in this file is damaged and cannot be decoded. Save it again from the program that made it."
)
UNKNOWN = "A library failed with an unknown error. This is a fault of the worker, not of the file."

OUT_OF_MEMORY = _symptom(
    r"out of memory|insufficient memory|cannot allocate|memory allocation|too much memory",
    "out_of_memory",
    "There was not enough memory for this file.",
)

# A message of libtiff 4.7 begins with the function that found the damage: a decoder, or the reader of IFDs.
DECODERS = (
    r"IReadBlock failed|TIFFRead(Encoded|Raw)(Strip|Tile)|TIFFFill(Strip|Tile)|"
    # Deflate, fax, JPEG, LERC, LogLuv, LZMA, LZW, PackBits, predictors, WebP, ZSTD.
    r"ZIPDecode|inflat|libdeflate|incorrect (header|data) check|invalid (block|code|distance|stored|literal)|"
    r"Fax(3|4)|bad code word|premature EO|"
    r"JPEG(Lib|PreDecode|Decode|SetupDecode|FixupTags)|libjpeg|JPEG (strip|compressed|data|marker)|"
    r"lerc_|LERC\w*Decode|LogLuv|SGILog|LZMA\w*Decode|LZWDecode|LZWPreDecode|PackBitsDecode|Predictor\w*Decode|"
    r"horAcc|fpAcc|WebP\w*Decode|WebPGetInfo|WebP data|ZSTD\w*Decode|ZSTD_decompress|\bcorrupt"
)
DIRECTORIES = (
    r"MissingRequired:|Requested directory \d+ not found|EstimateStripByteCounts:|ChopUpSingleUncompressedStrip:|"
    r"TIFF directory|"
    r"TIFF(Fetch|ReadDir|ReadCustomDir|Advance|ClientOpen|VSetField|VStrip|VTile|NumberOf|Scanline|Strip|Tile|Raster|"
    r"SetDirectory|SetSubDirectory|CheckRead|Start|Default)\w*:"
)

# Errors of encoders and of writing are never the fault of the uploaded file.
WRITING = re.compile(
    r"\w*(Setup|Pre|Post)Encode\w*:|when compressing|TIFF(Append|Write|Flush|Rewrite)\w*:|tiffWriteProc|Write error",
    re.IGNORECASE,
)
NO_ROOM = re.compile(r"no space left on device", re.IGNORECASE)

# The first match wins, so narrow patterns precede wide ones.
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
    OUT_OF_MEMORY,
    _symptom(
        r"appropriate zoom level",
        "not_georeferenced",
        "The pixels of this file are too small or too large on Earth for web tiles. Omit webOptimized.",
    ),
    _symptom(
        r"failed to transform|outside of tile matrix|cannot find coordinate operations|"
        r"unable to compute a transformation",
        "not_georeferenced",
        "The coordinate system of this file cannot be transformed to the requested one. Choose another one.",
    ),
    _symptom(DECODERS, "corrupt_block", CORRUPT),
    _symptom(
        DIRECTORIES,
        "malformed_header",
        "The file's header is damaged: a library cannot read it. Save it again with a GIS and upload that.",
    ),
)


@contextmanager
def named_errors(source: Path) -> Iterator[None]:
    """Convert errors of GDAL, OpenCV and the host within the block to `JobError`."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, cv2.error, MemoryError) as error:
        raise named(error, codec_in(source)) from error
    except UnicodeDecodeError as error:
        # rasterio decodes all texts of GDAL as UTF-8, including those cut off in a damaged file.
        raise malformed("a text in it cannot be read", reason=error.reason) from error


def corrupt(reason: str) -> JobError:
    """Return the error for a damaged picture."""
    return invalid_input("corrupt_block", CORRUPT, reason=reason)


def named(error: BaseException, codec: Codec | None = None) -> JobError:
    """Return the job error for a library's error, or `internal_error` if the file is not known to be at fault.

    An unsupported `codec` of the file explains any message. rasterio hides GDAL's messages in the chain of causes, so
    the whole chain is read.
    """
    if isinstance(error, JobError):
        return error
    if isinstance(error, cv2.error) and not OUT_OF_MEMORY.pattern.search(_messages(error)):
        # OpenCV never reads the uploaded file, so the file is not at fault.
        return JobError(
            "render_failed", "The picture could not be made.", ErrorClass.INTERNAL, {"reason": _messages(error)}
        )
    if isinstance(error, MemoryError):
        return _with_class("out_of_memory", OUT_OF_MEMORY.message, _messages(error))
    return _by_message(_messages(error), codec)


def _by_message(reason: str, codec: Codec | None) -> JobError:
    if codec is not None and not codec.read:
        return unsupported(codec, reason=reason)
    if NO_ROOM.search(reason):
        return JobError("disk_full", "The worker has no room for the result.", ErrorClass.TRANSIENT, {"reason": reason})
    for symptom in SYMPTOMS if WRITING.search(reason) is None else ():
        if symptom.pattern.search(reason):
            return _with_class(symptom.code, symptom.message, reason, codec)
    return JobError("internal_error", UNKNOWN, ErrorClass.INTERNAL, {"reason": reason})


def _with_class(code: str, message: str, reason: str, codec: Codec | None = None) -> JobError:
    if code == "unsupported_compression" and codec is not None:
        return unsupported(codec, reason=reason)
    kind = ErrorClass.RESOURCE if code == "out_of_memory" else ErrorClass.INVALID_INPUT
    return JobError(code, message, kind, {"reason": reason})


def _messages(error: BaseException) -> str:
    """Return all messages of a chain of errors, without folder names."""
    seen: list[str] = []
    link: BaseException | None = error
    while link is not None and len(seen) < 8:
        text = str(link).strip()
        if text and text not in seen:
            seen.append(text)
        link = link.__cause__ or link.__context__
    return re.sub(r"(?<![\w.])/(?:[^\s/'\":]+/)+", "", "; ".join(seen))[:600]
