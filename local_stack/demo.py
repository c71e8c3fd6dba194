"""The demonstration: one map goes through the service over HTTP, with its progress on the terminal."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from local_stack import terrain
from local_stack.stack import Stack, StackError, running

FINAL = ("succeeded", "failed", "cancelled")
STAGES = ("download", "inspect", "render", "package", "upload")
PATIENCE = 600.0  # seconds for the whole job
LOOK_INTERVAL = 0.2
CHUNK = 256 * 1024

Job = dict[str, Any]


def run(source: Path | None, output: Path, *, workers: int = 1) -> int:
    """Send `source`, or a generated map, through a local stack and write the results to `output`.

    Returns:
        0 if the job succeeded, else 1.

    Raises:
        StackError: the file is missing, or the stack does not start or breaks down.
    """
    console = Console(soft_wrap=True)
    if source is not None and not source.is_file():
        raise StackError(f"There is no file {source}. Check its path.")
    if source is None:
        console.print("Making a map: hill-shaded highland around 15.35° N 44.2° E …")
        try:
            source = terrain.make(output / "source" / "terrain.tif")
        except OSError as error:
            raise StackError(
                f"{output} cannot be written ({error.strerror or error}). Name another folder with --output."
            ) from error
    console.print("Starting PostgreSQL, the job API and a worker …")
    with running(quiet=True, workers=workers) as stack, stack.person() as api:
        console.print(f"They are up at {stack.base_url}. Sending {source} ({source.stat().st_size / 1e6:.1f} MB):")
        try:
            job = _watch(api, stack, _submit(api, source), console)
            if job["state"] != "succeeded":
                _explain(job, console)
                return 1
            paths = _fetch(api, job, output)
        except httpx.HTTPError as error:
            raise StackError(f"The connection to the API broke: {error}. See {stack.api_log}.") from error
        except OSError as error:
            raise StackError(f"{error.filename or output}: {error.strerror}") from error
    _show(job, paths, console)
    return 0


def _submit(api: httpx.Client, source: Path) -> str:
    payload = {"taskType": "geotiff_to_png", "priority": 1, "inputPayload": {}}
    job_id = str(_answer(api.post("/api/geo-jobs", json=payload))["id"])
    size = source.stat().st_size
    wanted = {"fileName": source.name, "fileSize": size, "fileType": "image/tiff"}
    slot = _answer(api.post(f"/api/geo-jobs/{job_id}/upload", json=wanted))
    headers = {**slot["headers"], "Content-Length": str(size)}
    # A signed URL needs no credentials.
    response = httpx.put(slot["uploadUrl"], content=_chunks(source), headers=headers, timeout=60, trust_env=False)
    if not response.is_success:
        _answer(response)
    return job_id


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _watch(api: httpx.Client, stack: Stack, job_id: str, console: Console) -> Job:
    """Show the job's events as they arrive. Return the finished job."""
    columns = (TextColumn("{task.fields[stage]:<10}"), BarColumn(None), TextColumn("{task.percentage:>3.0f} %"))
    deadline = time.monotonic() + PATIENCE
    after = 0
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("", total=100, stage="waiting")
        while time.monotonic() < deadline:
            stack.check()
            page = _answer(api.get(f"/api/geo-jobs/{job_id}/events", params={"after": after}))
            for event in page["events"]:
                after = event["id"]
                _advance(progress, bar, event)
            job = _answer(api.get(f"/api/geo-jobs/{job_id}"))
            if job["state"] in FINAL:
                if job["state"] == "succeeded":
                    progress.update(bar, completed=100, stage="done")
                return job
            time.sleep(LOOK_INTERVAL)
    raise StackError(f"The job did not finish within {PATIENCE:g} s. See {stack.worker_log}.")


def _advance(progress: Progress, bar: TaskID, event: Job) -> None:
    data = event["data"]
    if "percent" in data:
        progress.update(bar, completed=data["percent"], stage=data.get("stage") or event["state"])
    else:
        progress.update(bar, stage=event["state"])


def _answer(response: httpx.Response) -> Job:
    if response.is_success:
        answer: Job = response.json()
        return answer
    try:
        detail = response.json().get("detail")
    except ValueError:
        detail = response.text
    raise StackError(f"The API answered {response.status_code}: {detail}")


def _explain(job: Job, console: Console) -> None:
    error = job.get("error") or {}
    console.print(f"[red]❌ The job {job['state']}[/]: {error.get('message')} ({error.get('code')})")


def _fetch(api: httpx.Client, job: Job, output: Path) -> list[Path]:
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for item in _answer(api.get(f"/api/geo-jobs/{job['id']}/download/output"))["outputs"]:
        path = output / Path(item["name"]).name
        with httpx.stream("GET", item["url"], timeout=60, trust_env=False) as response, path.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                file.write(chunk)
        paths.append(path)
    return paths


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _crs(crs: Job | None) -> str:
    if crs is None:
        return "none: the file has no georeference"
    return f"EPSG:{crs['epsg']} ({crs['name']})" if crs["epsg"] else str(crs["name"])


# By suffix. The first match counts, so longer suffixes come first.
_KINDS = {
    "_thumb.png": "thumbnail",
    ".aux.xml": "CRS and position, for QGIS and GDAL",
    ".prj": "CRS, for ArcGIS and GeoServer",
    ".pgw": "world file: position, for every GIS",
    ".json": "metadata: findings, choices, bounds",
    ".png": "the picture",
}


def _kind(name: str) -> str:
    return next((kind for ending, kind in _KINDS.items() if name.endswith(ending)), "")


def _show(job: Job, paths: list[Path], console: Console) -> None:
    console.print(f"\n[bold]✅ Done.[/] The results are in {paths[0].parent}/:\n")
    width = max(len(path.name) for path in paths)
    for path in paths:
        console.print(f"  {path.name:<{width}}  {_size(path):>8}  {_kind(path.name)}", highlight=False)
    metadata = job["metadata"]
    console.print(f"\nSize     {metadata['width']} x {metadata['height']} pixels")
    console.print(f"CRS      {_crs(metadata['crs'])}")
    if metadata["bboxLonLat"]:
        west, south, east, north = metadata["bboxLonLat"]
        console.print(f"Bounds   {west:.6f} {south:.6f} to {east:.6f} {north:.6f} (longitude latitude)")
    times = ", ".join(f"{stage} {job['timings'][stage]:.2f} s" for stage in STAGES if stage in job["timings"])
    console.print(f"Time     {times}")
    console.print("\nOpen the .png with any viewer, or drag it into QGIS, which places it on the map.")
