"""Reported outputs: each is checked against its report before a job may end with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from geo_jobs_api.config import MAX_INLINE_BYTES
from geo_jobs_api.errors import Problem
from geo_jobs_api.queue.lease_records import Lease
from geo_jobs_api.queue.rules import output_key
from geo_jobs_api.queue.worker_schemas import ReportedOutput
from geo_jobs_api.storage.storage import ObjectInfo, Storage


async def store_outputs(storage: Storage, lease: Lease, outputs: Sequence[ReportedOutput]) -> None:
    """Store inline outputs under the lease's keys, and check the uploaded ones.

    Args:
        storage: the object store.
        lease: held by the reporting worker.
        outputs: as reported.

    Raises:
        Problem: `output_mismatch` for an unknown name, a missing output, or another size or digest than reported.
            `too_large` for too many inline bytes. `storage_full`.
    """
    limits = {f"{lease.job.stem}{slot.suffix}": slot.max_bytes for slot in lease.job.upload_slots}
    names = [output.name for output in outputs]
    if len(set(names)) != len(names) or not limits.keys() >= set(names):
        raise Problem("output_mismatch", "Each output must have a name from `uploads`, at most once.")
    inline = [(output, output.content) for output in outputs if output.content is not None]
    # Not the offered limit, since the settings may have changed after the claim.
    if sum(len(content) for _, content in inline) > MAX_INLINE_BYTES:
        raise Problem("too_large", f"The inline outputs exceed {MAX_INLINE_BYTES} bytes. Upload them.")
    for output, content in inline:
        _compare(output, ObjectInfo(len(content), hashlib.sha256(content).hexdigest()))
        if len(content) > limits[output.name]:
            raise Problem("too_large", f"{output.name} is larger than the {limits[output.name]} bytes of its slot.")
    if inline:
        await storage.put_small({_key(lease, output): content for output, content in inline})
    uploaded = [output for output in outputs if output.content is None]
    present = await storage.stat([_key(lease, output) for output in uploaded]) if uploaded else []
    for output, found in zip(uploaded, present, strict=True):
        _compare(output, found)


def _key(lease: Lease, output: ReportedOutput) -> str:
    return output_key(lease.job.id, lease.lease_seq, output.sha256, output.name)


def _compare(output: ReportedOutput, found: ObjectInfo | None) -> None:
    if found is None:
        raise Problem("output_mismatch", f"{output.name} was not uploaded with SHA-256 {output.sha256}.")
    if (found.size_bytes, found.sha256) != (output.size_bytes, output.sha256):
        raise Problem(
            "output_mismatch",
            f"{output.name} has {found.size_bytes} bytes with SHA-256 {found.sha256}, not {output.size_bytes} bytes"
            f" with {output.sha256}.",
        )
