"""Which bands are shown, and as what: decided from the header alone, with a sentence that says why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from geoprocessing_worker.errors import refused
from geoprocessing_worker.header import BandHeader, SourceHeader
from geoprocessing_worker.lab import is_lab


class Colour(StrEnum):
    """How the chosen bands become colour."""

    GRAY = "gray"
    RGB = "rgb"
    PALETTE = "palette"
    CMYK = "cmyk"
    LAB = "lab"


@dataclass(frozen=True, slots=True)
class BandChoice:
    """1-based `indexes` in display order, the alpha band if there is one, and why these.

    `true_colour`: the file itself says that these are red, green and blue. `alpha_top`: the value of the alpha band at
    which all is visible, as the sample found it.
    """

    indexes: tuple[int, ...]
    colour: Colour
    alpha: int | None
    reason: str
    true_colour: bool = False
    alpha_top: float = 255.0


# Descriptions under which band sets of satellites and drones name their visible bands: small letters and digits, with
# a blank for all else. Red edge, infra red, coastal blue and SuperDove's green I (at 531 nm) are bands of their own.
# MODIS counts its bands in an order of its own; Sentinel-2 and Landsat 8 agree on these three.
_NAMED: tuple[tuple[str, str, str], ...] = (
    (
        r"(?<!infra )(?<!far )\b(red|r)\b(?! edge)",
        r"\b(green|g)\b(?! i\b)",
        r"(?<!coastal )(?<!ultra )(?<!deep )\b(blue|b)\b",
    ),
    (r"\bsur refl b0?1\b", r"\bsur refl b0?4\b", r"\bsur refl b0?3\b"),
    (r"\bb0?4\b", r"\bb0?3\b", r"\bb0?2\b"),
)
_NEITHER_LETTER_NOR_DIGIT = re.compile(r"[\W_]+")


def choose_bands(header: SourceHeader, asked: tuple[int, ...] | None) -> BandChoice:
    """The bands to show.

    Raises:
        JobError: `invalid_payload` when the payload asks for bands that the file does not have.
    """
    alpha = next((band.index for band in header.bands if band.colorinterp == "alpha"), None)
    if asked is not None:
        return _asked(header, asked, alpha)
    data = [band for band in header.bands if band.index != alpha]
    if not data:
        return BandChoice((1,), Colour.GRAY, None, "the only band is marked as alpha and is shown as gray")
    if header.palette is not None:
        return BandChoice((1,), Colour.PALETTE, alpha, "band 1 has a colour table")
    told = _by_colour(header, data) or _by_description(data)
    indexes, colour, reason = told or _by_position(data)
    return BandChoice(indexes, colour, alpha, reason, true_colour=told is not None)


_Choice = tuple[tuple[int, ...], Colour, str]


def _asked(header: SourceHeader, asked: tuple[int, ...], alpha: int | None) -> BandChoice:
    absent = [index for index in asked if index > len(header.bands)]
    if absent:
        raise refused(
            "invalid_payload",
            f"The job asks for band {absent[0]}, but the file has {len(header.bands)}.",
            bands=len(header.bands),
        )
    if len(asked) in {2, 4}:
        return BandChoice(asked[:-1], _plain(len(asked) - 1), asked[-1], "asked for in the payload, the last as alpha")
    if asked == (1,) and header.palette is not None:
        return BandChoice(asked, Colour.PALETTE, alpha, "asked for in the payload; band 1 has a colour table")
    colours = {header.band(index).colorinterp for index in asked}
    told = colours == {"red", "green", "blue"}
    return BandChoice(asked, _plain(len(asked)), alpha, "asked for in the payload", true_colour=told)


def _plain(count: int) -> Colour:
    return Colour.RGB if count == 3 else Colour.GRAY


def _by_colour(header: SourceHeader, data: list[BandHeader]) -> _Choice | None:
    if is_lab(header.photometric) and len(data) >= 3:
        return (1, 2, 3), Colour.LAB, "by the file's colour space, L*a*b* turned into light"
    words = {band.colorinterp: band.index for band in reversed(data)}
    if {"red", "green", "blue"} <= words.keys():
        return (words["red"], words["green"], words["blue"]), Colour.RGB, "by the file's colour interpretation"
    if {"cyan", "magenta", "yellow", "black"} <= words.keys():
        inks = (words["cyan"], words["magenta"], words["yellow"], words["black"])
        return inks, Colour.CMYK, "by the file's colour interpretation, inks turned into light"
    return None


def _by_description(data: list[BandHeader]) -> _Choice | None:
    words = {band.index: _NEITHER_LETTER_NOR_DIGIT.sub(" ", band.description or "").strip().lower() for band in data}
    for patterns in _NAMED:
        found = [index for pattern in patterns if (index := _described(words, pattern)) is not None]
        if len(set(found)) == len(patterns):
            return tuple(found), Colour.RGB, "by the bands' descriptions"
    return None


def _described(words: Mapping[int, str], pattern: str) -> int | None:
    """The first band that is called nothing else, else the first that is called that among other words."""
    for matches in (re.fullmatch, re.search):
        for index, text in words.items():
            if matches(pattern, text):
                return index
    return None


def _by_position(data: list[BandHeader]) -> _Choice:
    first = data[:3]
    if len(first) == 3 and len({band.dtype for band in first}) == 1:
        reason = "the first three bands, since nothing in the file says which are red, green and blue"
        return tuple(band.index for band in first), Colour.RGB, reason
    reason = "the only band" if len(data) == 1 else "the first band, since nothing in the file says which to show"
    return (data[0].index,), Colour.GRAY, reason
