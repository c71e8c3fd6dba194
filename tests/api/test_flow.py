"""A whole job over HTTP, with the documented requests verbatim."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from uuid import uuid4

import httpx

from tests.support.api import RunningApi, make_jwt, worker_header
from tests.support.clients import get, put


def curl(*arguments: str) -> str:
    result = subprocess.run(["curl", "-sS", *arguments], check=True, capture_output=True, text=True, timeout=30)
    return result.stdout


def test_the_documented_curl_calls_carry_a_file_from_creation_to_download(api: RunningApi, tmp_path: Path) -> None:
    """Create, PUT, read, events and download work as documented, without Content-Type where curl sends none."""
    root, auth = f"{api.base_url}/api/geo-jobs", f"Authorization: Bearer {make_jwt()}"
    source = tmp_path / "map.tif"
    source.write_bytes(b"II*\0" + bytes(996))
    created = json.loads(
        curl(
            "-X", "POST", root, "-H", auth, "-H", "Content-Type: application/json", "-d",
            '{"taskType":"geotiff_to_png","priority":1,"inputPayload":{"maxSize":2048,"outputFormat":"png"}}',
        )
    )  # fmt: skip
    assert created["state"] == "awaiting_upload"
    job = f"{root}/{created['id']}"
    upload = json.loads(
        curl(
            "-X",
            "POST",
            f"{job}/upload",
            "-H",
            auth,
            "-d",
            '{"fileName":"map.tif","fileSize":1000,"fileType":"image/tiff"}',
        )
    )
    assert curl("-X", "PUT", upload["uploadUrl"], "--data-binary", f"@{source}") == ""
    assert json.loads(curl(job, "-H", auth))["state"] == "queued"

    with httpx.Client(base_url=f"{api.base_url}/api/internal/geo-jobs", headers=worker_header()) as worker:
        claim = {"claimId": str(uuid4()), "workerId": "w-1", "workerName": "w", "taskTypes": ["geotiff_to_png"]}
        claimed = worker.post("/claim", json=claim).raise_for_status().json()["jobs"][0]
        assert get(claimed["input"]["downloadUrl"]).content == source.read_bytes()
        lease = {"Lease-Token": claimed["leaseToken"]}
        assert worker.patch(f"/{created['id']}/heartbeat", headers=lease).raise_for_status().json()["cancel"] is None
        slot = next(item for item in claimed["uploads"] if item["name"] == "map.png")
        picture = b"\x89PNG" + bytes(100)
        put(slot["url"], content=picture).raise_for_status()
        output = {
            "name": "map.png", "sizeBytes": len(picture), "sha256": hashlib.sha256(picture).hexdigest(),
            "contentType": "image/png",
        }  # fmt: skip
        done = worker.patch(f"/{created['id']}/complete", headers=lease, json={"outputs": [output]})
        assert done.raise_for_status().json() == {"state": "succeeded", "replayed": False}

    events = json.loads(curl(f"{job}/events", "-H", auth))["events"]
    assert [event["type"] for event in events] == [
        "created", "upload_requested", "queued", "claimed", "started", "succeeded",
    ]  # fmt: skip
    links = json.loads(curl(f"{job}/download/output", "-H", auth))["outputs"]
    assert get(links[0]["url"]).content == picture
