"""Packages with their own handlers, as installed in a folder."""

from pathlib import Path

MODULE = """
from geoprocessing_worker.handlers import INTERFACE, OutputSlot, Payload, TaskHandler, TaskType

{lines}

HANDLER = TaskHandler(
    interface={interface},
    task_type=TaskType(
        name="{task_type}",
        input="{input_rule}",
        outputs=(OutputSlot(suffix=".txt", content_type="text/plain", max_bytes=9),),
    ),
    payload=Payload,
    stages={{"think": 1}},
    work="{package}.work:work",
    self_test="{package}.work:self_test",
    needs={needs},
)
"""
WORK = """
from geoprocessing_worker.handlers import TaskResult, write_whole


def work(request, report):
    report("think", 50, "half way")
    {doing}
    return TaskResult(outputs=(write_whole(request.output_folder, request.stem + ".txt", b"a thought", "text/plain"),))


def self_test(folder):
    {self_test}
    return TaskResult(outputs=(write_whole(folder, "thought{suffix}", b"a thought", "text/plain"),))
"""


def install(
    folder: Path,
    package: str,
    *,
    task_type: str = "think",
    entry_point: str | None = None,
    interface: str = "INTERFACE",
    lines: str = "",
    self_test: str = "",
    doing: str = "",
    input_rule: str = "required",
    suffix: str = ".txt",
    needs: tuple[str, ...] = (),
) -> Path:
    """Write a package that adds one task type, with its metadata. Return the folder for `sys.path`."""
    code = folder / package
    code.mkdir(parents=True)
    (code / "__init__.py").touch()
    told = {"interface": interface, "task_type": task_type, "package": package, "lines": lines, "needs": needs}
    (code / "tasks.py").write_text(MODULE.format(input_rule=input_rule, **told))
    (code / "work.py").write_text(WORK.format(self_test=self_test, doing=doing, suffix=suffix))
    facts = folder / f"{package}-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (facts / "RECORD").write_text(f"{package}/__init__.py,,\n{package}-1.dist-info/METADATA,,\n")
    (facts / "entry_points.txt").write_text(
        f"[geoprocessing_worker.tasks]\n{entry_point or task_type} = {package}.tasks:HANDLER\n"
    )
    return folder
