"""The accepted forms of a CRS as text, and a check that it names no file, made before PROJ parses it.

PROJ opens the grids that a text names. WKT and PROJJSON can embed PROJ strings as an extension, a remark, or a method
name.
"""

from __future__ import annotations

import json
import re
from typing import Any

NATIVE = "native"
"""The keyword for the file's own CRS."""

# For schemas: the beginning of each form. They accept slightly more than `crs.parse_crs`.
CODE_PATTERN = r"(?:urn:ogc:def:crs:)?[A-Za-z]{2,10}:(?:[\d.]*:)?[A-Za-z0-9]{1,12}\s*$"
WKT_PATTERN = r"[A-Za-z_]+\s*\["
PROJJSON_PATTERN = r"\{"
PROJ_PATTERN = r"\+proj="

_NAMES = (
    "adams_hemi adams_ws1 adams_ws2 aea aeqd airy aitoff alsk apian august bacon bertin1953 bipc boggs bonne "
    "calcofi cass cc ccon cea chamb collg comill crast denoy eck1 eck2 eck3 eck4 eck5 eck6 eqc eqdc eqearth "
    "etmerc euler fahey fouc fouc_s gall geos gins8 gn_sinu gnom goode gs48 gs50 gstmerc guyou hammer hatano "
    "healpix igh igh_o imoll imoll_o imw_p isea kav5 kav7 krovak labrd laea lagrng larr lask latlon latlong lcc "
    "lcca leac lee_os longlat lonlat loxim lsat mbt_fps mbt_s mbtfpp mbtfpq mbtfps merc mil_os mill misrsom "
    "mod_krovak moll murd1 murd2 murd3 natearth natearth2 nell nell_h nicol nsper nzmg ob_tran ocea oea omerc "
    "ortel ortho patterson pconic peirce_q poly putp1 putp2 putp3 putp3p putp4p putp5 putp5p putp6 putp6p qsc "
    "qua_aut rhealpix robin rouss rpoly s2 sch sinu somerc stere sterea tcc tcea times tissot tmerc tobmerc tpeqd "
    "tpers ups urm5 urmfps utm vandg vandg2 vandg3 vandg4 vitk1 wag1 wag2 wag3 wag4 wag5 wag6 wag7 webmerc weren "
    "wink1 wink2 wintri"
)
PROJECTIONS = frozenset(_NAMES.split())
"""PROJ's map projections. Its other operations read grids and models, or chain such steps."""

# The grid of this name is built in: no shift. GDAL writes it for Web Mercator.
_NO_GRID = re.compile(r'\bnadgrids\s*=\s*@?null(?![^\s"])|"PROJ4_GRIDS"\s*,\s*"@?null"', re.IGNORECASE)
# In WKT and PROJJSON a method called "PROJ <operation> <parameters>" is a PROJ string as well.
_OPERATION = re.compile(
    r"""(?:proj\s*=\s*|(?:(?:METHOD|PROJECTION)\s*[\[(]|"name"\s*:)\s*["“]\s*PROJ\s+)([^\s"'“”\])},]*)""", re.IGNORECASE
)
_FILES = re.compile(r"grids\s*=|PROJ4_GRIDS|PARAMETERFILE|PROJ-based|\binit\s*=", re.IGNORECASE)
_GRID_NAME = re.compile(r'(PARAMETERFILE\s*[\[(]\s*"[^"]*"\s*,\s*)"([^"]*)"', re.IGNORECASE)
_NAD_GRIDS = re.compile(r'\bnadgrids\s*=\s*([^\s"]+)', re.IGNORECASE)
_GEOID_GRIDS = re.compile(r'\+?\bgeoidgrids\s*=\s*[^\s"]+', re.IGNORECASE)


def names_file(text: str) -> bool:
    """Whether WKT, PROJJSON or a PROJ string makes PROJ open a file: a grid, a model, or the target of `+init`."""
    rest = _NO_GRID.sub("", text)
    if _FILES.search(rest):
        return True
    return any(found[1].lower() not in PROJECTIONS for found in _OPERATION.finditer(rest))


def json_names_file(content: Any) -> bool:
    """Whether parsed PROJJSON names a file."""
    # Dumped again, since escapes hide words in the original.
    return has_text_value(content) or names_file(json.dumps(content, ensure_ascii=False))


def has_text_value(content: Any) -> bool:
    """Whether PROJJSON has a parameter with a text value, which is the name of a file."""
    if isinstance(content, dict):
        return isinstance(content.get("value"), str) or any(map(has_text_value, content.values()))
    return isinstance(content, list) and any(map(has_text_value, content))


def grid_names(text: str) -> tuple[str, ...]:
    """Return the grids of datum or height shifts in WKT."""
    named = [found[2] for found in _GRID_NAME.finditer(text)] + [found[1] for found in _NAD_GRIDS.finditer(text)]
    return tuple(name for name in named if name != "@null")


def without_grid_names(text: str) -> str | None:
    """Return WKT without names of grids, or `None` if it names files in other ways.

    Grids of PROJ strings become the null grid. Those of bound CRSs stay, without a name.
    """
    text = _NAD_GRIDS.sub("nadgrids=@null", _GEOID_GRIDS.sub("", text))
    return None if names_file(_GRID_NAME.sub("", text)) else _GRID_NAME.sub(r'\1"none"', text)
