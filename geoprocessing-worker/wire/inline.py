"""Small results inside the report, where the API offers it: separate uploads cost more."""

import base64
from collections.abc import Collection, Sequence

from geoprocessing_worker.outputs import OutputFile, read_small
from geoprocessing_worker.wire.messages import Completion

# Bytes, whatever the API offers: they are in memory, and are all sent again after a failed call.
MAX_BYTES = 256 * 1024


def choose(outputs: Sequence[OutputFile], offered: int) -> frozenset[str]:
    """Return the names of the smallest results that fit into the offered bytes in all."""
    room = min(offered, MAX_BYTES)
    chosen = set[str]()
    for output in sorted(outputs, key=lambda one: one.size_bytes):
        room -= output.size_bytes
        if room < 0 or offered <= 0:
            break
        chosen.add(output.name)
    return frozenset(chosen)


def attach(body: Completion, outputs: Collection[OutputFile]) -> Completion:
    """Return the report with these results in it.

    Raises:
        OSError: one of them cannot be read.
    """
    content = {output.name: base64.b64encode(read_small(output)).decode() for output in outputs}
    reported = tuple(output.model_copy(update={"content": content.get(output.name)}) for output in body.outputs)
    return body.model_copy(update={"outputs": reported})
