"""The example package with its own task type, installed and used from end to end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.api import WORKER_TOKEN, RunningApi, bearer
from tests.support.clients import Person, get
from tests.support.processes import FINAL, ROOT, clean_environment, running
from tests.support.rasters import Tiff
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, installed in its own folder."""
    folder = tmp_path_factory.mktemp("example")
    # Building leaves files behind, so it happens outside the checkout.
    shutil.copytree(ROOT / "examples" / "geotiff_histogram", folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    target = ["--no-build-isolation", "--target", str(folder / "installed"), str(folder / "source")]
    subprocess.run([*pip, *target], check=True, capture_output=True, timeout=120)
    return folder / "installed"


def output_of(*command: str, stdin_text: str | None = None, **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        input=stdin_text,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=90,
        cwd="/",
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_its_self_test_passes_in_the_sandbox(installed: Path) -> None:
    stdin_text = output_of("geoprocessing_worker", "verify", "geotiff_histogram", PYTHONPATH=str(installed))
    assert stdin_text.startswith("✅ geotiff_histogram: made known_histogram.csv")


def test_the_real_programs_do_a_job_of_it(
    installed: Path, api_server: Callable[..., RunningApi], tmp_path: Path
) -> None:
    """`tasks --json` registers the type with the API. A worker that has it installed claims and does the job."""
    api = api_server()
    kind = output_of("geoprocessing_worker", "tasks", "--json", "geotiff_histogram", PYTHONPATH=str(installed))
    stores = {"DATABASE_URL": api.settings.conninfo or "", "DATA_DIR": str(tmp_path / "data")}
    output_of("geo_jobs_api", "task-types", "apply", "-", stdin_text=kind, **stores)
    values = np.arange(100, dtype="uint8").reshape(1, 10, 10)
    source = Tiff(values, nodata=0).write(tmp_path / "map.tif")
    person = Person(api)
    for payload, place in (({"bucket": 3}, "bucket"), ({"buckets": 1}, "buckets")):
        answer = person.http.post("/api/geo-jobs", json={"taskType": "geotiff_histogram", "inputPayload": payload})
        assert answer.json()["errors"][0]["pointer"] == f"/inputPayload/{place}"
    job_id = person.submit({"buckets": 3}, source.read_bytes(), taskType="geotiff_histogram")
    # Like a server without a schema for it.
    person.http.headers["Authorization"] = bearer("root", admin=True)["Authorization"]
    person.http.patch("/api/task-types/geotiff_histogram", json={"payloadSchema": {}}).raise_for_status()
    wrong = person.submit({"buckets": 1}, source.read_bytes(), taskType="geotiff_histogram")
    (tmp_path / "worker").mkdir()
    settings = {
        "API_BASE_URL": api.base_url,
        "WORKER_AUTH_TOKEN": WORKER_TOKEN,
        "TEMP_DIR": str(tmp_path / "jobs"),
        "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)]),
    }
    with running([sys.executable, "-m", "geoprocessing_worker"], tmp_path / "worker", clean_environment(**settings)):
        wait_until(lambda: all(person.look(job)["state"] in FINAL for job in (job_id, wrong)), "the jobs to end", 60)
    job = person.look(job_id)
    assert job["state"] == "succeeded", job
    assert job["metadata"] == {"minimum": 1, "maximum": 99, "pixels": 99}
    answer = person.http.get(f"/api/geo-jobs/{job_id}/download/output").raise_for_status().json()
    (output,) = answer["outputs"]
    assert output["name"] == "map_histogram.csv"
    assert get(output["url"]).text.splitlines()[0:2] == ["from,to,pixels", "1,33.6667,33"]
    assert person.look(wrong)["error"]["code"] == "invalid_payload"
