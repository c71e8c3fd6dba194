"""Pages in headless Chromium, with the map libraries pinned in tests/maps."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).parents[1] / "maps"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = ", ".join(
    name
    for name, found in (
        ("node", shutil.which("node")),
        ("npm", shutil.which("npm")),
        ("chromium (Debian: chromium)", CHROMIUM),
    )
    if not found
)
"""The programs that these tests need and that are not installed."""


@dataclass(frozen=True)
class Look:
    """A page to open: its URL, the path of its screenshot, and places to locate in pixels."""

    url: str
    screenshot: Path
    places: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Seen:
    """An opened page: (rows, columns, 3) as displayed, and the pixels of its places."""

    pixels: NDArray[np.uint8]
    points: NDArray[np.float64]
    errors: Sequence[str]
    overlays: int


def install(folder: Path) -> Path:
    """Install the pinned packages in a folder. Return its `node_modules`."""
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(HERE / name, folder / name)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--prefer-offline"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    return folder / "node_modules"


def open_pages(modules: Path, looks: Iterable[Look]) -> list[Seen]:
    """Open pages in one browser, one after the other."""
    looks = list(looks)
    order = {
        "modules": str(modules),
        "chromium": CHROMIUM,
        "looks": [{"url": look.url, "screenshot": str(look.screenshot), "places": look.places} for look in looks],
    }
    ended = subprocess.run(
        ["node", HERE / "look.mjs"], input=json.dumps(order), capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    return [
        Seen(
            np.asarray(Image.open(look.screenshot).convert("RGB")),
            np.array(answer["points"], dtype=np.float64),
            answer["errors"],
            answer["overlays"],
        )
        for look, answer in zip(looks, json.loads(ended.stdout), strict=True)
    ]
