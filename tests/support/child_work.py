"""Work for a job's child process, good and bad, imported by name in the child."""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from geoprocessing_worker.errors import invalid_input
from geoprocessing_worker.handlers import TaskRequest, TaskResult, write_whole
from geoprocessing_worker.plugins.calls import Call
from geoprocessing_worker.tasks.child import perform
from geoprocessing_worker.tasks.picture import ConversionRequest, ConversionResult, OutputFile

ProgressCallback = Callable[[str, float, str], None]


class Deed(BaseModel):
    name: str
    path: Path = Path()


class ChildReply(BaseModel):
    text: str


def do(deed: Deed, report: ProgressCallback) -> ChildReply:
    report("render", 50, "half way")
    return ChildReply(text=DEEDS[deed.name](deed))


def _refuse(_deed: Deed) -> str:
    raise invalid_input("not_a_tiff", "This is no TIFF.", first_bytes="3c56")


def _break(_deed: Deed) -> str:
    raise KeyError("a mistake")


def _crash(_deed: Deed) -> str:
    ctypes.string_at(0)
    return ""


def _kill_itself(_deed: Deed) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def _use_memory(_deed: Deed) -> str:
    return str(len(bytearray(8 * 1024**3)))


def _loop(deed: Deed) -> str:
    grandchild = os.fork()
    (deed.path / ("grandchild" if grandchild == 0 else "child")).write_text(str(os.getpid()))
    while True:
        signal.pause()


def _burn(_deed: Deed) -> str:
    while True:
        pass


def _lie(_deed: Deed) -> str:
    # Lines that a compromised child might send: not a result, and not the end of the line.
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b'{"result": {"text": ["not text"]}}\n{"rep')
        except OSError:
            continue
    os._exit(0)


# Later lines would count if these were not refused.
RESULT = b'{"result": {"text": "taken"}}\n'


def _say(*lines: bytes) -> Callable[[Deed], str]:
    """Write bytes other than a report or a result to the pipe."""

    def say(_deed: Deed) -> str:
        for line in lines:
            sent = 0
            while sent < len(line):
                sent += os.write(_pipe(), line[sent:])
        os._exit(0)

    return say


def _pipe() -> int:
    pipes = [entry for entry in Path("/proc/self/fd").iterdir() if int(entry.name) > 2 and entry.is_symlink()]
    return next(int(entry.name) for entry in pipes if str(entry.readlink()).startswith("pipe:"))


def _chatter(_deed: Deed) -> str:
    """Send endless reports as fast as they are read."""
    pipe = _pipe()
    while True:
        os.write(pipe, b'{"report": ["render", 50, "half way"]}\n' * 1000)


def _long_reports(_deed: Deed) -> str:
    """Send endless reports with messages of 64 kB as fast as they are read."""
    pipe = _pipe()
    line = json.dumps({"report": ["render", 50, "x" * 65_536]}).encode() + b"\n"
    while True:
        os.write(pipe, line)


def _tell_environment(_deed: Deed) -> str:
    return Path("/proc/self/environ").read_text() + repr(dict(os.environ))


def _ignore_term(_deed: Deed) -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    return "still here"


def _flood(_deed: Deed) -> str:
    """Send one endless line to the pipe."""
    descriptor = _pipe()
    while True:
        os.write(descriptor, b"x" * 65536)


def _list_descriptors(_deed: Deed) -> str:
    """Return the pipes and sockets of descriptors beyond the standard three."""
    entries = [entry for entry in Path("/proc/self/fd").iterdir() if int(entry.name) > 2 and entry.is_symlink()]
    leads = {str(entry.readlink()) for entry in entries}
    return " ".join(sorted(lead for lead in leads if not lead.startswith("/")))


DEEDS: dict[str, Callable[[Deed], str]] = {
    "well": lambda _: f"{sys.platform} {os.getpid()}",
    "refuse": _refuse,
    "break": _break,
    "crash": _crash,
    "kill": _kill_itself,
    "memory": _use_memory,
    "loop": _loop,
    "burn": _burn,
    "lie": _lie,
    "environment": _tell_environment,
    "term": _ignore_term,
    "flood": _flood,
    "descriptors": _list_descriptors,
    "nest": _say(b'{"result": ' + b"[" * 3_000_000 + b"\n", RESULT),
    "say no letters": _say(b'{"result": {"text": "\xff\xfe"}}\n', RESULT),
    "say half a letter": _say(
        b'{"error": {"code": "a", "message": "\\ud800", "error_class": "internal", "detail": {}}}\n'
    ),
    "say a long number": _say(b'{"report": ["render", ' + b"9" * 100_000 + b', "a"]}\n', RESULT),
    "say no number": _say(b'{"report": ["render", NaN, "a"]}\n', RESULT),
    "say no object": _say(b'"report"\n', RESULT),
    "interrupt": _say(b'{"error": {"code": "a", "message": "b", "error_class": "interrupted", "detail": {}}}\n'),
    "chatter": _chatter,
    "long reports": _long_reports,
}


FOR_EVER = "tests.support.child_work:convert_for_ever"
PACK_FOR_EVER = "tests.support.child_work:pack_for_ever"
LIES = "tests.support.child_work:convert_to_lies"


LIED_OF = (
    *("../secret", "/etc/hostname", "link.png", "second.png", "missing.png", "folder.png", "pipe.png", "..", "a\0.png"),
    "in_another_folder.png",
)


def convert_to_lies(request: ConversionRequest, report: ProgressCallback) -> ConversionResult:
    """Report a file that was not made. `nodata` selects the kind."""
    (request.output_folder / "link.png").symlink_to("/etc/hostname")
    secret = request.output_folder.parent / "secret"
    secret.write_text("of the worker")
    (request.output_folder / "second.png").hardlink_to(secret)
    (request.output_folder / "folder.png").mkdir()
    os.mkfifo(request.output_folder / "pipe.png")
    name = LIED_OF[int(request.options.nodata or 0)]
    path = request.output_folder / name
    if name == "in_another_folder.png":
        other = request.output_folder.rename(request.output_folder.parent / "other")
        secret.rename(other / name)
        request.output_folder.symlink_to(other)
    told = OutputFile(name=name, path=path, content_type="image/png", size_bytes=1, sha256="0" * 64)
    return ConversionResult.model_validate({"outputs": [told], "metadata": {}, "timings": {}, "packaging": {}})


def make_from_nothing(request: ConversionRequest, report: ProgressCallback) -> TaskResult:
    """Do a job without a file."""
    assert request.source is None
    made = write_whole(request.output_folder, f"{request.stem}.json", b"{}", "application/json")
    return TaskResult(outputs=(made,))


def make_of_anything(request: ConversionRequest, report: ProgressCallback) -> TaskResult:
    """Work without checks of its own."""
    return TaskResult(metadata={"begun": True})


def pack_for_ever(request: ConversionRequest, report: ProgressCallback) -> ConversionResult:
    """Stay in the last stage forever."""
    report("package", 0, "for ever")
    (request.output_folder / "begun").touch()
    while True:
        signal.pause()


def convert_for_ever(request: ConversionRequest, report: ProgressCallback) -> ConversionResult:
    """Report a start and never end."""
    report("render", 10, "for ever")
    while True:
        signal.pause()


def refuse_at_work(_request: object, _report: ProgressCallback) -> TaskResult:
    """Refuse the file."""
    raise invalid_input("corrupt_block", "The file is damaged.")


def break_at_work(_request: object, _report: ProgressCallback) -> TaskResult:
    """Raise an unexpected error."""
    raise KeyError("a mistake")


def fill_and_break(request: TaskRequest[Any], _report: ProgressCallback) -> TaskResult:
    """Leave a file that simulates a full disk, and fail."""
    (request.output_folder / "filling").write_bytes(b"x")
    raise KeyError("no space left")


class Spent(NamedTuple):
    """Processor time and peak memory of a child."""

    cpu_seconds: float
    memory_bytes: int


def perform_and_measure(call: Call, report: ProgressCallback) -> Any:
    """Do the work of a job, and write its cost to the output folder."""
    try:
        return perform(call, report)
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = Spent(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
        (call.request.output_folder / "spent.json").write_text(json.dumps(spent))


def spent_in(folder: Path) -> Spent:
    """Return the cost of the job with this output folder."""
    return Spent(*json.loads((folder / "spent.json").read_text()))
