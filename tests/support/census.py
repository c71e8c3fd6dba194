"""The modules that a child imports beyond those of its fork server, which imports this module last."""

import sys

from geoprocessing_worker.handlers import ProgressCallback, TaskResult
from geoprocessing_worker.plugins.calls import PERFORM, Call

BEFORE = frozenset(sys.modules)


def perform_and_list(call: Call, report: ProgressCallback) -> TaskResult:
    """Do the work of a job. Return the imported modules."""
    from pkgutil import resolve_name

    resolve_name(PERFORM)(call, report)
    return TaskResult(metadata={"imported": sorted(set(sys.modules) - BEFORE)})
