"""Colormaps for single-band data, from `cmap`: those of matplotlib, ColorBrewer, cmocean and Crameri."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geoprocessing_worker.raster import U8  # imports the raster libraries, which options must not

# By the catalog's collections: a name alone can mean several colormaps. Listed here, so that checking a payload does
# not import `cmap`, and an update of it changes no payload schema.
COLLECTIONS = {
    "matplotlib": "viridis magma inferno plasma coolwarm bwr seismic terrain gist_earth gist_heat gist_rainbow "
    "nipy_spectral cmrmap brg",
    "matlab": "gray jet hot bone copper cool hsv spring summer autumn winter pink",
    "google": "turbo",
    "cividis": "cividis",
    "cubehelix": "cubehelix",
    "gnuplot": "afmhot ocean rainbow gnuplot gnuplot2",
    "colorbrewer": "blues greens greys oranges purples reds bugn bupu gnbu orrd pubu pubugn purd rdpu ylgn ylgnbu "
    "ylorbr ylorrd brbg piyg prgn puor rdbu rdgy rdylbu rdylgn spectral",
    "cmocean": "thermal haline solar ice deep dense algae matter turbid speed amp tempo rain phase topo balance delta "
    "curl diff tarn",
    "crameri": "batlow hawaii oslo davos lapaz tokyo lajolla bilbao acton turku devon imola bamako nuuk lipari navia "
    "buda glasgow roma vik broc cork berlin lisbon tofino vanimo managua bam oleron bukavu fes",
}
_COLLECTION_OF = {name: collection for collection, names in COLLECTIONS.items() for name in names.split()}
NAMES = frozenset(_COLLECTION_OF) | {f"{name}_r" for name in _COLLECTION_OF}


def color_table(name: str) -> U8:
    """Return the (256, 3) red, green and blue of a colormap. A name that ends in `_r` is the colormap reversed."""
    from cmap import Colormap  # noqa: PLC0415 - see above

    plain = name.removesuffix("_r")
    table: U8 = (Colormap(f"{_COLLECTION_OF[plain]}:{plain}").lut(256)[:, :3] * 255).round().astype("uint8")
    return table[::-1] if name.endswith("_r") else table
