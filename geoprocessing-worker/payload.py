"""Typed options of a job, validated from its `inputPayload`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from geoprocessing_worker.errors import invalid_input


class Payload(BaseModel):
    """The options of one task type. Fields are in snake case here and in camel case in `inputPayload`.

    Subclasses declare fields with limits. Every field needs a default, since a payload may be empty.
    """

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", allow_inf_nan=False
    )

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any], defaults: Payload | None = None) -> Self:
        """Return the defaults, overridden by the job's `inputPayload`. Unknown keys and nulls are ignored.

        Raises:
            JobError: `invalid_payload`, with the name, value and limits of each invalid field.
        """
        given = {
            name: payload[field.alias]
            for name, field in cls.model_fields.items()
            if field.alias is not None and payload.get(field.alias) is not None
        }
        known = {} if defaults is None else defaults.model_dump()
        try:
            return cls.model_validate({**known, **given})
        except ValidationError as error:
            faults = [_fault(item, payload) for item in error.errors(include_url=False)]
            raise invalid_input(
                "invalid_payload", "The job's options cannot be used: " + "; ".join(faults) + "."
            ) from None

    def check(self) -> None:
        """Check rules that field types cannot express. Runs in the child process, before the work.

        Parsers such as PROJ belong here, not into field types, which the process with the token validates.

        Raises:
            JobError: unusable options, with a message for the user.
        """


def strict_number(value: Any) -> Any:
    """Validate that a value is a number, and neither a boolean nor a string."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("allowed: a number")  # noqa: TRY004 - pydantic turns only ValueError into a field's error
    return value


def _strict_boolean(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("allowed: true or false")  # noqa: TRY004 - as above
    return value


Boolean = Annotated[bool, BeforeValidator(_strict_boolean)]
"""A boolean only: pydantic would accept "no" and 0 as false."""


def _fault(item: Any, payload: Mapping[str, Any]) -> str:
    """Return a sentence about an invalid field: its name in the payload, its value and the rule."""
    name = to_camel(str(item["loc"][0])) if item["loc"] else "inputPayload"
    name = name if name in payload else str(item["loc"][0])
    given = repr(payload.get(name))
    rule = str(item["msg"]).removeprefix("Value error, ")
    return f"{name} was {given if len(given) <= 80 else given[:77] + '...'}: {rule}"
