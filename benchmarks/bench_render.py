"""Time, size and accuracy of our whole conversion beside GDAL's tools, on six rasters.

Both run interleaved, with `--against REF` also another commit. Medians are printed beside their bars, and the exit code
is 1 for a missed one. A row is measured again if other processes took too much of the CPU. Needs `gdalwarp` and
`gdal_translate` (Debian: gdal-bin). Inputs are made once, in the folder of `--inputs`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # found when run by path

from benchmarks.machine import busy, checked_out, description, importing
from benchmarks.reference import psnr
from benchmarks.render_inputs import INPUTS, LARGE, Input, made
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.tasks.picture import ConversionRequest, convert

LONG_SIDE = 4096
SPOILED = 0.2  # of the CPU, taken by other processes
TRIES = 3  # of a spoiled row. The least spoiled one is printed
BARS: dict[str, tuple[Callable[[float, float], bool], float, str]] = {
    "wall": (float.__ge__, 3.5, "GDAL's wall time ÷ ours, each input"),
    "wall rgb": (float.__ge__, 10.0, "the same, RGB"),
    "wall masked": (float.__ge__, 8.0, "the same, with a mask"),
    "wall median": (float.__ge__, 6.0, "GDAL's wall time ÷ ours, median of the inputs"),
    "cpu median": (float.__ge__, 3.0, "GDAL's CPU time ÷ ours, median of the inputs"),
    "size": (float.__le__, 1.06, "PNG ÷ the same pixels by GDAL's driver"),
    "size noise": (float.__le__, 1.08, "the same, noisy pixels"),
    "size classes": (float.__le__, 0.98, "the same, palettes"),
    "psnr": (float.__ge__, -0.5, "our PSNR less GDAL's, in dB"),
    "memory": (float.__le__, 350.0, "peak of the child, in MB"),
    "memory large": (float.__le__, 300.0, "the same, on the 40000² COG"),
    "companions": (float.__le__, 0.10, "thumbnail, sidecars and metadata, part of the job"),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One conversion: wall and processor seconds, largest process in MB, picture."""

    wall: float
    cpu: float
    memory: float
    picture: Path
    metadata: dict[str, Any]
    companions: float


def ours(source: Path, folder: Path) -> Run:
    """Run the whole `convert`, in a child of a fork server with all imports, like a job."""
    context = multiprocessing.get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    began = time.perf_counter()
    child = context.Process(target=_child, args=(source, folder, writer))
    child.start()
    picture, metadata, companions, cpu, memory = reader.recv()
    child.join()
    return Run(time.perf_counter() - began, cpu, memory, picture, metadata, companions)


def _child(source: Path, folder: Path, writer: Connection) -> None:
    options = RenderOptions(max_size=LONG_SIDE)
    request = ConversionRequest(
        source=source, output_folder=folder, stem="ours", options=options, source_name=source.name
    )
    result = convert(request, lambda *_: None)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    companions = result.packaging["companions"] / sum(result.timings.values())
    cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    writer.send((result.outputs[0].path, result.metadata, companions, cpu, memory))


def of_another(tree: Path, source: Path, folder: Path) -> Run:
    """Run the conversion of another commit, by this file in a process that imports from `tree`."""
    command = [sys.executable, __file__, "--convert", str(source), str(folder)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=importing(tree))
    wall, cpu, memory = json.loads(ran.stdout)
    return Run(wall, cpu, memory, folder, {}, 0.0)


def gdal(one: Input, source: Path, folder: Path, metadata: dict[str, Any]) -> Run:
    """Make the same picture and thumbnail with GDAL's tools, with the same width and stretch."""
    warped, picture = folder / "warped.tif", folder / "gdal.png"
    warped.unlink(missing_ok=True)
    steps: list[list[str]] = []
    if one.bands:
        chosen = folder / "bands.vrt"
        bands = [word for band in one.bands for word in ("-b", str(band))]
        steps.append(["gdal_translate", "-q", "-of", "VRT", *bands, str(source), str(chosen)])
        source = chosen
    size = ("-ts", str(metadata["width"]), "0")
    threads = ("-multi", "-wo", "NUM_THREADS=ALL_CPUS")
    steps.append(
        ["gdalwarp", "-q", "-t_srs", "EPSG:4326", *size, *one.gdalwarp, *threads, str(source), str(warped)],
    )
    to_png = ["gdal_translate", "-q", "-of", "PNG"]
    steps.append([*to_png, "-co", "WORLDFILE=YES", *_scale(one, metadata), str(warped), str(picture)])
    shrinking = "near" if one.classes else "average"
    steps.append([*to_png, "-outsize", "256", "0", "-r", shrinking, str(picture), str(folder / "thumb.png")])
    began = time.perf_counter()
    used = [_timed(step) for step in steps]
    wall = time.perf_counter() - began
    return Run(wall, sum(cpu for cpu, _ in used), max(memory for _, memory in used), picture, {}, 0.0)


def _scale(one: Input, metadata: dict[str, Any]) -> list[str]:
    if not one.stretched:
        return []
    stretch = metadata["choices"]["stretch"]
    count = len(one.bands) or 1
    words = ["-ot", "Byte"]
    for band in range(1, count + 1):
        words += [f"-scale_{band}", str(stretch["lo"]), str(stretch["hi"]), "0", "255"]
    # The alpha band of gdalwarp has the type of the data.
    return [*words, f"-scale_{count + 1}", "0", str(65535 if one.bands else 255), "0", "255"]


def _timed(command: list[str]) -> tuple[float, float]:
    """Return CPU seconds and peak MB of a command."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def rewritten(picture: Path, folder: Path) -> int:
    """Return the size of the same pixels, written by GDAL's PNG driver at its default level."""
    again = folder / "again.png"
    _timed(["gdal_translate", "-q", "-of", "PNG", str(picture), str(again)])
    return again.stat().st_size


class Table:
    """Prints figures beside their bars, and records missed ones."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def judge(self, bar: str, value: float, where: str) -> str:
        """Return the figure as text, marked if it misses its bar."""
        holds, limit, _ = BARS[bar]
        if holds(value, limit):
            return f"{value:.2f}"
        self.missed.append(f"{where}: {BARS[bar][2]} is {value:.3f}, the bar is {limit}")
        return f"{value:.2f}✗"


@dataclass(frozen=True, slots=True)
class Rounds:
    """Interleaved runs of one input. `others` is the part of the CPU that other processes took."""

    mine: list[Run]
    theirs: list[Run]
    another: list[Run]
    others: float


def rounds_of(one: Input, source: Path, folder: Path, count: int, tree: Path | None) -> Rounds:
    """Measure `count` rounds, and again while others disturb. Return the least disturbed ones."""
    metadata = ours(source, folder).metadata
    found = []
    for _ in range(TRIES):
        began, before = time.perf_counter(), busy()
        mine, theirs, another = [], [], []
        for _ in range(count):
            theirs.append(gdal(one, source, folder, metadata))
            mine.append(ours(source, folder))
            if tree is not None:
                another.append(of_another(tree, source, folder))
        used = sum(run.cpu for run in (*mine, *theirs, *another))
        available = (time.perf_counter() - began) * (os.cpu_count() or 1)
        found.append(Rounds(mine, theirs, another, max(0.0, busy() - before - used) / available))
        if found[-1].others <= SPOILED:
            break
    return min(found, key=lambda one: one.others)


def measure(one: Input, inputs: Path, rounds: int, tree: Path | None, table: Table) -> tuple[float, float]:
    """Print one input's row. Return the ratios of wall and CPU time."""
    source = made(one, inputs)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runs = rounds_of(one, source, folder, rounds, tree)
        mine, theirs = runs.mine, runs.theirs
        first = mine[0]
        size = first.picture.stat().st_size / rewritten(first.picture, folder)
        quality = [psnr(source, run.picture, first.metadata, one.bands) for run in (mine[0], theirs[0])]
    wall, cpu = (_ratio(theirs, mine, what) for what in ("wall", "cpu"))
    memory = max(run.memory for run in mine)
    cells = (
        one.name,
        f"{_median(mine, 'wall'):.2f} s",
        f"{_median(theirs, 'wall'):.2f} s",
        f"{_median(mine, 'cpu'):.2f} s",
        f"{_median(theirs, 'cpu'):.2f} s",
        table.judge(one.wall_bar, wall, one.name),
        f"{cpu:.2f}",
        table.judge("memory", memory, one.name),
        f"{max(run.memory for run in theirs):.0f}",
        table.judge(one.size_bar, size, one.name),
        f"{quality[0]:.1f}",
        f"{quality[1]:.1f}",
        table.judge("psnr", quality[0] - quality[1], one.name),
        table.judge("companions", statistics.median(run.companions for run in mine), one.name),
        f"{runs.others:.0%}",
    )
    print(" | ".join(cells), flush=True)
    if runs.another:
        times = (f"{_median(runs.another, what):.2f} s" for what in ("wall", "cpu"))
        print(" | ".join(("the other commit", *times, f"{max(run.memory for run in runs.another):.0f} MB")), flush=True)
    return wall, cpu


def _median(runs: Iterable[Run], what: str) -> float:
    return float(statistics.median(getattr(run, what) for run in runs))


def _ratio(theirs: list[Run], mine: list[Run], what: str) -> float:
    return _median(theirs, what) / _median(mine, what)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=Path, default=Path(tempfile.gettempdir()) / "geoprocessing-bench-render")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of an input's name")
    parser.add_argument("--large", action="store_true", help="also the 40000² COG, which takes minutes to make")
    parser.add_argument("--against", metavar="REF", help="another commit, measured in turn")
    parser.add_argument("--convert", nargs=2, type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["geoprocessing_worker.tasks.preload"])
    if asked.convert:
        warm = multiprocessing.get_context("forkserver").Process()  # so that the time has no imports of the fork server
        warm.start()
        warm.join()
        run = ours(*asked.convert)
        print(json.dumps((run.wall, run.cpu, run.memory)))
        return 0
    asked.inputs.mkdir(exist_ok=True)
    table = Table()
    print(description())
    print(
        "input | ours | GDAL | our CPU | GDAL CPU | wall ÷ | CPU ÷ | MB | GDAL MB | size | "
        "PSNR | GDAL PSNR | difference | companions | others' CPU"
    )
    with checked_out(asked.against) if asked.against else nullcontext() as tree:
        ratios = [measure(one, asked.inputs, asked.rounds, tree, table) for one in INPUTS if asked.only in one.name]
    for place, bar in enumerate(("wall median", "cpu median")):
        if ratios:
            value = statistics.median(ratio[place] for ratio in ratios)
            print(f"{BARS[bar][2]}: {table.judge(bar, value, 'all inputs')} (bar {BARS[bar][1]})")
    if asked.large:
        with tempfile.TemporaryDirectory() as scratch:
            run = ours(made(LARGE, asked.inputs), Path(scratch))
        print(f"{LARGE.name}: {run.wall:.2f} s, {table.judge('memory large', run.memory, LARGE.name)} MB")
    for line in table.missed:
        print(f"missed: {line}")
    return 1 if table.missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
