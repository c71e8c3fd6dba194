"""Types of fields, checked once at the edge, and the base classes of all bodies."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails, PydanticCustomError

from geo_jobs_api.errors import FieldError, pointer_part
from geo_jobs_common.suggestions import describe_not_allowed, describe_unknown, nearest

_MAX_DEPTH = 32
_MAX_PAYLOAD_BYTES = 64 * 1024
_MAX_METADATA_BYTES = 256 * 1024
_MAX_DETAIL_BYTES = 16 * 1024
_MAX_UNKNOWN_KEYS = 20
_SECONDS = re.compile(r"[-+]?[\d.]+")
_QUOTED = re.compile(r"'([^']*)'")


def _check_text(text: str) -> str:
    # PostgreSQL's text type rejects NUL, and UTF-8 rejects lone surrogates.
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("must not contain NUL or unpaired surrogates")
    return text


def _check_secret(secret: SecretStr) -> SecretStr:
    _check_text(secret.get_secret_value())
    return secret


def _clean_text(text: object) -> object:
    """Replace characters that cannot be stored. Messages of workers may quote a hostile file."""
    if isinstance(text, str):
        return text.replace("\0", "�").encode(errors="replace").decode()
    return text


def _clean_json(value: object, depth: int = 0) -> object:
    """Return the details of a failure without values that cannot be stored. A hostile file must not block reports."""
    if isinstance(value, str):
        return _clean_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {_clean_text(key): _clean_json(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean_json(item, depth + 1) for item in value]
    return value


def _clean_detail(value: object) -> object:
    cleaned = _clean_json(value)
    size = len(json.dumps(cleaned))
    # Claims, events and lists repeat the details, and too many must not block the report.
    return cleaned if size <= _MAX_DETAIL_BYTES else {"omitted": f"{size} bytes of details"}


def _check_json(value: object, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"must not be nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must not contain NaN or Infinity, which are not JSON")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_json(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, depth + 1)


def _json_object(limit: int) -> AfterValidator:
    def check(value: dict[str, object]) -> dict[str, object]:
        _check_json(value)
        if len(json.dumps(value)) > limit:
            raise ValueError(f"must not be larger than {limit} bytes of JSON")
        return value

    return AfterValidator(check)


def _check_number(value: object) -> object:
    # By default, pydantic accepts true for 1 and "7" for 7, in contradiction to the OpenAPI document.
    if isinstance(value, bool | str):
        raise ValueError("must be a number")  # noqa: TRY004  # pydantic makes a refusal of a ValueError only
    return value


Integer = Annotated[int, BeforeValidator(_check_number)]
Real = Annotated[float, BeforeValidator(_check_number)]


# By default, pydantic accepts "no" and 0 for false.
Boolean = Annotated[bool, Strict()]


def _within_range(moment: datetime) -> datetime:
    # PostgreSQL and Python have wider ranges than the formats in which they exchange them.
    if not 1970 <= moment.year <= 9000:
        raise ValueError("must be between 1970 and 9000")
    return moment


def _check_text_of_moment(value: object) -> object:
    # By default, pydantic accepts 0 and "0" for 1970, in contradiction to the OpenAPI document.
    if isinstance(value, int | float) or (isinstance(value, str) and _SECONDS.fullmatch(value.strip())):
        raise ValueError("must be a time such as 2030-01-31T12:00:00Z")
    return value


Timestamp = Annotated[AwareDatetime, BeforeValidator(_check_text_of_moment), AfterValidator(_within_range)]
Text = Annotated[str, AfterValidator(_check_text), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})]
SecretText = Annotated[SecretStr, AfterValidator(_check_secret)]
ReportedText = Annotated[str, BeforeValidator(_clean_text)]
ReportedDetail = Annotated[Any, BeforeValidator(_clean_detail)]
Payload = Annotated[dict[str, object], _json_object(_MAX_PAYLOAD_BYTES)]
Metadata = Annotated[dict[str, object], _json_object(_MAX_METADATA_BYTES)]
Name = Annotated[Text, Field(min_length=1, max_length=200)]


class Model(BaseModel):
    """Base class: camelCase in JSON, snake_case in Python. Unknown fields are ignored, as the protocol requires."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    @classmethod
    def from_row(cls, row: Mapping[str, object]) -> Self:
        """Return the model of a row. The row may have further columns."""
        return cls.model_validate(row)


class StrictModel(Model):
    """Base class for people's requests. Unknown keys are rejected with the nearest known key, snake_case keys too."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def from_fields(cls, values: Mapping[str, object]) -> Self:
        """Return a model from values by their Python names."""
        return cls.model_validate({cls.model_fields[name].alias or name: value for name, value in values.items()})

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unexpected = [key for key in value if isinstance(key, str) and key not in known]
        if unexpected:
            raise ValidationError.from_exception_data(
                cls.__name__, [_unknown_key(key, value[key], known) for key in unexpected[:_MAX_UNKNOWN_KEYS]]
            )
        return value


def _unknown_key(key: str, value: object, known: list[str]) -> InitErrorDetails:
    context = {"message": describe_unknown("key", key, known), "nearest": nearest(key, known), "allowed": tuple(known)}
    return InitErrorDetails(type=PydanticCustomError("unknown_key", "{message}", context), loc=(key,), input=value)


# Readers of these messages write JSON, not Python.
_PLAIN = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type", "dataclass_type"), "must be a JSON object"),
    **dict.fromkeys(("list_type", "tuple_type"), "must be a JSON list"),
    **dict.fromkeys(
        ("datetime_parsing", "datetime_from_date_parsing", "timezone_aware"),
        "must be a time with its zone, such as 2030-01-31T12:00:00Z",
    ),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "missing": "is missing",
    "string_type": "must be text",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "must be a number"),
    **dict.fromkeys(("uuid_type", "uuid_parsing"), "must be an id such as 01890000-0000-7000-8000-000000000000"),
}
_LIMITS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_LENGTHS = {
    "too_short": ("min_length", "at least"),
    "too_long": ("max_length", "at most"),
    "string_too_short": ("min_length", "at least"),
    "string_too_long": ("max_length", "at most"),
}


def _message(item: Mapping[str, Any]) -> str:
    """Return why a value is invalid, in words independent of the validator."""
    kind, context = item["type"], item.get("ctx") or {}
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"must be {words} {context[name]}"
    if kind in _LENGTHS:
        name, words = _LENGTHS[kind]
        number = context[name]
        unit = "item" if isinstance(item.get("input"), list | tuple | set) else "character"
        return f"must have {words} {number} {unit}{'' if number == 1 else 's'}"
    return _PLAIN.get(kind) or str(item["msg"]).removeprefix("Value error, ")


def union_tag(name: str) -> str:
    """Return the tag of one model of a union. It is no step of a JSON pointer."""
    return f"({name})"


def field_errors(items: Iterable[Mapping[str, Any]]) -> list[FieldError]:
    """Return the invalid places found by pydantic."""
    return [_field_error(item) for item in items]


def _field_error(item: Mapping[str, Any]) -> FieldError:
    context = item.get("ctx") or {}
    if item["type"] == "json_invalid":
        return FieldError("", f"The body is not JSON: {context.get('error', item['msg'])}")
    place = [
        part for part in item["loc"] if not (isinstance(part, str) and part.startswith("(") and part.endswith(")"))
    ]
    pointer, message = "".join(map(pointer_part, place)), _message(item)
    if item["type"] == "unknown_key":
        return FieldError(pointer, message, context["nearest"], context["allowed"])
    if item["type"] in {"literal_error", "enum"}:
        allowed = tuple(_QUOTED.findall(str(context.get("expected"))))
        text, near = describe_not_allowed(item.get("input"), allowed)
        return FieldError(pointer, text, near, allowed)
    return FieldError(pointer, message)
