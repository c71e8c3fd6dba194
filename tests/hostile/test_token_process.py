"""The process with the token loads no library that parses untrusted files or coordinate systems."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.support.five_endpoints import TOKEN, five_endpoints
from tests.support.processes import clean_environment
from tests.support.rasters import Tiff, ramp
from tests.support.waiting import wait_until

WORK_AND_LIST = """
import sys
from geoprocessing_worker.worker import main
ended = main([])
print(ended, *sorted({"cv2", "numpy", "PIL", "pyproj", "rasterio", "rio_cogeo"} & set(sys.modules)))
"""


def test_a_working_worker_loads_no_rasterio_opencv_or_pyproj(tmp_path: Path) -> None:
    """Also for jobs that name coordinate systems. Some texts stall PROJ for up to 1.4 s."""
    source = Tiff(ramp(16, 16), crs=None).write(tmp_path / "a.tif")
    payload = {"sourceCrs": "EPSG:4326", "coordinateSystem": "EPSG:3857"}
    with five_endpoints() as app:
        done = app.jobs[app.queue("geotiff_to_png", "a.tif", source.read_bytes(), payload)]
        broken = app.jobs[app.queue("geotiff_to_png", "a.tif", source.read_bytes(), {"sourceCrs": "EPSG:999999"})]
        environment = clean_environment(
            API_BASE_URL=app.base_url, WORKER_AUTH_TOKEN=TOKEN, TEMP_DIR=str(tmp_path / "jobs")
        )
        command = [sys.executable, "-c", WORK_AND_LIST]
        with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as worker:
            try:
                wait_until(lambda: (done.state, broken.state) == ("succeeded", "failed"), "both jobs to end", 60)
                worker.send_signal(signal.SIGTERM)
                last_line = worker.communicate(timeout=60)[0].splitlines()[-1]
            finally:
                worker.kill()
    assert last_line == "0"
