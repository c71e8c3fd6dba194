"""Choose the bands to show, and as what, from the header alone. Each choice has its reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from geoprocessing_worker.color.alpha import Role
from geoprocessing_worker.color.band_names import are_measurements, is_not_alpha, words_of
from geoprocessing_worker.color.lab import is_lab
from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.raster import BandHeader, SourceHeader


class Color(StrEnum):
    """How the chosen bands become color."""

    GRAY = "gray"
    RGB = "rgb"
    PALETTE = "palette"
    CMYK = "cmyk"
    LAB = "lab"


@dataclass(frozen=True, slots=True)
class BandChoice:
    """1-based `indexes` in display order, the alpha band if there is one, and the reason.

    `true_color`: the file declares these as red, green and blue. `by_position`: nothing in the file declares them.
    `alpha_asked`: the job names the alpha band. The sample finds `alpha_role`, and `alpha_top`, the value at
    which a pixel is fully visible. `premultiplied`: colors are stored multiplied by alpha. `not_opacity`: declared
    alpha bands that hold data.
    """

    indexes: tuple[int, ...]
    color: Color
    alpha: int | None
    reason: str
    true_color: bool = False
    by_position: bool = False
    alpha_asked: bool = False
    alpha_role: Role = Role.OPACITY
    alpha_top: float = 255.0
    premultiplied: bool = False
    not_opacity: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


# Descriptions under which band sets of satellites and drones name their visible bands, as `words_of` returns them.
# Red edge, infra red, coastal blue and SuperDove's green I (at 531 nm) are bands of their own. MODIS numbers its bands
# in an order of its own. Sentinel-2 and Landsat 8 agree on B4, B3 and B2.
_NAMED: tuple[tuple[str, str, str], ...] = (
    (
        r"(?<!infra )(?<!far )\b(red|r)\b(?! edge)",
        r"\b(green|g)\b(?! i\b)",
        r"(?<!coastal )(?<!ultra )(?<!deep )\b(blue|b)\b",
    ),
    (r"\bsur refl b0?1\b", r"\bsur refl b0?4\b", r"\bsur refl b0?3\b"),
    (r"\bb0?4\b", r"\bb0?3\b", r"\bb0?2\b"),
    (r"\brot\b", r"\b(grun|gruen)\b", r"\bblau\b"),
    (r"(?<!infra )\brouge\b", r"\bvert\b", r"\bbleu\b"),
    (r"\brojo\b", r"\bverde\b", r"\bazul\b"),
    (r"\bvermelho\b", r"\bverde\b", r"\bazul\b"),
    (r"\brosso\b", r"\bverde\b", r"\bblu\b"),
    (r"\brood\b", r"\bgroen\b", r"\bblauw\b"),
    (r"\brod\b", r"\bgron\b", r"\bbla\b"),
    (r"\bczerwony\b", r"\bzielony\b", r"\bniebieski\b"),
    (r"\bpunainen\b", r"\bvihrea\b", r"\bsininen\b"),
    (r"\bcervena\b", r"\bzelena\b", r"\bmodra\b"),
    (r"\bkirmizi\b", r"\byesil\b", r"\bmavi\b"),
    (r"\bкрасныи\b", r"\bзеленыи\b", r"\bсинии\b"),  # noqa: RUF001 - Russian
    (r"[红赤]", r"[绿緑]", r"[蓝青]"),
    (r"\bاحمر\b", r"\bاخضر\b", r"\bازرق\b"),  # noqa: RUF001 - Arabic
)
_COLORS = 3


def called_alpha(header: SourceHeader) -> list[BandHeader]:
    """Return the declared alpha bands, except complex ones and those with a contrary description."""
    called = [band for band in header.bands if band.colorinterp == "alpha" and not band.dtype.startswith("complex")]
    return [band for band in called if not is_not_alpha(band.description)]


def choose_bands(header: SourceHeader, asked: tuple[int, ...] | None) -> BandChoice:
    """Choose the bands to show.

    Raises:
        JobError: `invalid_payload` when the payload asks for bands that the file does not have.
    """
    called = called_alpha(header)
    alpha = called[-1].index if called else None
    if asked is not None:
        return _asked(header, asked, alpha)
    data = [band for band in header.bands if band.index != alpha]
    if not data:
        return BandChoice((1,), Color.GRAY, None, "the only band is marked as alpha and is shown as gray")
    if header.palette is not None:
        return BandChoice((1,), Color.PALETTE, alpha, "band 1 has a color table")
    misnamed = [band for band in header.bands if band.colorinterp == "alpha" and is_not_alpha(band.description)]
    notes = tuple(
        f"band {band.index} is called alpha, but named {band.description}: it hides nothing" for band in misnamed
    )
    return replace(_chosen(header, data), alpha=alpha, not_opacity=tuple(band.index for band in misnamed), notes=notes)


def _chosen(header: SourceHeader, data: list[BandHeader]) -> BandChoice:
    declared = _by_color(header, data)
    known = declared or _by_description(data)
    first = [header.band(index) for index in known[0]] if known else data[:_COLORS]
    may_be_gray = known is None or (known is declared and known[1] is Color.RGB)
    if len(first) == _COLORS and may_be_gray and (unlike := _unlike(first, declared=declared is not None)):
        return BandChoice((data[0].index,), Color.GRAY, None, f"the first band alone, since {unlike}")
    if known:
        return BandChoice(*known[:2], None, known[2], true_color=True)
    return _by_position(data)


def _unlike(bands: list[BandHeader], *, declared: bool) -> str | None:
    """Return why three bands cannot be the colors of one picture. `None` if they can."""
    names = [band.description for band in bands]
    if are_measurements(names, declared=declared):
        return f"the bands' names are no colors: {', '.join(name or 'no name' for name in names)}"
    units = [band.unit for band in bands if band.unit]
    if not declared and len(set(units)) > 1:
        return f"the bands' units differ: {', '.join(units)}"
    return None


def first_alone(choice: BandChoice, why: str) -> BandChoice:
    """Return the first band in gray, instead of three."""
    reason = f"the first band alone, since {why}"
    return replace(choice, indexes=choice.indexes[:1], color=Color.GRAY, reason=reason, by_position=False)


_Choice = tuple[tuple[int, ...], Color, str]


def _asked(header: SourceHeader, asked: tuple[int, ...], alpha: int | None) -> BandChoice:
    absent = [index for index in asked if index > len(header.bands)]
    if absent:
        raise invalid_input(
            "invalid_payload",
            f"The job asks for band {absent[0]}, but the file has {len(header.bands)}.",
            bands=len(header.bands),
        )
    if len(asked) in {2, 4}:
        reason = "asked for in the payload, the last as alpha"
        return BandChoice(asked[:-1], _plain(len(asked) - 1), asked[-1], reason, alpha_asked=True)
    alpha = None if alpha in asked else alpha
    if asked == (1,) and header.palette is not None:
        return BandChoice(asked, Color.PALETTE, alpha, "asked for in the payload; band 1 has a color table")
    colors = {header.band(index).colorinterp for index in asked}
    true_color = colors == {"red", "green", "blue"}
    unlike = _unlike([header.band(index) for index in asked], declared=true_color) if len(asked) == _COLORS else None
    notes = () if unlike is None else (f"one stretch for three bands, though {unlike}",)
    return BandChoice(asked, _plain(len(asked)), alpha, "asked for in the payload", true_color=true_color, notes=notes)


def _plain(count: int) -> Color:
    return Color.RGB if count == 3 else Color.GRAY


def _by_color(header: SourceHeader, data: list[BandHeader]) -> _Choice | None:
    if is_lab(header.photometric) and len(data) >= 3:
        return (1, 2, 3), Color.LAB, "by the file's color space, L*a*b* turned into light"
    words = {band.colorinterp: band.index for band in reversed(data)}
    if {"red", "green", "blue"} <= words.keys():
        return (words["red"], words["green"], words["blue"]), Color.RGB, "by the file's color interpretation"
    if {"cyan", "magenta", "yellow", "black"} <= words.keys():
        inks = (words["cyan"], words["magenta"], words["yellow"], words["black"])
        return inks, Color.CMYK, "by the file's color interpretation, inks turned into light"
    return None


def _by_description(data: list[BandHeader]) -> _Choice | None:
    words = {band.index: words_of(band.description) for band in data}
    for patterns in _NAMED:
        found = [index for pattern in patterns if (index := _described(words, pattern)) is not None]
        if len(set(found)) == len(patterns):
            return tuple(found), Color.RGB, "by the bands' descriptions"
    return None


def _described(words: Mapping[int, str], pattern: str) -> int | None:
    """Return the first band that has no other name, else the first with this name among other words."""
    for matches in (re.fullmatch, re.search):
        for index, text in words.items():
            if matches(pattern, text):
                return index
    return None


def _by_position(data: list[BandHeader]) -> BandChoice:
    first = data[:_COLORS]
    if len(first) == _COLORS and len({band.dtype for band in first}) == 1:
        reason = "the first three bands, since the file does not declare red, green and blue"
        return BandChoice(tuple(band.index for band in first), Color.RGB, None, reason, by_position=True)
    reason = "the only band" if len(data) == 1 else "the first band, since the file does not declare which to show"
    return BandChoice((data[0].index,), Color.GRAY, None, reason)
