"""Packets that vanish and disks that are full, in namespaces of the test's own."""

import subprocess
import sys

import pytest

from tests.chaos import isolation
from tests.support.processes import ROOT

OBSTACLE = isolation.obstacle()
pytestmark = pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE)

PACKETS = """
import socket
from tests.chaos.isolation import dropped_packets

def reached(server):
    try:
        with socket.create_connection(server.getsockname(), timeout=0.5):
            return True
    except TimeoutError:
        return False

with socket.create_server(("127.0.0.1", 0)) as cut, socket.create_server(("127.0.0.1", 0)) as other:
    for to, back in ((True, False), (False, True)):
        with dropped_packets([cut.getsockname()[1]], to=to, back=back, percent=100):
            print(reached(cut), reached(other))
    print(reached(cut))
"""
DISK = """
import tempfile
from pathlib import Path
from tests.chaos.isolation import full, mount_disk, unmount_disk

with tempfile.TemporaryDirectory() as folder:
    disk = Path(folder) / "disk"
    mount_disk(disk, 2)
    try:
        with full(disk):
            try:
                (disk / "file").write_bytes(b"x")
            except OSError as error:
                print(error.strerror)
        (disk / "file").write_bytes(bytes(10**6))
        print(sorted(path.name for path in disk.iterdir()))
    finally:
        unmount_disk(disk)
"""


def inside(code: str) -> list[str]:
    """Run code in new namespaces. Return the lines that it prints."""
    command = [
        "unshare",
        "--net",
        "--mount",
        "sh",
        "-c",
        'ip link set lo up && exec "$0" -c "$1"',
        sys.executable,
        code,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()


def test_packets_of_one_server_vanish_in_one_direction_and_come_back() -> None:
    assert inside(PACKETS) == ["False True", "False True", "True"]


def test_a_full_disk_takes_no_byte_and_has_its_room_back_afterwards() -> None:
    assert inside(DISK) == ["No space left on device", "['file']"]
