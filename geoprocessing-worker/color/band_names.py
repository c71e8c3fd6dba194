"""The meaning of band descriptions: light, a measurement, opacity, or nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from enum import StrEnum


class Kind(StrEnum):
    """The meaning of one band's description. `UNKNOWN` has words that none of the lists has."""

    NOTHING = "nothing"
    LIGHT = "light"
    MEASUREMENT = "measurement"
    OPACITY = "opacity"
    UNKNOWN = "unknown"


_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NEITHER_LETTER_NOR_DIGIT = re.compile(r"[\W_]+")
_DIGITS = re.compile(r"\d+")
_FILE_NAME = re.compile(r"[/\\]|\.(tiff?|jp2|img|png|jpe?g|vrt|dat|bil|bsq|asc|hdf|nc|ecw|sid|bin)\b", re.IGNORECASE)
_NUMBERED = re.compile(r"b\d+[a-z]?|\d+(nm|um)")
_LONGEST = 60  # characters: longer descriptions are histories and paths


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NOTHING = _words("""
    band bands bande banda bandas kanal kanaal channel channels canal canale chan ch layer layers couche capa ebene
    laag strato raster rasterband image images img bild imagen picture grid sample samples component components comp
    untitled unnamed unknown undefined none null nan data dataset value values file contents not specified page slice
    number no nr of the and input output float byte int uint warp resize stack mosaic ortho orthophoto orthomosaic
    tile scene composite scaled corrected first second third fourth last one two three four
""")

_LIGHT = _words("""
    red green blue r g b rgb bgr rot grun gruen blau rouge vert bleu rojo verde azul vermelho rosso blu rood groen
    blauw czerwony zielony niebieski rod gron bla gul punainen vihrea sininen kirmizi yesil mavi cervena zelena modra
    красныи зеленыи синии 红 绿 蓝 赤 緑 青 احمر اخضر ازرق
    cyan magenta yellow black white orange violet purple gray grey grau gris pan panchromatic panchro nir vnir swir mir
    tir lwir mwir infrared infrarot infrarouge infrarrojo infrarosso infravermelho infra ir irc cir pir edge rededge
    coastal aerosol ultra visible vis near far shortwave thermal cirrus reflectance radiance luminance rho toa boa
    spectral multispectral wavelength nm um nanometers nanometer micrometers micrometer hh hv vh vv sigma gamma beta
    rrs luma chroma cb cr
""")

_INFRARED = _words(
    "nir vnir swir mir tir lwir infrared infrarot infrarouge infrarrojo infrarosso infravermelho infra ir irc cir pir "
    "edge rededge thermal"
)

_QUALIFIERS = _words("mean median min max minimum maximum average avg percentile")

_OPACITY = _words("""
    alpha opacity opaque transparency transparent transparenz transparence transparencia deckkraft opacite opacidad
    rgba mask maske masque mascara valid validity a
""")

_MEASUREMENT = _words("""
    elevation elevations elev elevacion elevacao height heights altitude altitud altezza hohe hoehe hauteur altura
    dem dsm dtm dhm chm ndsm hillshade depth depths tiefe profondeur profundidad bathymetry bathymetrie batimetria
    topography uncertainty uncertainties error errors rmse residual std stdev stddev variance deviation contributor
    count counts counter density densities anzahl frequency temperature temperatures temp temperatur temperatura lst sst
    humidity feuchte humedad humidite pressure druck presion pression precipitation precip niederschlag rain rainfall
    snow ice swe wind speed direction gust wave waves swell tide current currents slope slopes neigung pente pendiente
    aspect exposition roughness rugosity tri tpi twi curvature distance distances population ndvi evi savi ndwi mndwi
    ndmi nbr ndbi ndsi lai fpar fapar fcover gpp npp biomass agb carbon soil moisture ph clay sand silt nitrogen
    organic class classes classification klasse landcover landuse lulc quality qa qc bqa flag flags status cloud clouds
    cloudiness shadow probability probabilities prob confidence score weight weights index indices intensity amplitude
    returns date dates doy day days month year years hour hours angle angles incidence zenith azimuth phase coherence
    displacement velocity deformation vx vy latitude longitude lat lon thickness salinity concentration chlorophyll
    turbidity ozone albedo emissivity radiation irradiance insolation flux evaporation evapotranspiration runoff
    discharge vegetation canopy fraction area volume cost risk hazard susceptibility sinr snr noise entropy
    anomaly trend hue saturation geoid gravity magnetic magnetics potassium thorium uranium
""")


def words_of(description: str | None) -> str:
    """Return a description as lowercase words without accents, separated by blanks."""
    apart = _CAMEL_CASE.sub(" ", description or "")
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", apart) if not unicodedata.combining(letter))
    return _NEITHER_LETTER_NOR_DIGIT.sub(" ", plain).strip().lower()


def kind_of(description: str | None) -> Kind:
    """Return the meaning of a description. "red uncertainty", a measurement of light, is a measurement."""
    words = {word if _NUMBERED.fullmatch(word) else word.rstrip("0123456789") for word in words_of(description).split()}
    words = {word for word in words if word and word not in _NOTHING}
    if words & _OPACITY and not words & _MEASUREMENT:
        return Kind.OPACITY
    if words & _MEASUREMENT:
        return Kind.MEASUREMENT
    if words & _LIGHT or any(_NUMBERED.fullmatch(word) for word in words):
        return Kind.LIGHT
    if words & _QUALIFIERS:
        return Kind.MEASUREMENT
    if all(len(word) == 1 and word.isascii() for word in words):
        return Kind.NOTHING
    named_after_file = _FILE_NAME.search(description or "") or len(description or "") > _LONGEST
    return Kind.NOTHING if named_after_file else Kind.UNKNOWN


def are_measurements(descriptions: Sequence[str | None], *, declared: bool) -> bool:
    """Whether bands cannot be the colors of one picture.

    `declared`: the file declares them as red, green and blue, as GDAL does by default for three bands of bytes. Then
    only unambiguous names of measurements count, and only if they distinguish the bands.
    """
    kinds = [kind_of(description) for description in descriptions]
    texts = {_DIGITS.sub("", words_of(description)) for description in descriptions}
    if declared:
        return Kind.MEASUREMENT in kinds and Kind.LIGHT not in kinds and len(texts) > 1
    return Kind.MEASUREMENT in kinds or (Kind.UNKNOWN in kinds and Kind.LIGHT not in kinds and len(texts) > 1)


def is_not_alpha(description: str | None) -> bool:
    """Whether a band is named as infrared or as a measurement, and not as opacity."""
    kind = kind_of(description)
    infrared = kind is Kind.LIGHT and bool(_INFRARED & set(words_of(description).split()))
    return infrared or kind is Kind.MEASUREMENT
