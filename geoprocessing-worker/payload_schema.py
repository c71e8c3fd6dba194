"""The JSON Schema of a task type's `inputPayload`, derived from its options."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from geoprocessing_worker.payload import Payload

IGNORE_CASE = "x-ignore-case"
"""A keyword beside `enum`: values are compared in lower case."""

AT_LEAST = "x-at-least"
"""A keyword with the name of another key, whose number is the minimum."""

ASCENDING = "x-ascending"
"""A keyword: the numbers in the string are in ascending order."""

CRS_FORMAT = "crs"
"""The `format` of a coordinate system. The API checks authority codes against its list."""


def payload_schema(payload: type[Payload], *, takes_file: bool) -> dict[str, Any]:
    """Return the schema of a payload.

    It has no defaults, since each worker's settings change them. Null is allowed for every key, and means no value.

    Args:
        payload: the options.
        takes_file: whether `sourceUrl` may name the job's file. The API reads that key itself.
    """
    schema = payload.model_json_schema(by_alias=True, schema_generator=_Plain)
    properties = {name: _or_null(each) for name, each in schema.get("properties", {}).items()}
    if takes_file:
        description = "address of the file, instead of an upload"
        properties["sourceUrl"] = {"type": ["string", "null"], "description": description}
    result: dict[str, Any] = {"type": "object", "properties": dict(sorted(properties.items()))}
    if payload.model_config.get("extra") != "allow":
        result["additionalProperties"] = False
    return result | ({"$defs": schema["$defs"]} if "$defs" in schema else {})


# pydantic uses its own names for limits if a validator is between them and the type.
_LIMITS = {
    "ge": "minimum",
    "le": "maximum",
    "gt": "exclusiveMinimum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
}


class _Plain(GenerateJsonSchema):
    """Omits titles, which repeat the names, and defaults. `null` is added to each key at the end."""

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        return {_LIMITS.get(name, name): value for name, value in super().generate_inner(schema).items()}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the base class's signature
        return False


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type")
    if "$ref" in schema or "anyOf" in schema or "oneOf" in schema or "allOf" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    changed = dict(schema)
    if isinstance(kind, str):
        changed["type"] = [kind, "null"]
    if "enum" in schema:
        changed["enum"] = [*schema["enum"], None]
    if "const" in schema:
        changed["enum"] = [changed.pop("const"), None]
    return changed
