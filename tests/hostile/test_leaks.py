"""All output of a whole run is searched for secrets."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.api import JWT_SECRET, STORAGE_SECRET, WORKER_TOKEN, make_jwt
from tests.support.processes import Programs, programs
from tests.support.rasters import Tiff, quarters

PASSWORD = "a-password-of-the-database"
# PNG chunks with pixels, palette and transparency, and the worker's own text.
CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"pHYs", b"sRGB", b"gAMA", b"cHRM"})


@pytest.fixture
def stack(postgres_url: str, tmp_path: Path) -> Iterator[Programs]:
    with programs(postgres_url, tmp_path) as running:
        yield running


def command_lines() -> str:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return "\n".join(found)


def chunks(png: bytes) -> set[bytes]:
    at, found = 8, set()
    while at < len(png):
        found.add(png[at + 4 : at + 8])
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    return found


def test_no_output_of_a_whole_run_has_a_secret(stack: Programs, tmp_path: Path) -> None:
    """A succeeded job, a refused file and a worker with a wrong token: logs, events, results."""
    good = Tiff(quarters(64), profile={"photometric": "rgb"}).write(tmp_path / "good.tif")
    bad = tmp_path / "bad.tif"
    bad.write_bytes(good.read_bytes()[:300])
    stack.worker(LOG_LEVEL="DEBUG", PGPASSWORD=PASSWORD)
    stack.worker("wrong", LOG_LEVEL="DEBUG", WORKER_AUTH_TOKEN="another-token-that-is-wrong")
    ids = [stack.submit(source) for source in (good, bad)]
    jobs = [stack.until_over(job_id) for job_id in ids]
    assert [job["state"] for job in jobs] == ["succeeded", "failed"]
    results = stack.download(ids[0], tmp_path / "results")
    person = stack.person()
    answers = [json.dumps(job) + person.get(f"/api/geo-jobs/{job['id']}/events").text for job in jobs]
    running = command_lines()

    secrets = [WORKER_TOKEN, "another-token-that-is-wrong", PASSWORD, JWT_SECRET, STORAGE_SECRET, make_jwt()[:30]]
    logs = [path for path in tmp_path.rglob("*.log*") if path.is_file()]
    assert {"worker.log", "output.log"} <= {path.name for path in logs}
    assert [path for path in logs if path.name == "worker.log" and path.stat().st_mode & 0o077] == [], "others may read"
    written = {str(path): path.read_text(errors="replace") for path in [*logs, *results.values()]}
    written |= {"answers": "".join(answers), "running": running}
    for place, text in written.items():
        for secret in secrets:
            assert secret not in text, f"{secret} in {place}"
        # Results and answers have no URL. Logs may, without the signed query.
        assert not re.search(r"[?&]signature=[\w-]{20}", text), f"a signed query in {place}"
    for text in answers:
        assert str(tmp_path) not in text, "a path of the worker's"
    png = next(path for name, path in results.items() if name == "good.png").read_bytes()
    assert chunks(png) <= CHUNKS, chunks(png)
    with Image.open(tmp_path / "results" / "good.png") as picture:
        assert not picture.getexif()


@pytest.mark.parametrize("output_format", ["jpeg", "webp", "png"])
def test_pictures_have_no_text_of_the_files_tags(output_format: str, tmp_path: Path) -> None:
    """A file's own tags may hold names, places and documents. The metadata have only tags of an allow-list."""
    import rasterio

    from geoprocessing_worker.source.gdal import gdal_environment
    from tests.support.rasters import run

    source = Tiff(quarters(64)).write(tmp_path / "a.tif")
    private = {"TIFFTAG_ARTIST": "private-artist", "TIFFTAG_HOSTCOMPUTER": "private-computer", "OTHER": "private-other"}
    with gdal_environment(), rasterio.open(source, "r+") as dataset:
        dataset.update_tags(TIFFTAG_SOFTWARE="kept-software", **private)
    result = run(source, tmp_path / "out", output_format=output_format)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"private-" not in everything
    assert "private-" not in json.dumps(result.metadata)
    assert "kept-software" in json.dumps(result.metadata)
