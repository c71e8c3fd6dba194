"""The demonstration: one map goes the whole way, over HTTP, and the person watches."""

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
    """Send `source` (or a map that is made) through a local stack and leave the results in `output`.

    Returns:
        0 when the job succeeded, 1 when it did not.

    Raises:
        StackError: there is no such file, the stack cannot be started, or it breaks down.
    """
    console = Console(soft_wrap=True)
    if source is not None and not source.is_file():
        raise StackError(f"there is no file {source}")
    if source is None:
        console.print("Making a map: hill-shaded highland around 15.35° N 44.2° E …")
        try:
            source = terrain.make(output / "source" / "terrain.tif")
        except OSError as error:
            raise StackError(
                f"{output} cannot be written ({error.strerror or error}); name another folder with --output"
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
            raise StackError(f"the API broke off: {error}; see {stack.api_log}") from error
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
    # Whoever has the signed address needs no other right.
    response = httpx.put(slot["uploadUrl"], content=_chunks(source), headers=headers, timeout=60, trust_env=False)
    if not response.is_success:
        _answer(response)
    return job_id


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _watch(api: httpx.Client, stack: Stack, job_id: str, console: Console) -> Job:
    """Show the job's events as they come, until it is over."""
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
    raise StackError(f"the job was not over after {PATIENCE:g} s; see {stack.worker_log}")


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
        said = response.json().get("detail")
    except ValueError:
        said = response.text
    raise StackError(f"the API answered {response.status_code}: {said}")


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
        return "none: the file does not say where it is"
    return f"EPSG:{crs['epsg']} ({crs['name']})" if crs["epsg"] else str(crs["name"])


# By how a name ends; the longest ending that fits counts.
_KINDS = {
    "_thumb.png": "thumbnail",
    ".aux.xml": "CRS and position, for QGIS and GDAL",
    ".prj": "CRS, for ArcGIS and GeoServer",
    ".pgw": "world file: position, for every GIS",
    ".json": "metadata: findings, choices, bounds",
    ".png": "the picture",
}


def _what(name: str) -> str:
    return next((kind for ending, kind in _KINDS.items() if name.endswith(ending)), "")


def _show(job: Job, paths: list[Path], console: Console) -> None:
    console.print(f"\n[bold]✅ Done.[/] In {paths[0].parent}/ there are now:\n")
    width = max(len(path.name) for path in paths)
    for path in paths:
        console.print(f"  {path.name:<{width}}  {_size(path):>8}  {_what(path.name)}", highlight=False)
    metadata = job["metadata"]
    console.print(f"\nSize     {metadata['width']} x {metadata['height']} pixels")
    console.print(f"CRS      {_crs(metadata['crs'])}")
    if metadata["bboxLonLat"]:
        west, south, east, north = metadata["bboxLonLat"]
        console.print(f"Bounds   {west:.6f} {south:.6f} to {east:.6f} {north:.6f} (longitude latitude)")
    times = ", ".join(f"{stage} {job['timings'][stage]:.2f} s" for stage in STAGES if stage in job["timings"])
    console.print(f"Time     {times}")
    console.print("\nLook at it: open the .png with any viewer, or drag it into QGIS, where it lands in its place.")
