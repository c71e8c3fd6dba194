"""Requests for schedules: timing, template, decisions."""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import cache
from typing import Annotated
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, TypeAdapter, model_validator

from geo_jobs_api.fields import Boolean, Integer, Model, Name, StrictModel, Timestamp, union_tag
from geo_jobs_api.jobs.creation_schemas import DedupKey, JobTemplate
from geo_jobs_api.pipelines.schemas import CreatePipeline
from geo_jobs_api.schedules.cron import Timing, check_cron, join_cron
from geo_jobs_api.schedules.records import FireOutcome, Overlap, Schedule, ScheduleBase
from geo_jobs_common.suggestions import nearest, shorten_json

# Rule times of a schedule, which are moments a day. Each costs the scheduler 20 µs per fire.
_MAX_RULE_TIMES = 48
_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_DAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_DAY_NAMES = frozenset(
    {*_DAYS, "sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"}
    | {"tues", "weds", "thur", "thurs"}
)


@cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _check_zone(name: str) -> str:
    try:
        _zone(name)
    except (ValueError, OSError, LookupError) as error:
        near = nearest(name, available_timezones())
        hint = "" if near is None else f". Did you mean {near!r}?"
        raise ValueError(f"{name!r} is not a time zone. Use a name such as Europe/Berlin or UTC{hint}") from error
    return name


def _check_time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError(f"{text!r} is not a time of day. Use the form 06:30")
    return text


def _check_day(day: object) -> object:
    if isinstance(day, str):
        known = day.lower() in _DAY_NAMES
    else:
        known = isinstance(day, int | float) and not isinstance(day, bool) and day in range(8)
    if not known:
        near = nearest(day, _DAY_NAMES) if isinstance(day, str) else None
        hint = "Use mon, tue, …, or 0 (sun) to 7 (sun)" if near is None else f"Did you mean {near!r}?"
        raise ValueError(f"{shorten_json(day)} is not a day of the week. {hint}")
    return day


class Rule(StrictModel):
    """Times of day on some days of the week. Without days: all."""

    times: list[Annotated[str, AfterValidator(_check_time)]] = Field(min_length=1, max_length=48)
    days_of_week: list[Annotated[str | int, BeforeValidator(_check_day)]] = Field(default_factory=list, max_length=8)

    def crons(self) -> list[str]:
        """Return the rule as cron expressions."""
        days = [day % 7 if isinstance(day, int) else _DAYS[day.lower()[:3]] for day in self.days_of_week]
        return [join_cron(int(time[:2]), int(time[3:]), days) for time in self.times]


class ScheduleTiming(StrictModel):
    """One of `cron`, `at` and `rules`. `timeZone` applies to cron and rules."""

    cron: Annotated[str, Field(max_length=200), AfterValidator(check_cron)] | None = None
    at: Timestamp | None = None
    rules: Annotated[list[Rule], Field(min_length=1, max_length=20)] | None = None
    time_zone: Annotated[str, Field(max_length=64), AfterValidator(_check_zone)] = "UTC"

    @model_validator(mode="after")
    def _is_one(self) -> ScheduleTiming:
        if [self.cron, self.at, self.rules].count(None) != 2:
            raise ValueError("must have exactly one of cron, at and rules")
        return self

    def timing(self, start_at: datetime | None, end_at: datetime | None) -> Timing:
        """Return the fire times."""
        crons = [self.cron] if self.cron is not None else [cron for rule in self.rules or () for cron in rule.crons()]
        return Timing(tuple(dict.fromkeys(crons)), _zone(self.time_zone), self.at, start_at, end_at)


class ScheduledJob(JobTemplate):
    """The job of each fire. Its results are announced `notifyAfterSeconds` after the moment of the fire."""

    dedup_key: DedupKey | None = None
    notify_after_seconds: Integer | None = Field(default=None, ge=0, le=31 * 86_400)


def _kind_of_template(value: object) -> str:
    is_pipeline = isinstance(value, CreatePipeline) or (isinstance(value, dict) and "stages" in value)
    return union_tag("pipeline" if is_pipeline else "job")


# With a discriminator, since errors of a plain union are reported for each member.
Template = Annotated[
    Annotated[ScheduledJob, Tag(union_tag("job"))] | Annotated[CreatePipeline, Tag(union_tag("pipeline"))],
    Discriminator(_kind_of_template),
]
_template_adapter: TypeAdapter[ScheduledJob | CreatePipeline] = TypeAdapter(Template)


def parse_template(text: str) -> ScheduledJob | CreatePipeline:
    """Return the stored template."""
    return _template_adapter.validate_python(json.loads(text))


class PutSchedule(ScheduleTiming):
    """A schedule. `catchUp`: maximum number of missed fires to make up for, the latest ones."""

    name: Name
    template: Template
    catch_up: Integer = Field(default=1, ge=0, le=10_000)
    overlap: Overlap = "skip"
    jitter_seconds: Integer = Field(default=0, ge=0, le=86_400)
    start_at: Timestamp | None = None
    end_at: Timestamp | None = None
    skip_unchanged: Boolean = False
    paused: Boolean = False

    @model_validator(mode="after")
    def _check_combination(self) -> PutSchedule:
        if self.start_at is not None and self.end_at is not None and self.end_at < self.start_at:
            raise ValueError("endAt is before startAt")
        times = sum(len(rule.times) for rule in self.rules or ())
        if times > _MAX_RULE_TIMES:
            raise ValueError(
                f"rules have {times} times, more than the limit of {_MAX_RULE_TIMES}. "
                "Use cron for regular times, such as */10 * * * *, or several schedules"
            )
        if self.skip_unchanged and not isinstance(self.template, ScheduledJob):
            raise ValueError("skipUnchanged requires a template of one job")
        return self


class ScheduleFire(Model):
    """The decision for one moment: `created`, `overlap`, `missed` or `failed` (with the reason)."""

    fire_time: datetime
    outcome: FireOutcome
    manual: bool
    job_id: UUID | None
    pipeline_id: UUID | None
    error: str | None
    decided_at: datetime


class FirePage(Model):
    """Decisions, latest first."""

    fires: list[ScheduleFire]


class FireFilter(StrictModel):
    """Number of the latest decisions to list."""

    limit: int = Field(default=50, ge=1, le=500)


class ScheduleView(ScheduleBase):
    """A schedule. `nextRunAt` is null while it is paused and when it is over. `upcoming` begins with it."""

    cron: str | None
    at: datetime | None
    rules: list[Rule] | None
    time_zone: str
    template: dict[str, object]

    @classmethod
    def of(cls, schedule: Schedule) -> ScheduleView:
        """Return the view of a record."""
        when = ScheduleTiming.model_validate(schedule.timing)
        same = {name: getattr(schedule, name) for name in ScheduleBase.model_fields}
        timing = {"cron": when.cron, "at": when.at, "rules": when.rules, "time_zone": when.time_zone}
        return cls(**same, **timing, template=json.loads(schedule.template))


def schedule_json(schedule: Schedule) -> bytes:
    """Return the view as JSON, without decoding the template."""
    view = ScheduleView.of(schedule.model_copy(update={"template": "{}"}))
    text = view.model_dump_json(by_alias=True, exclude={"template"})
    return f'{text[:-1]},"template":{schedule.template}}}'.encode()


class SchedulePage(Model):
    """Schedules, oldest first. `next` is the cursor of the following page."""

    schedules: list[ScheduleView]
    next: UUID | None


class ScheduleFilter(StrictModel):
    """Filter of a list of schedules. `cursor` is the `next` of the previous page."""

    cursor: UUID | None = None
    limit: int = Field(default=50, ge=1, le=200)


def timing_of(schedule: Schedule) -> Timing:
    """Return the fire times of a schedule."""
    when = ScheduleTiming.model_validate(schedule.timing)
    return when.timing(schedule.start_at, schedule.end_at)


def stored_timing(body: PutSchedule) -> dict[str, object]:
    """Return the timing as stored."""
    when = ScheduleTiming.model_validate(body.model_dump(by_alias=True, include=set(ScheduleTiming.model_fields)))
    return when.model_dump(mode="json", by_alias=True, exclude_none=True)


def stored_template(body: PutSchedule) -> str:
    """Return the template as stored."""
    return body.template.model_dump_json(by_alias=True, exclude_unset=True)
