"""The declared capabilities of workers, and their match with the requirements of jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from geo_jobs_api.hosts import HostList


@dataclass(frozen=True, slots=True)
class Requirements:
    """Requirements of a job. None: no requirement, or unknown."""

    size_bytes: int | None
    source_host: str | None
    memory_mb: int | None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Capabilities of a worker. None: no limit.

    Attributes:
        max_file_size: the largest input in bytes.
        source_hosts: hosts of its downloads: names, `*.example.org`, `*`, in lower case.
        memory_mb: memory of a job's process, in MiB.
        concurrent_jobs: jobs that it computes concurrently.
    """

    max_file_size: int | None = None
    source_hosts: tuple[str, ...] | None = None
    memory_mb: int | None = None
    concurrent_jobs: int | None = None

    @classmethod
    def from_json(cls, declared: Mapping[str, Any] | None) -> Self:
        """Read the output of `as_json`."""
        declared = declared or {}
        hosts = declared.get("sourceHosts")
        return cls(
            declared.get("maxFileSize"), None if hosts is None else tuple(hosts), declared.get("memoryMb"),
            declared.get("concurrentJobs"),
        )  # fmt: skip

    def as_json(self) -> dict[str, object]:
        """Return the declaration as a JSON object, without undeclared fields."""
        declared = {
            "maxFileSize": self.max_file_size,
            "sourceHosts": None if self.source_hosts is None else list(self.source_hosts),
            "memoryMb": self.memory_mb,
            "concurrentJobs": self.concurrent_jobs,
        }
        return {name: value for name, value in declared.items() if value is not None}

    @property
    def admission(self) -> tuple[object, ...]:
        """Return the filter for jobs. Only claims with equal filters share a statement."""
        return (self.max_file_size, self.source_hosts, self.memory_mb)

    @property
    def host_patterns(self) -> list[str] | None:
        """Return `source_hosts` as LIKE patterns."""
        return None if self.source_hosts is None else [_pattern(host) for host in self.source_hosts]

    def list_mismatches(self, need: Requirements) -> Iterator[str]:
        """Yield why the worker does not get a job with this need: `takes …, and this one has …`."""
        most, size = self.max_file_size, need.size_bytes
        if most is not None and size is not None and size > most:
            # For a URL, only a lower bound is known.
            more = "" if need.source_host is None else " or more"
            yield f"takes files up to {_megabytes(most)}, and this one has {_megabytes(size)}{more}"
        hosts = self.source_hosts
        if hosts is not None and need.source_host is not None and not HostList.of(hosts).allows(need.source_host):
            yield f"does not fetch from {need.source_host} (its SOURCE_HOSTS)"
        if self.memory_mb is not None and need.memory_mb is not None and need.memory_mb > self.memory_mb:
            yield f"has {self.memory_mb} MiB of memory for a job, and this type needs {need.memory_mb}"


UNDECLARED = Capabilities()


def _pattern(host: str) -> str:
    escaped = host.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    if escaped == "*":
        return "%"
    return f"%{escaped[1:]}" if escaped.startswith("*.") else escaped


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB".replace(".0 MB", " MB") if size >= 100_000 else f"{size} bytes"
