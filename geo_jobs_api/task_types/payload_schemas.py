"""JSON Schemas of payloads: allowed schemas, and readable errors of payloads."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jsonschema_rs

from geo_jobs_api.errors import FieldError, pointer_part
from geo_jobs_api.task_types.crs_codes import is_possible_crs
from geo_jobs_common import suggestions

# Validation follows each reference anew, so nested references multiply.
_MAX_SUBSCHEMAS = 5000
_LARGEST_BYTES = 64 * 1024
_MAX_ERRORS = 20
# Expressions run in linear time, and compiled ones stay small.
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20)
_IGNORE_CASE = "x-ignore-case"
_AT_LEAST = "x-at-least"
_ASCENDING = "x-ascending"
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_NICKNAMES = {"wgs84": "EPSG:4326", "crs84": "OGC:CRS84", "webmercator": "EPSG:3857", "pseudomercator": "EPSG:3857"}
_REFERENCES = frozenset({"$dynamicRef", "$recursiveRef", "$id", "$anchor", "$dynamicAnchor"})
_OF_TEXT = (jsonschema_rs.ValidationErrorKind.Format, jsonschema_rs.ValidationErrorKind.Pattern)
_TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "object": "an object",
    "string": "text",
}


def check_schema(schema: Mapping[str, Any]) -> None:
    """Check that a schema is valid and cheap to apply.

    Raises:
        ValueError: it is no JSON Schema, too large, recursive, or refers to another document.
    """
    text = json.dumps(schema)
    if len(text) > _LARGEST_BYTES:
        raise ValueError(f"must not be larger than {_LARGEST_BYTES} bytes of JSON")
    _count(schema, schema, ())
    try:
        _Compiled(text)
    except jsonschema_rs.ValidationError as error:
        place = "".join(f"/{part}" for part in error.instance_path)
        raise ValueError(
            f"is not a JSON Schema (draft 2020-12): {place} {suggestions.shorten(error.message)}"
        ) from error


def find_errors(schema: str, payload: Mapping[str, object], pointer: str) -> list[FieldError]:
    """Return the errors of a payload, each with its place.

    Args:
        schema: checked JSON text.
        payload: nested at most 32 levels deep.
        pointer: place of the payload in the request.
    """
    compiled = _compiled(schema)
    found: list[FieldError] = []
    typed: set[str] = set()
    for error in _types_first(compiled.validator.iter_errors(_fold_case(compiled.rules, payload))):
        place = "".join(map(pointer_part, error.instance_path))
        if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Type):
            typed.add(place)
        elif place in typed:
            continue  # A value of the wrong type breaks other rules too.
        found += _explain_error(compiled.rules, error, pointer)
        if len(found) >= _MAX_ERRORS:
            break
    # A text may break two rules of one kind.
    return list(dict.fromkeys(found)) or list(_order_errors(compiled.rules, payload, pointer))


def _types_first(errors: Iterable[jsonschema_rs.ValidationError]) -> list[jsonschema_rs.ValidationError]:
    first = itertools.islice(errors, 10 * _MAX_ERRORS)
    return sorted(first, key=lambda error: not isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Type))


class _Compiled:
    def __init__(self, schema: str) -> None:
        self.rules: dict[str, Any] = json.loads(schema)
        self.validator = jsonschema_rs.Draft202012Validator(
            self.rules,
            formats={"crs": is_possible_crs},
            validate_formats=True,
            offline=True,
            pattern_options=_PATTERNS,
        )


@lru_cache(maxsize=256)
def _compiled(schema: str) -> _Compiled:
    return _Compiled(schema)


def _count(schema: Any, root: Mapping[str, Any], open_references: tuple[str, ...], seen: int = 0) -> int:
    """Count the subschemas, with each reference followed. ValueError when there are too many."""
    seen += 1
    if seen > _MAX_SUBSCHEMAS:
        raise ValueError(f"has more than {_MAX_SUBSCHEMAS} subschemas, with each reference followed")
    if isinstance(schema, list):
        for item in schema:
            seen = _count(item, root, open_references, seen)
    elif isinstance(schema, dict):
        for name, item in schema.items():
            if name in _REFERENCES and isinstance(item, str):
                raise ValueError(f"must not have {name}")
            if name == "$ref" and isinstance(item, str):
                seen = _follow(item, root, open_references, seen)
            elif name != "$defs" or schema is not root:
                seen = _count(item, root, open_references, seen)
    return seen


def _follow(reference: str, root: Mapping[str, Any], open_references: tuple[str, ...], seen: int) -> int:
    if reference in open_references:
        raise ValueError(f"must not refer to itself ({reference})")
    if not reference.startswith("#/") or "%" in reference:
        raise ValueError(
            f"must refer only to its own parts, such as #/$defs/name, not to {suggestions.shorten(reference)}"
        )
    target: Any = root
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        target = target.get(key) if isinstance(target, dict) else None
    if not isinstance(target, dict | bool):
        raise ValueError(f"refers to {suggestions.shorten(reference)}, which is not a schema")  # noqa: TRY004 - pydantic's
    return _count(target, root, (*open_references, reference), seen)


def _fold_case(schema: Mapping[str, Any], payload: Mapping[str, object]) -> dict[str, object]:
    """Return the payload in lower case where the schema has case-insensitive names."""
    properties = _properties(schema)
    return {
        name: value.lower() if isinstance(value, str) and _rules_of(properties, name).get(_IGNORE_CASE) else value
        for name, value in payload.items()
    }


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _rules_of(properties: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    rules = properties.get(name)
    return rules if isinstance(rules, dict) else {}


def _explain_error(
    schema: Mapping[str, Any], error: jsonschema_rs.ValidationError, pointer: str
) -> Iterable[FieldError]:
    place = pointer + "".join(map(pointer_part, error.instance_path))
    kind, value = error.kind, error.instance
    rules = _parent(schema, error.schema_path)
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
        known = sorted(_properties(rules))
        for name in kind.unexpected:
            yield FieldError(
                place + pointer_part(name),
                suggestions.describe_unknown("key", name, known),
                nearest=suggestions.nearest(name, known),
                allowed=tuple(known),
                unknown_key=name,
            )
    elif isinstance(kind, jsonschema_rs.ValidationErrorKind.Enum):
        allowed = tuple(option for option in kind.options if isinstance(option, str | int | float))
        message, near = suggestions.describe_not_allowed(value, allowed)
        yield FieldError(place, message, nearest=near, allowed=allowed)
    elif isinstance(kind, jsonschema_rs.ValidationErrorKind.Type):
        yield FieldError(place, _wrong_type(kind.types, value, rules))
    elif isinstance(kind, _OF_TEXT) and rules.get("format") == "crs":
        yield FieldError(place, _unknown_crs(value, rules))
    elif isinstance(kind, jsonschema_rs.ValidationErrorKind.Pattern) and "description" in rules:
        yield FieldError(place, f"{suggestions.shorten_json(value)} is not allowed. Allowed: {rules['description']}.")
    else:
        yield FieldError(place, f"{suggestions.shorten(error.message)}.")


def _order_errors(schema: Mapping[str, Any], payload: Mapping[str, object], pointer: str) -> Iterable[FieldError]:
    """Yield errors beyond JSON Schema: pairs of numbers in the wrong order."""
    properties = _properties(schema)
    for name, value in payload.items():
        limit = _rules_of(properties, name).get(_AT_LEAST)
        least = payload.get(limit) if isinstance(limit, str) else None
        if isinstance(value, int | float) and isinstance(least, int | float) and value < least:
            yield FieldError(pointer + pointer_part(name), f"{name} {value} is less than {limit} {least}.")
        if isinstance(value, str) and _rules_of(properties, name).get(_ASCENDING) is True:
            numbers = [float(number) for number in _NUMBER.findall(value)]
            if any(second <= first for first, second in itertools.pairwise(numbers)):
                yield FieldError(
                    pointer + pointer_part(name), f"{suggestions.shorten_json(value)} must have ascending numbers."
                )


def _parent(schema: Mapping[str, Any], path: Sequence[str | int]) -> Mapping[str, Any]:
    """Return the schema around a keyword. Empty where it cannot be followed, as through a reference."""
    here: Any = schema
    for part in path[:-1]:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            return {}
    return here if isinstance(here, dict) else {}


def _wrong_type(types: Sequence[str], value: object, rules: Mapping[str, Any]) -> str:
    wanted = " or ".join(_TYPES.get(name, name) for name in types if name != "null")
    choices = [option for option in rules.get("enum", ()) if option is not None]
    wanted += f", one of {', '.join(map(str, choices))}" if choices else ""
    number = isinstance(value, int) and not isinstance(value, bool)
    hint = f" Did you mean 'EPSG:{value}'?" if number and rules.get("format") == "crs" else ""
    return f"{suggestions.shorten_json(value)} is not allowed. It must be {wanted}.{hint}"


def _unknown_crs(value: object, rules: Mapping[str, Any]) -> str:
    meant = _meant_crs(str(value))
    hint = "" if meant is None else f" Did you mean {meant!r}?"
    allowed = rules.get("description", "an authority's code such as EPSG:4326, WKT or PROJJSON")
    return f"Unknown coordinate system {suggestions.shorten_json(value)}.{hint} Give {allowed}."


def _meant_crs(text: str) -> str | None:
    plain = re.sub(r"[\W_]", "", text.lower())
    code = re.fullmatch(r"(?:epsg|epgs|espg|esri)?(\d{4,6})", plain)
    authority = "ESRI" if plain.startswith("esri") else "EPSG"
    if code is not None and is_possible_crs(f"{authority}:{code[1]}"):
        return f"{authority}:{code[1]}"
    return _NICKNAMES.get(plain)
