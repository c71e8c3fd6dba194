"""The output of commands."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from geo_jobs_api.commands.output import print_object, print_table
from geo_jobs_api.fields import Model

HOSTILE = "[red]map[/red]\x1b[2J\u202etif\nnext"


class Sheet(Model):
    """A model to print."""

    file_name: str
    size_bytes: int | None
    made_at: datetime


SHEET = Sheet(file_name=HOSTILE, size_bytes=None, made_at=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))


def test_a_table_replaces_terminal_control_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """Markup is text, escapes and direction marks are replaced, and a row is one line of any length."""
    long = SHEET.model_copy(update={"file_name": "x" * 500})
    print_table(
        [SHEET, long], {"FILE": lambda sheet: sheet.file_name, "SIZE": lambda sheet: sheet.size_bytes}, as_json=False
    )
    told = capsys.readouterr().out
    head, first, second = told.splitlines()
    assert head.split() == ["FILE", "SIZE"]
    assert first.split() == ["[red]map[/red]�[2J�tif�next", "-"]
    assert second.split() == ["x" * 500, "-"]


def test_json_has_the_names_of_the_api_and_nothing_but_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON equals the API's response."""
    print_table([SHEET], {}, as_json=True)
    told = capsys.readouterr().out
    assert told.isascii()
    assert "\x1b" not in told
    assert json.loads(told) == [{"fileName": HOSTILE, "sizeBytes": None, "madeAt": "2030-01-02T03:04:05Z"}]


def test_one_object_is_shown_field_by_field(capsys: pytest.CaptureFixture[str]) -> None:
    """Times in UTC, missing values as a dash."""
    print_object(SHEET, as_json=False)
    lines = [line.rstrip().split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [["size", "bytes", "-"], ["made", "at", "2030-01-02 03:04:05"]]
