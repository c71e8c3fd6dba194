"""What is asked of the lease store, and what a claim gets: frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from geo_jobs_api.queue.capabilities import UNDECLARED, Capabilities
from geo_jobs_api.queue.lease_records import Lease
from geo_jobs_api.queue.rules import LeaseToken


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """Who wants how much of what.

    Attributes:
        claim_id: fresh for each claim; the same one gets the same leases again.
        task_types: what the worker can do.
        max_jobs: how many jobs at most.
        lease_secret: the unguessable part of the leases that this claim gets.
        first_lease_seconds: how long the leases last without a sign of life.
        capabilities: what the worker takes.
    """

    claim_id: UUID
    worker_id: str
    worker_name: str
    task_types: tuple[str, ...]
    max_jobs: int
    lease_secret: str
    first_lease_seconds: float
    capabilities: Capabilities = UNDECLARED

    @property
    def kind(self) -> tuple[object, ...]:
        """Claims of one kind can share a statement."""
        return (self.task_types, self.capabilities.admission)


@dataclass(frozen=True, slots=True)
class LeaseUpdate:
    """What a sign of life tells: how far the worker has come (0 to 100; None: nothing new), and what it is up to."""

    percent: float | None = None
    stage: str | None = None
    message: str | None = None
    stats: dict[str, Any] | None = None


NO_UPDATE = LeaseUpdate()


@dataclass(frozen=True, slots=True)
class Results:
    """What a completed job leaves: outputs as JSON objects, metadata, seconds by stage, what its source was."""

    outputs: list[dict[str, Any]]
    metadata: dict[str, Any]
    timings: dict[str, float]
    source: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A complete as it was asked for; `request_digest` tells a repetition from another content."""

    job_id: UUID
    token: LeaseToken
    results: Results
    request_digest: bytes


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """What one claim got.

    Attributes:
        leases: in queue order; none if there was nothing.
        is_replay: they were given to the same claim id before.
        has_more: there may be more to be had for these task types.
        is_held_back: some of them have a rate limit, or were counted by somebody else just then: time alone may bring
            more.
        is_unfit: ready jobs were left that workers like this one do not take.
        avoided_seconds: ready jobs were left that this worker has just failed; seconds until it may have the first.
    """

    leases: list[Lease]
    is_replay: bool
    has_more: bool
    is_held_back: bool = False
    is_unfit: bool = False
    avoided_seconds: float | None = None

    @property
    def is_withheld(self) -> bool:
        """Whether there are jobs, but for other workers."""
        return self.is_unfit or self.avoided_seconds is not None
