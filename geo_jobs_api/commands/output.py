"""Output of commands: sentences, tables for people, JSON for programs. Any value may quote a hostile file."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from geo_jobs_api.fields import Model

ViewT = TypeVar("ViewT", bound=Model)
# Without a terminal no line is wrapped, for grep.
_WIDTH_OF_A_FILE = 1000


def sanitize(text: str) -> str:
    """Return the text on one line, without terminal control codes and changes of the writing direction."""
    return "".join("�" if unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"} else char for char in text)


def print_line(text: str, *, to_error: bool = False) -> None:
    """Print a sentence."""
    print(text, file=sys.stderr if to_error else sys.stdout, flush=True)


def print_json(value: object) -> None:
    """Print a value as JSON, in ASCII."""
    print_line(json.dumps(value, indent=2))


def print_result(sentence: str, result: Model | Mapping[str, object], *, as_json: bool) -> None:
    """Print the result of a command, as a sentence or as JSON."""
    if as_json:
        print_json(result.model_dump(mode="json", by_alias=True) if isinstance(result, Model) else result)
    else:
        print_line(sentence)


def print_object(view: Model, *, as_json: bool) -> None:
    """Print one object: a field per line, or JSON with the API's names."""
    values = view.model_dump(mode="json", by_alias=True)
    if as_json:
        print_json(values)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, json_value in zip(type(view).model_fields, values.values(), strict=True):
        value = getattr(view, name)
        table.add_row(name.replace("_", " "), _cell(json_value if isinstance(value, list | dict | Model) else value))
    _print_rich(table)


def print_table(views: Sequence[ViewT], columns: Mapping[str, Callable[[ViewT], object]], *, as_json: bool) -> None:
    """Print objects of one kind: a table, or a JSON list with the API's names.

    Args:
        views: objects as in the API's responses.
        columns: headings of the table, each with a function of a view.
        as_json: print JSON.
    """
    if as_json:
        print_json([view.model_dump(mode="json", by_alias=True) for view in views])
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title, value in columns.items():
        are_numbers = bool(views) and all(isinstance(value(view), int | float) for view in views)
        table.add_column(title, justify="right" if are_numbers else "left", overflow="fold")
    for view in views:
        table.add_row(*(_cell(value(view)) for value in columns.values()))
    _print_rich(table)


def _print_rich(table: Table) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    with console.capture() as captured:
        console.print(table)
    print_line("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _cell(value: object) -> Text:
    # A string would be parsed as markup.
    return Text(sanitize(_format_value(value)))


def _format_value(value: object) -> str:
    if value is None or value == "":
        return "-"
    for kind, words in _FORMATS.items():
        if isinstance(value, kind):
            return words(value)
    return str(value)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2g}"


# In order, since a bool is also an int.
_FORMATS: dict[type | tuple[type, ...], Callable[[Any], str]] = {
    bool: lambda value: "yes" if value else "no",
    float: _number,
    datetime: lambda value: f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
    (dict, list, tuple): lambda value: json.dumps(value, ensure_ascii=False, default=str),
}
