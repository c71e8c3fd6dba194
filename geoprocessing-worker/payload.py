"""What a job may ask for: typed options, read from its `inputPayload` at the edge, each fault refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from geoprocessing_worker.errors import invalid_input


class Payload(BaseModel):
    """The options of one kind of job. Fields are snake case here and camel case in the job's `inputPayload`.

    A subclass declares its fields with their limits; every field needs a default, since a payload may be empty.
    """

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", allow_inf_nan=False
    )

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any], defaults: Payload | None = None) -> Self:
        """The defaults, overridden by the job's `inputPayload`; unknown keys and nulls are ignored.

        Raises:
            JobError: `invalid_payload`, naming each field, what was given and what is allowed.
        """
        asked = {
            name: payload[field.alias]
            for name, field in cls.model_fields.items()
            if field.alias is not None and payload.get(field.alias) is not None
        }
        known = {} if defaults is None else defaults.model_dump()
        try:
            return cls.model_validate({**known, **asked})
        except ValidationError as error:
            faults = [_fault(item, payload) for item in error.errors(include_url=False)]
            raise invalid_input(
                "invalid_payload", "The job's options cannot be used: " + "; ".join(faults) + "."
            ) from None

    def check(self) -> None:
        """Check the rules that the types of fields do not express. Runs in the job's child process, before the work.

        The process with the token validates types of fields: parsers such as PROJ belong here.

        Raises:
            JobError: the options cannot be used, in words for the person who gave them.
        """


def strict_number(value: Any) -> Any:
    """A validator before others: neither a truth value nor a text passes for a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("allowed: a number")  # noqa: TRY004 - pydantic turns only ValueError into a field's error
    return value


def _strict_boolean(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError("allowed: true or false")  # noqa: TRY004 - as above
    return value


Boolean = Annotated[bool, BeforeValidator(_strict_boolean)]
"""Neither a text nor a number passes for a truth value: pydantic would take "no" and 0 for false."""


def _fault(item: Any, payload: Mapping[str, Any]) -> str:
    """One field's trouble in a sentence: its name in the payload, the value given, the rule that it breaks."""
    name = to_camel(str(item["loc"][0])) if item["loc"] else "inputPayload"
    name = name if name in payload else str(item["loc"][0])
    given = repr(payload.get(name))
    rule = str(item["msg"]).removeprefix("Value error, ")
    return f"{name} was {given if len(given) <= 80 else given[:77] + '...'}: {rule}"
