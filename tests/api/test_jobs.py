"""Domain rules."""

from __future__ import annotations

import json
import random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geo_jobs_api.queue.rules import (
    AttemptBudget,
    ErrorClass,
    JobState,
    LeaseToken,
    decide_failure,
    output_key,
    parse_outputs,
    safe_file_name,
    stem_of,
    upload_slots,
)


@pytest.mark.parametrize(
    ("given_name", "safe"),
    [
        ("map.tif", "map.tif"),
        ("../../etc/passwd", "passwd"),
        ("C:\\maps\\field 7.tiff", "field 7.tiff"),
        (".hidden.tif", "hidden.tif"),
        ("خريطة صنعاء.tif", "خريطة صنعاء.tif"),
        ("cafe\u0301.tif", "caf\u00e9.tif"),
        ("a<>|*b.tif", "a_b.tif"),
        ("a\u202efit.tif", "a_fit.tif"),
        ("a\r\nSet-Cookie: x.tif", "a_Set-Cookie_x.tif"),
        ("two  spaces.tif", "two_spaces.tif"),
        ("..", "upload"),
        ("", "upload"),
        (".tif", "tif"),
        ("no_extension", "no_extension"),
        ("x" * 300 + ".tif", "x" * 180 + ".tif"),
        ("ش" * 200 + ".tif", "ش" * 90 + ".tif"),
    ],
)
def test_file_names_become_one_harmless_component_and_keep_their_script(given_name: str, safe: str) -> None:
    """Paths, control characters and bidi marks are removed, Arabic stays, stems have at most 180 bytes."""
    assert safe_file_name(given_name) == safe


@given(st.text())
def test_any_name_becomes_a_usable_one_that_stays_as_it_is(name: str) -> None:
    """Any input becomes a single component, short enough for every sidecar, and a fixed point."""
    safe = safe_file_name(name)
    assert safe == safe_file_name(safe)
    assert safe not in {"", ".", ".."}
    assert not set(safe) & set("/\\\0\r\n\"'<>;")
    assert not safe.startswith(".")
    assert len(f"{stem_of(safe)}.png.aux.xml".encode()) <= 255


@pytest.mark.parametrize(
    ("error_class", "attempt", "state", "spends"),
    [
        (ErrorClass.TRANSIENT, 1, JobState.QUEUED, True),
        (ErrorClass.TRANSIENT, 5, JobState.FAILED, True),
        (ErrorClass.RESOURCE, 4, JobState.QUEUED, True),
        (ErrorClass.TIMEOUT, 1, JobState.QUEUED, True),
        (ErrorClass.TIMEOUT, 5, JobState.FAILED, True),
        (ErrorClass.INTERNAL, 1, JobState.QUEUED, True),
        (ErrorClass.INVALID_INPUT, 1, JobState.FAILED, True),
        (ErrorClass.INTERRUPTED, 5, JobState.QUEUED, False),
        (ErrorClass.CANCELLED, 1, JobState.CANCELLED, True),
    ],
)
def test_the_class_of_an_error_decides_about_a_retry(
    error_class: ErrorClass, attempt: int, state: JobState, spends: bool
) -> None:
    """Only transient classes are retried, and only while attempts are left. An interruption costs none."""
    decision = decide_failure(error_class, AttemptBudget(attempt, 5, [2, 10]), None, random.Random(1))
    assert (decision.next_state, decision.uses_attempt) == (state, spends)


def test_waits_are_jittered_below_their_ceiling_and_the_last_ceiling_repeats() -> None:
    """Full jitter: pauses spread over the whole interval of the attempt."""
    source = random.Random(7)
    for attempt, ceiling in ((1, 2), (2, 10), (3, 10), (4, 10)):
        budget = AttemptBudget(attempt, 5, [2, 10])
        waits = [decide_failure(ErrorClass.TRANSIENT, budget, None, source).delay_seconds for _ in range(300)]
        assert 0 <= min(waits) < 0.1 * ceiling
        assert 0.9 * ceiling < max(waits) <= ceiling


def test_a_worker_may_request_a_longer_pause_but_not_forever() -> None:
    """`retryAfterSeconds` counts if it is longer, up to a day. An interruption has no backoff."""
    budget = AttemptBudget(1, 5, [2])
    assert decide_failure(ErrorClass.TRANSIENT, budget, 30, random.Random(1)).delay_seconds == 30
    assert decide_failure(ErrorClass.TRANSIENT, budget, 1e12, random.Random(1)).delay_seconds == 86_400
    assert decide_failure(ErrorClass.INTERRUPTED, budget, None, random.Random(1)).delay_seconds == 0


@pytest.mark.parametrize(
    ("output_format", "suffixes"),
    [
        ("png", [".png", ".pgw", ".prj", ".png.aux.xml", "_thumb.png", ".json"]),
        ("jpg", [".jpg", ".jgw", ".prj", ".jpg.aux.xml", "_thumb.png", ".json"]),
        ("jpeg", [".jpg", ".jgw", ".prj", ".jpg.aux.xml", "_thumb.png", ".json"]),
        ("webp", [".webp", ".wpw", ".prj", ".webp.aux.xml", "_thumb.png", ".json"]),
        (None, [".png", ".pgw", ".prj", ".png.aux.xml", "_thumb.png", ".json"]),
        ("gif", [".prj", "_thumb.png", ".json"]),
    ],
)
def test_upload_slots_follow_the_output_format(output_format: object, suffixes: list[str]) -> None:
    """Each format has the names of image, world file and sidecar. An unknown format has none of them."""
    rules = [
        {"suffix": suffix, "contentType": "x/y", "maxBytes": 1, "formats": None if name is None else [name]}
        for name, suffix in [
            ("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp"), ("png", ".pgw"), ("jpeg", ".jgw"), ("webp", ".wpw"),
            (None, ".prj"), ("png", ".png.aux.xml"), ("jpeg", ".jpg.aux.xml"), ("webp", ".webp.aux.xml"),
            (None, "_thumb.png"), (None, ".json"),
        ]
    ]  # fmt: skip
    slots = parse_outputs(json.dumps(rules))
    assert [slot.suffix for slot in upload_slots(slots, {"outputFormat": output_format})] == suffixes


def test_lease_tokens_are_read_back_and_nothing_else_is() -> None:
    """A token survives the round trip. Malformed ones, and numbers beyond bigint, are rejected."""
    token = LeaseToken(12, "k_e-y")
    assert LeaseToken.parse(str(token)) == token
    for text in ("", "12", "12.", ".key", "-1.key", "\u0661.key", "1" * 19 + ".key"):
        assert LeaseToken.parse(text) is None


def test_output_keys_hold_the_lease_number_and_the_digest() -> None:
    """Two leases of a job never write the same object, and one lease never two contents to one key."""
    job = UUID(int=7)
    assert output_key(job, 1, "d" * 64, "a.png") != output_key(job, 2, "d" * 64, "a.png")
    assert output_key(job, 1, "d" * 64, "a.png") != output_key(job, 1, "e" * 64, "a.png")
