"""Messages of the wire, in the API's form."""

from typing import Any


def claimed_job(
    *,
    lease_seconds: float = 60,
    uploads: list[str] | None = None,
    download_url: str = "http://127.0.0.1:1/in",
    **more: Any,
) -> dict[str, Any]:
    return {
        "id": "01900000-0000-7000-8000-000000000001",
        "taskType": "geotiff_to_png",
        "priority": 1,
        "attempt": 1,
        "maxAttempts": 3,
        "leaseToken": "1.secret",
        "leaseSeconds": lease_seconds,
        "leaseExpiresAt": "2030-01-01T00:00:00Z",
        "heartbeatSeconds": 20,
        "timeoutSeconds": 600,
        "inputPayload": {},
        "input": {
            "fileName": "map.tif",
            "downloadUrl": download_url,
            "sizeBytes": 10,
            "contentType": "image/tiff",
        },
        "uploads": [
            {"name": name, "url": f"http://127.0.0.1:1/{name}", "method": "PUT", "headers": {}, "maxBytes": 10**9}
            for name in uploads or []
        ],
        "previousErrors": [],
        **more,
    }


def renewed(*, seconds: float = 60) -> dict[str, Any]:
    return {"leaseExpiresAt": "2030-01-01T00:00:00Z", "leaseSeconds": seconds, "cancel": None}
