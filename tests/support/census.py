"""What a child has beyond its fork server: imported modules, if that imports this module last, and its heap's flags."""

import sys
from pathlib import Path

from geoprocessing_worker.handlers import ProgressCallback, TaskResult
from geoprocessing_worker.plugins.calls import PERFORM, Call

BEFORE = frozenset(sys.modules)


def perform_and_list(call: Call, report: ProgressCallback) -> TaskResult:
    """Do the work of a job. Return the imported modules."""
    from pkgutil import resolve_name

    resolve_name(PERFORM)(call, report)
    return TaskResult(metadata={"imported": sorted(set(sys.modules) - BEFORE)})


def list_heap_flags(_request: object, _report: ProgressCallback) -> TaskResult:
    """Return the kernel's flags of memory that `malloc` has got in this child."""
    kept = bytearray(8 << 20)
    del kept
    heap = Path("/proc/self/smaps").read_text().split("[heap]")[1]
    return TaskResult(metadata={"flags": heap.partition("VmFlags:")[2].splitlines()[0].split()})
