"""RenderOptions: valid payloads, and the message for invalid ones."""

from __future__ import annotations

from typing import Any

import pytest

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.render.options import OutputFormat, RenderOptions

NOT_BOOLEANS: list[Any] = ["no", "", 0, 1, []]
NUMBERS = ("maxSize", "quality", "page", "thumbnailSize", "bands")
DEFAULTS = RenderOptions(max_size=2000, quality=70)


def test_payload_overrides_defaults_and_leaves_the_rest() -> None:
    """Values of the payload override the defaults of the settings. The rest stays."""
    options = RenderOptions.from_payload({"maxSize": 512, "outputFormat": "jpg", "bands": [3, 2, 1]}, DEFAULTS)
    assert (options.max_size, options.output_format, options.bands) == (512, OutputFormat.JPEG, (3, 2, 1))
    assert (options.quality, options.thumbnail_size) == (70, 256)


def test_unknown_keys_and_nulls_are_ignored() -> None:
    """A payload of a newer client, or with nulls, gives the defaults."""
    assert RenderOptions.from_payload({"hologram": True, "quality": None, "max_size": 1}, DEFAULTS) == DEFAULTS


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"maxSize": 0}, ("maxSize was 0", "greater than or equal to 1")),
        ({"maxSize": 10**9}, ("maxSize was 1000000000", "16384")),
        ({"maxSize": "512"}, ("maxSize was '512'", "a number")),
        ({"maxSize": True}, ("maxSize was True", "a number")),
        ({"outputFormat": "gif"}, ("outputFormat was 'gif'", "png")),
        ({"bands": []}, ("bands was []",)),
        ({"bands": [0]}, ("bands was [0]",)),
        ({"bands": [1, 2, 3, 4, 5]}, ("bands",)),
        ({"stretch": "percentile:98,2"}, ("stretch", "lo < hi")),
        ({"stretch": "magic"}, ("stretch", "stddev:n")),
        ({"stretch": "range:0,1e400"}, ("stretch", "1e+300")),
        ({"stretch": "range:1e-320,2e-320"}, ("stretch", "1e-200")),
        ({"colormap": "nope"}, ("colormap", "viridis")),
        ({"resampling": "gauss"}, ("resampling", "lanczos")),
        ({"nodata": "black"}, ("nodata was 'black'",)),
        ({"nodata": float("nan")}, ("nodata", "finite")),
        ({"nodata": 10**400}, ("nodata", "finite")),
        ({"nodata": True}, ("nodata was True", "a number")),
        *(({"generateThumbnails": wrong}, ("generateThumbnails was", "true or false")) for wrong in NOT_BOOLEANS),
        *(({name: True}, (f"{name} was True",)) for name in NUMBERS),
        *(({name: "1"}, (f"{name} was '1'",)) for name in NUMBERS),
        ({"bands": [True]}, ("bands was [True]", "a number")),
        ({"thumbnailSize": 8}, ("thumbnailSize was 8", "16")),
        ({"quality": 101}, ("quality was 101", "100")),
        ({"maxSize": 0, "quality": 0}, ("maxSize", "quality")),
    ],
)
def test_refusal_names_field_value_and_rule(payload: dict[str, Any], words: tuple[str, ...]) -> None:
    """A field beyond its limits is refused with its payload name, its value and the limits."""
    with pytest.raises(JobError) as caught:
        RenderOptions.from_payload(payload, DEFAULTS)
    assert caught.value.code == "invalid_payload"
    for word in words:
        assert word in caught.value.message


def test_unknown_coordinate_system_is_its_own_refusal() -> None:
    """Only the check, in the child process, looks at the system."""
    options = RenderOptions.from_payload({"coordinateSystem": "EPSG:999999"}, DEFAULTS)
    with pytest.raises(JobError) as caught:
        options.check()
    assert caught.value.code == "bad_crs"


@pytest.mark.parametrize("text", ["native", "EPSG:3857", "NATIVE"])
def test_known_coordinate_systems_pass(text: str) -> None:
    """Codes and the word native are taken."""
    options = RenderOptions.from_payload({"coordinateSystem": text}, DEFAULTS)
    options.check()
    assert options.coordinate_system == text
