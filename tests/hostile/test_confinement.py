"""A compromised child reaches nothing. Each sandbox layer is attacked, and missing ones are reported."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from geoprocessing_worker import worker
from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import ConfigurationError
from geoprocessing_worker.render.options import RenderOptions
from geoprocessing_worker.sandbox import landlock
from geoprocessing_worker.sandbox.landlock import AllowedPaths, Layer
from geoprocessing_worker.sandbox.limits import Limits
from geoprocessing_worker.sandbox.process import Sandbox
from geoprocessing_worker.tasks.picture import ConversionRequest, ConversionResult, convert
from tests.support.attacks import DONE, attack, tell_limits
from tests.support.canary import Canary
from tests.support.child_work import ChildReply, Deed
from tests.support.processes import ROOT
from tests.support.rasters import Tiff, quarters

PRELOAD = ("geoprocessing_worker.tasks.preload", "tests.support.attacks")
LIMITS = Limits(cpu_seconds=1234, open_files=200)
pytestmark = pytest.mark.skipif(
    bool(landlock.missing_layers()), reason=f"not in this kernel: {landlock.missing_layers()}"
)


def box(*, confine: bool = True) -> Sandbox[Deed, ChildReply]:
    return Sandbox(attack, ChildReply, preload=PRELOAD, confine=confine)


def aim_of(name: str, bird: Canary, tmp_path: Path) -> Path:
    return {
        "write a file": tmp_path,
        "connect by TCP": Path(bird.url.split(":")[2].split("/")[0]),
        "send by UDP": Path("9"),
        "connect to a Unix socket": tmp_path / "socket",
    }.get(name, bird.path)


REFUSED = [
    "read a file",
    "read its environment",
    "read the parent's environment",
    "write a file",
    "empty a file",
    "empty a file by reading",
    "empty a file by neither",
    "delete a file",
    "link a file",
    "connect by TCP",
    "send by UDP",
    "connect to a Unix socket",
    "fork",
    "start a program",
    "signal the parent",
    "signal everybody",
    "trace",
    "use io_uring",
    "use userfaultfd",
    "open a process",
    "read a process's memory",
    "share memory",
    "make a queue",
    "set the clock",
    "write its own memory",
    "run from memory",
    "look at all processes",
    "leave something in shared memory",
    "change a file's rights",
    "change a file's owner",
    "change a file's time",
    "change a file's attributes",
    "connect to an abstract socket",
    "make a FIFO",
    "signal by a pipe's owner",
    "own a pipe by ioctl",
    "clear its death signal",
    "set a limit",
    "renice the parent",
    "renice all of the user",
    "idle the parent",
    "pin the parent",
    "idle the parent's disk",
    "take all asynchronous I/O",
    "watch a folder",
    "start watching",
    "make a namespace in a thread",
    "use an unknown call",
]


@pytest.mark.parametrize("name", REFUSED)
async def test_a_compromised_process_reaches_nothing(name: str, bird: Canary, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        deed = Deed(name=name, path=aim_of(name, bird, tmp_path))
        sandbox = box()
        sandbox.fork_ahead()  # it has run without restrictions, and has none left
        reply = await sandbox.run(deed, lambda *_: None, AllowedPaths(writable=(tmp_path / "job",)))
    assert reply.text == "PermissionError"
    assert bird.touched() == []


@pytest.mark.parametrize("name", ["read a file", "write a file", "connect by TCP", "send by UDP", "fork", "trace"])
async def test_the_attacks_succeed_without_a_sandbox(name: str, bird: Canary, tmp_path: Path) -> None:
    deed = Deed(name=name, path=aim_of(name, bird, tmp_path))
    assert (await box(confine=False).run(deed, lambda *_: None)).text == DONE


@pytest.mark.parametrize(
    ("name", "layers_on"),
    [
        ("connect by TCP", {"files", "tcp"}),
        ("connect by TCP", {"system_calls"}),
        ("signal the parent", {"files", "signals"}),
        ("signal the parent", {"system_calls"}),
        ("empty a file", {"system_calls"}),
        ("empty a file by reading", {"files"}),
        ("empty a file by reading", {"system_calls"}),
        ("empty a file by neither", {"system_calls"}),
        ("signal by a pipe's owner", {"system_calls"}),
        ("own a pipe by ioctl", {"system_calls"}),
    ],
)
def test_each_of_two_layers_holds_alone(name: str, layers_on: set[str], bird: Canary, tmp_path: Path) -> None:
    deed = f"a.Deed(name={name!r}, path=Path({str(aim_of(name, bird, tmp_path))!r}))"
    script = (
        "from geoprocessing_worker.sandbox import landlock as c; from pathlib import Path\n"
        f"on = tuple(l for l in c.layers() if l.name in {layers_on!r}); c.layers = lambda: on\n"
        f"import tests.support.attacks as a; c.restrict(c.NO_PATHS); print(a.attack({deed}, None).text)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "PermissionError", ran.stderr
    assert bird.touched() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AS", LIMITS.memory_bytes),
        ("CPU", LIMITS.cpu_seconds),
        ("FSIZE", LIMITS.file_bytes),
        ("NOFILE", LIMITS.open_files),
        ("CORE", 0),  # A core dump would leave its memory, and the file in it, readable for others.
        ("umask", 0o077),
        ("no_new_privs", 1),
        ("signal when the parent dies", signal.SIGKILL),
        ("leads its session", True),
        ("standard files", [Path(os.devnull).stat().st_rdev] * 3),
    ],
)
async def test_each_limit_is_set(name: str, value: object) -> None:
    reply = await Sandbox(tell_limits, ChildReply, preload=PRELOAD, limits=LIMITS).run(Deed(name=""), lambda *_: None)
    assert json.loads(reply.text)[name] == value


BY_OURSELVES = """
import asyncio, ctypes, resource
from geoprocessing_worker.sandbox import landlock, libc
from geoprocessing_worker.sandbox.process import Sandbox
from tests.support.attacks import tell_limits
from tests.support.child_work import ChildReply, Deed
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
box = Sandbox(tell_limits, ChildReply, confine=False)
print(asyncio.run(box.run(Deed(name=""), lambda *_: None)).text)
landlock.layers = lambda: ()
landlock.restrict(landlock.NO_PATHS)
libc.hide_memory()
prctl = ctypes.CDLL(None).prctl
print(prctl(39, 0, 0, 0, 0), prctl(3, 0, 0, 0, 0))
"""


def test_core_dumps_and_new_privileges_are_off_by_the_worker_itself() -> None:
    """No core dump of a child, even if the system writes some, nor of the worker. No new rights without Landlock."""
    ran = subprocess.run([sys.executable, "-c", BY_OURSELVES], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    limits, flags = ran.stdout.splitlines()
    assert json.loads(limits)["CORE"] == 0
    assert flags == "1 0"  # PR_GET_NO_NEW_PRIVS, PR_GET_DUMPABLE


@pytest.mark.parametrize("name", ["write much", "open many files", "make threads"])
async def test_reaching_a_limit_is_an_error_and_not_a_crash(name: str, bird: Canary, tmp_path: Path) -> None:
    path = tmp_path if name == "write much" else bird.path
    reply = await Sandbox(attack, ChildReply, preload=PRELOAD, limits=LIMITS, confine=False).run(
        Deed(name=name, path=path), lambda *_: None
    )
    assert reply.text == "OSError"


async def test_a_job_reaches_its_own_files_only(tmp_path: Path) -> None:
    """It reads its input and writes its output folder. Its neighbor's folder is closed like all others."""
    mine, neighbors = tmp_path / "mine", tmp_path / "neighbors"
    for folder in (mine, neighbors):
        folder.mkdir()
        (folder / "input").write_text("a map")
    reach = AllowedPaths((mine / "input",), (mine,))
    for name, path, outcome in [
        ("read a file", mine / "input", DONE),
        ("write a file", mine, DONE),
        ("read a file", neighbors / "input", "PermissionError"),
        ("write a file", neighbors, "PermissionError"),
    ]:
        assert (await box().run(Deed(name=name, path=path), lambda *_: None, reach)).text == outcome, (name, path)


async def test_gdal_has_only_the_needed_drivers(tmp_path: Path) -> None:
    """A missing driver cannot be made to read another file."""
    tif = Tiff(quarters(20)).write(tmp_path / "a.tif")
    vrt = tmp_path / "a.vrt"
    vrt.write_text(
        '<VRTDataset rasterXSize="20" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{tif}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    for name, path, outcome in (("open a GeoTIFF", tif, DONE), ("open a VRT", vrt, "RasterioIOError")):
        reply = await box().run(Deed(name=name, path=path), lambda *_: None, AllowedPaths((tmp_path,)))
        assert reply.text == outcome


async def test_the_placeholder_for_vrt_opens_no_vrt(tmp_path: Path) -> None:
    """GDAL's COG driver creates VRT datasets in memory. No VRT opens afterwards, by any name."""
    data = np.concatenate([quarters(20), np.full((1, 20, 20), 255, np.uint8)])
    source = Tiff(data, colors=("red", "green", "blue", "alpha")).write(tmp_path / "a.tif")
    (tmp_path / "a.vrt").write_text(
        '<VRTDataset rasterXSize="20" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{source}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    deed = Deed(name="open a VRT after using some", path=tmp_path)
    reply = await box().run(deed, lambda *_: None, AllowedPaths((tmp_path,), (tmp_path,)))
    assert reply.text == "PermissionError"
    assert (tmp_path / "made.tif").exists()


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_a_legitimate_file_is_rendered_in_the_sandbox(output_format: str, tmp_path: Path) -> None:
    """PROJ finds its grids and codes, OpenCV and Pillow their codecs and threads, GDAL its drivers."""
    source = Tiff(quarters(700), crs="EPSG:32638", overviews=(2,), profile={"compress": "deflate"}).write(
        tmp_path / "a.tif"
    )
    out = tmp_path / "out"
    out.mkdir()
    sandbox = Sandbox(convert, ConversionResult, preload=("geoprocessing_worker.tasks.preload",))
    request = ConversionRequest(
        source=source,
        output_folder=out,
        stem="a",
        options=RenderOptions.model_validate({"outputFormat": output_format, "maxSize": 300}),
        source_name="a.tif",
    )
    result = await sandbox.run(request, lambda *_: None, AllowedPaths((source,), (out,)))
    assert {output.path.name for output in result.outputs} == {path.name for path in out.iterdir()}


WITHOUT_LANDLOCK = """
import errno
from geoprocessing_worker import worker
from geoprocessing_worker.sandbox import libc, seccomp as syscalls
steps = [syscalls._step(syscalls.LOAD, syscalls.NUMBER), syscalls._step(syscalls.EQUAL, 444, 0, 1),
         syscalls._step(syscalls.RETURN, syscalls.ERRNO | errno.ENOSYS),
         syscalls._step(syscalls.RETURN, syscalls.ALLOW)]
libc.forbid_new_privileges()
libc.apply_filter(b"".join(steps))
raise SystemExit(worker.main([]))
"""


def test_require_sandbox_refuses_a_kernel_without_landlock(tmp_path: Path) -> None:
    """A real process with a faked kernel answer. Without the setting it starts, and names the missing layer."""
    (tmp_path / "file").touch()  # A worker that continues would end here.
    settings = {"API_BASE_URL": "http://127.0.0.1:1", "WORKER_AUTH_TOKEN": "t", "TEMP_DIR": str(tmp_path / "file")}
    errors = {}
    for required in ("true", "false"):
        ran = subprocess.run(
            [sys.executable, "-c", WITHOUT_LANDLOCK],
            env=os.environ | settings | {"REQUIRE_SANDBOX": required},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == worker.ExitCode.CONFIGURATION, ran.stderr
        errors[required] = ran.stderr
    assert "REQUIRE_SANDBOX: this machine lacks files: off" in errors["true"]
    assert "REQUIRE_SANDBOX" not in errors["false"]
    assert "TEMP_DIR" in errors["false"]


def test_require_sandbox_refuses_each_missing_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(landlock, "layers", lambda: (Layer("files", "Landlock is off"), Layer("limits", None)))
    (tmp_path / "file").touch()  # A worker that continues would end here.
    settings = Settings(
        api_base_url="http://127.0.0.1:1", worker_auth_token="t", require_sandbox=True, temp_dir=tmp_path / "file"
    )
    with pytest.raises(ConfigurationError, match=r"REQUIRE_SANDBOX: .*files: off \(Landlock is off\)"):
        worker._work(worker._parser().parse_args([]), settings)
