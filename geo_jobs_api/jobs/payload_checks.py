"""Checks of new jobs against their task types: existence, payload, media type."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from geo_jobs_api.errors import FieldError, Problem, pointer_part, summary
from geo_jobs_api.jobs.creation_store import CreationStore
from geo_jobs_api.queue.rules import UploadSlot, known_formats, output_format, parse_outputs, upload_slots
from geo_jobs_api.task_types.payload_schemas import find_errors
from geo_jobs_api.task_types.schemas import builtin_rules
from geo_jobs_common.suggestions import describe_not_allowed, describe_unknown, nearest


@dataclass(frozen=True, slots=True)
class RequestedJob:
    """A requested job. `pointer`: its place in the request."""

    pointer: str
    task_type: str
    payload: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """A requested output of a parent. `pointer`: its place in the request."""

    pointer: str
    output: str
    task_type: str
    payload: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class TaskRules:
    """Rules of a task type for its jobs. `payload_schema` and `output_rules` are JSON text."""

    input: str
    payload_schema: str | None
    input_types: Sequence[str] | None
    output_rules: str


async def find_rules(creation: CreationStore, names: Iterable[str]) -> dict[str, TaskRules]:
    """Return the rules of the existing task types."""
    rows = await creation.find_task_types(names)
    return {
        name: TaskRules(
            row["input_rule"],
            row["payload_schema"] or _builtin_schema(name),
            row["input_types"] or builtin_rules().get(name, {}).get("inputTypes"),
            row["output_rules"],
        )
        for name, row in rows.items()
    }


@cache
def _builtin_schema(name: str) -> str | None:
    schema = builtin_rules().get(name, {}).get("payloadSchema")
    return None if schema is None else json.dumps(schema)


async def check_payloads(creation: CreationStore, asked: Sequence[RequestedJob]) -> Mapping[str, TaskRules]:
    """Check each payload against its type's schema and output formats. Return the rules of all types.

    Raises:
        Problem: `unknown_task_type`, `validation`.
    """
    rules = await find_rules(creation, (job.task_type for job in asked))
    for job in asked:
        if job.task_type not in rules:
            raise await unknown_task_type(creation, job.task_type, f"{job.pointer}/taskType")
    # A thousand payloads would block the event loop, and for one payload a thread costs too much.
    errors = _errors_of(asked, rules) if len(asked) == 1 else await asyncio.to_thread(_errors_of, asked, rules)
    if errors:
        raise Problem("validation", summary(errors), errors=errors[:100])
    return rules


def _errors_of(asked: Sequence[RequestedJob], rules: Mapping[str, TaskRules]) -> list[FieldError]:
    errors: list[FieldError] = []
    for job in asked:
        place, schema = f"{job.pointer}/inputPayload", rules[job.task_type].payload_schema
        found = [] if schema is None else find_errors(schema, job.payload, place)
        errors += [_add_other_types(job.task_type, place, error) for error in found]
        if not found and job.payload.get("outputFormat") is not None:
            errors += _format_errors(parse_outputs(rules[job.task_type].output_rules), job.payload, place)
    return errors


def _format_errors(outputs: Sequence[UploadSlot], payload: Mapping[str, object], place: str) -> list[FieldError]:
    formats = known_formats(outputs)
    if not formats or output_format(payload) in formats:
        return []
    message, near = describe_not_allowed(payload["outputFormat"], sorted(formats))
    return [FieldError(f"{place}/outputFormat", message, nearest=near, allowed=tuple(sorted(formats)))]


async def check_outputs(creation: CreationStore, asked: Sequence[RequestedOutput]) -> None:
    """Check that the parents can produce these outputs: suffixes of the parent's task type, or names with one.

    Raises:
        Problem: `validation`.
    """
    if not asked:
        return
    rows = await creation.find_task_types(one.task_type for one in asked)
    errors = []
    for one in asked:
        if one.task_type not in rows:
            continue
        slots = upload_slots(parse_outputs(rows[one.task_type]["output_rules"]), one.payload)
        suffixes = tuple(slot.suffix for slot in slots)
        if not one.output.endswith(suffixes):
            message = describe_unknown("output", one.output, suffixes, list_all=False)
            made = f"{one.task_type} has {', '.join(suffixes)}." if suffixes else f"{one.task_type} has no outputs."
            near = nearest(one.output, suffixes)
            errors.append(FieldError(one.pointer, f"{message} {made}", nearest=near, allowed=suffixes))
    if errors:
        raise Problem("validation", summary(errors), errors=errors[:100])


def _add_other_types(task_type: str, place: str, error: FieldError) -> FieldError:
    """Return the error. For a key of another built-in type, add the types that accept it."""
    key = error.unknown_key
    if key is None or error.pointer != place + pointer_part(key):
        return error  # No unknown key, or a nested one.
    others = _builtin_keys().get(key, ())
    if not others:
        return error
    known = ", ".join(map(str, error.allowed))
    message = f"{key!r} is not for {task_type}. It is for {', '.join(others)}. Known here: {known}."
    return FieldError(error.pointer, message, allowed=error.allowed)


@cache
def _builtin_keys() -> Mapping[str, tuple[str, ...]]:
    """Return the payload keys of all built-in task types, each with the types that accept it."""
    keys: dict[str, tuple[str, ...]] = {}
    for name, rules in sorted(builtin_rules().items()):
        for key in rules.get("payloadSchema", {}).get("properties", {}):
            keys[key] = (*keys.get(key, ()), name)
    return keys


async def unknown_task_type(creation: CreationStore, name: str, pointer: str) -> Problem:
    """Return the problem of an unknown task type, with the nearest known one."""
    known = sorted(await creation.list_task_type_names())
    message = describe_unknown("task type", name, known)
    error = FieldError(pointer, message, nearest=nearest(name, known), allowed=tuple(known))
    return Problem("unknown_task_type", message, errors=[error])


def check_file_type(rules: TaskRules, file_type: str) -> None:
    """Check a media type against the task type. Parameters, case and an empty type are ignored.

    Raises:
        Problem: `validation`.
    """
    plain = file_type.partition(";")[0].strip().lower()
    if rules.input_types is None or not plain or plain in {known.lower() for known in rules.input_types}:
        return
    more = f" and {len(rules.input_types) - 1} more" if len(rules.input_types) > 1 else ""
    message = f"Files of the type {plain!r} are not accepted. Allowed: {rules.input_types[0]}{more}."
    error = FieldError(
        "/fileType", message, nearest=nearest(plain, rules.input_types), allowed=tuple(rules.input_types)
    )
    raise Problem("validation", f"/fileType: {message}", errors=[error])
