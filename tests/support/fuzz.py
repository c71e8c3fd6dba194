"""Mutated TIFFs through the walker and a real child: `make fuzz SEED=1 COUNT=20000`.

Each mutation follows from the seed and its number, so any can be repeated: `START=N COUNT=1`. The seeds are files built
by code, and the corpus beside the checkout if there is one. Exit code 1 on a fault: an outcome without a code, an
unexpected error, a child over its memory, or a job that does not end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog

from geoprocessing_worker.errors import JobError
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.sandbox.landlock import AllowedPaths
from geoprocessing_worker.sandbox.limits import Limits
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.tasks.picture import ConversionRequest, ConversionResult, ProgressCallback, convert
from geoprocessing_worker.tiff.gate import admit
from tests.support.rasters import Tiff, quarters, ramp
from tests.support.tiffs import LONG, RawTiff, gray

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
LARGEST_SEED = 60_000  # bytes. Mutations of small files reach more of the format in the same time
MEMORY = 2 << 30
CPU_SECONDS = 20
HANGS_AFTER = 60.0
AT_ONCE = 2
INTERESTING = (0, 1, 2, 7, 8, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
TAGS = (256, 257, 258, 259, 262, 270, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 347,
        530, 532, 33550, 33922, 34264, 34665, 34735, 34736, 34737, 42112, 42113, 50674, 50844)  # fmt: skip
# Permitted outcomes of a mutated file. Any other is a fault.
NAMED = frozenset({
    "not_a_tiff", "truncated", "corrupt_block", "malformed_header", "unsupported_compression", "unsupported_data_type",
    "too_large", "too_complex", "bad_crs", "hostile_metadata", "no_valid_pixels", "out_of_memory", "timed_out",
    "invalid_payload",
    # Damaged blocks can decode differently each time. Then the picture differs from the file.
    "self_check_failed",
})  # fmt: skip


def seeds(folder: Path) -> list[bytes]:
    """Return small files of many layouts to begin with."""
    kinds: dict[str, Tiff] = {
        "gray": Tiff(ramp(40, 50)),
        "rgb": Tiff(quarters(64), crs="EPSG:32638", profile={"photometric": "rgb", "compress": "lzw", "predictor": 2}),
        "tiles": Tiff(quarters(96), profile={"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}),
        "jpeg": Tiff(quarters(64), profile={"compress": "jpeg", "photometric": "ycbcr", "interleave": "pixel"}),
        "float": Tiff(ramp(40, 50, "float32", -5, 5), nodata=-5, profile={"compress": "zstd", "predictor": 3}),
        "lerc": Tiff(ramp(40, 50, "float64", 0, 1), profile={"compress": "lerc"}),
        "webp": Tiff(quarters(64), profile={"compress": "webp", "interleave": "pixel"}),
        "lzma": Tiff(ramp(30, 30, "int16", -9, 900), profile={"compress": "lzma", "bigtiff": "yes"}),
        "complex": Tiff(ramp(20, 20, "complex64", 0, 9)),
        "palette": Tiff(ramp(20, 20), palette={n: (n, 255 - n, 9, 255) for n in range(256)}),
        "mask": Tiff(quarters(64), mask=np.eye(64, dtype=np.uint8) * 255, overviews=(2, 4)),
        "big endian": Tiff(ramp(20, 20, "uint16", 0, 999), profile={"endianness": "big"}),
    }
    made = [kind.write(folder / "seed.tif").read_bytes() for kind in kinds.values()]
    made.append(RawTiff([gray(t273=(LONG, [8])), gray(t330=(LONG, [8]))], data=bytes(256)).bytes())
    files = sorted(CORPUS.glob("*.tif*")) if CORPUS.is_dir() else []
    return made + [file.read_bytes() for file in files if file.stat().st_size <= LARGEST_SEED]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Make one to eight changes, most of them in the structure."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
        if len(changed) < 16:
            break
        rng.choice((_flip, _flip, _number, _number, _field, _field, _field, _cut, _copy))(changed, rng)
    return bytes(changed)


def _flip(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _number(content: bytearray, rng: random.Random) -> None:
    at = rng.randrange(min(len(content) - 8, rng.choice((64, 600, len(content)))))
    size, letter = rng.choice(((2, "H"), (4, "I"), (8, "Q")))
    content[at : at + size] = struct.pack(rng.choice("<>") + letter, rng.choice(INTERESTING) % 256**size)


def _field(content: bytearray, rng: random.Random) -> None:
    """Change an entry of a directory: its tag, type, count or offset."""
    order = "<" if content[:1] == b"I" else ">"
    big = bytes(content[2:4]) in (b"+\0", b"\0+")
    at = int(struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)[0])
    counter, size, word = (8, 20, "Q") if big else (2, 12, "I")
    if at + counter > len(content):
        return
    count = int(struct.unpack_from(order + ("Q" if big else "H"), content, at)[0])
    entry = at + counter + size * rng.randrange(max(1, min(count, 64)))
    if entry + size > len(content):
        return
    part = rng.randrange(4)
    if part == 0:
        struct.pack_into(order + "H", content, entry, rng.choice(TAGS))
    elif part == 1:
        struct.pack_into(order + "H", content, entry + 2, rng.randrange(20))
    else:
        place = entry + 4 if part == 2 else entry + size - struct.calcsize(word)
        number = rng.choice((*INTERESTING, len(content), rng.randrange(2 * len(content)), at))
        struct.pack_into(order + word, content, place, number)


def _cut(content: bytearray, rng: random.Random) -> None:
    if rng.random() < 0.3:
        del content[rng.randrange(16, len(content)) :]


def _copy(content: bytearray, rng: random.Random) -> None:
    length = rng.randrange(1, 64)
    here, there = rng.randrange(len(content)), rng.randrange(len(content))
    content[here : here + length] = content[there : there + length]


def convert_and_tell(request: ConversionRequest, report: ProgressCallback) -> ConversionResult:
    """Convert, and report the peak memory in kB at the end."""
    try:
        return convert(request, report)
    finally:
        report("memory", 0, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


@dataclass
class Tally:
    """The outcomes of the mutations."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    crashes: list[int] = field(default_factory=list)
    most_kilobytes: int = 0


class Fuzzer:
    """Runs mutations in children of one fork server."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._seed, self._folder = seed, folder
        self._seeds = seeds(folder)
        self.tally = Tally()
        self._box = Sandbox(
            convert_and_tell,
            ConversionResult,
            preload=("geoprocessing_worker.tasks.preload", "tests.support.fuzz"),
            limits=Limits(memory_bytes=MEMORY, cpu_seconds=CPU_SECONDS),
        )

    def content(self, number: int) -> bytes:
        """Return the mutation with this number."""
        rng = random.Random(f"{self._seed}:{number}")
        return mutate(rng.choice(self._seeds), rng)

    async def run(self, start: int, count: int, seconds: float = float("inf")) -> int:
        """Run this many mutations, or as many as fit into the time. Return their number."""
        numbers = iter(range(start, start + count))
        deadline = time.monotonic() + seconds
        done = 0

        async def work(lane: int) -> None:
            nonlocal done
            for number in numbers:
                if time.monotonic() > deadline:
                    return
                await self._one(number, self._folder / f"lane{lane}")
                done += 1

        await asyncio.gather(*(work(lane) for lane in range(AT_ONCE)))
        return done

    async def _one(self, number: int, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        source, out = folder / "a.tif", folder / "out"
        source.write_bytes(self.content(number))
        out.mkdir(exist_ok=True)
        outcome = await self._outcome(number, source, out)
        self.tally.outcomes[outcome] += 1
        if outcome == "crashed":
            self.tally.crashes.append(number)
        elif outcome not in NAMED | {"picture"}:
            self.tally.faults.append(f"{number}: {outcome}")
        for path in out.iterdir():
            path.unlink()

    async def _outcome(self, number: int, source: Path, out: Path) -> str:
        try:
            walked = self._walk(source)
        except Exception as error:  # noqa: BLE001 - any error is a fault
            return f"walker: {error!r}"
        request = ConversionRequest(
            source=source,
            output_folder=out,
            stem="a",
            options=RenderOptions(max_size=32, generate_thumbnails=False),
            source_name="a.tif",
            # Half of the files that the walker refuses continue, to reach the sandbox.
            validate_headers=walked is None or number % 2 == 0,
        )
        try:
            async with asyncio.timeout(HANGS_AFTER):
                await self._box.run(request, self._hear, AllowedPaths((source,), (out,)))
        except JobError as error:
            return error.code
        except TimeoutError:
            return "does not end"
        return "picture"

    @staticmethod
    def _walk(source: Path) -> str | None:
        try:
            admit(source)
        except JobError as error:
            return error.code
        return None

    def _hear(self, stage: str, _percent: float, text: str) -> None:
        if stage == "memory":
            kilobytes = int(text)
            self.tally.most_kilobytes = max(self.tally.most_kilobytes, kilobytes)
            if kilobytes * 1024 > MEMORY:
                self.tally.faults.append(f"{kilobytes} kB of memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print the outcomes. Return 1 on a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parsed = parser.parse_args(arguments)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(parsed.seed, Path(folder))
        done = asyncio.run(fuzzer.run(parsed.start, parsed.count, parsed.seconds))
    tally = fuzzer.tally
    lines = [f"{count:7} {outcome}" for outcome, count in tally.outcomes.most_common()]
    lines.append(f"{done} mutations of seed {parsed.seed} from {parsed.start}; at most {tally.most_kilobytes:,} kB")
    lines += [f"crashed the child: {number}" for number in tally.crashes]
    lines += [f"FAULT {fault}" for fault in tally.faults]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if tally.faults else 0
