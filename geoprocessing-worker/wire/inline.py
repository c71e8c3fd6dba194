"""Small results that go along with their report, where the API offers it: an upload of each would cost more."""

import base64
from collections.abc import Collection, Sequence

from geoprocessing_worker.outputs import OutputFile, read_small
from geoprocessing_worker.wire.messages import Completion

# Bytes, whatever the API offers: they are read at once, sent in one piece, and sent again when that breaks off.
MOST = 256 * 1024


def choose(outputs: Sequence[OutputFile], offered: int) -> frozenset[str]:
    """The names of the smallest results, as many as fit into what the API takes with a report (bytes in all)."""
    room = min(offered, MOST)
    chosen = set[str]()
    for output in sorted(outputs, key=lambda one: one.size_bytes):
        room -= output.size_bytes
        if room < 0 or offered <= 0:
            break
        chosen.add(output.name)
    return frozenset(chosen)


def attach(body: Completion, outputs: Collection[OutputFile]) -> Completion:
    """The report with these results in it.

    Raises:
        OSError: one of them cannot be read.
    """
    content = {output.name: base64.b64encode(read_small(output)).decode() for output in outputs}
    told = tuple(output.model_copy(update={"content": content.get(output.name)}) for output in body.outputs)
    return body.model_copy(update={"outputs": told})
