"""The scripts for a user who may run the checkout but not write it, as services do. As root, that is another user."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_start_worker import HEALTHY, announced
from tests.support.api import WORKER_TOKEN
from tests.support.checkout import copy_project, make_environment, public_python
from tests.support.processes import Process, Programs, clean_environment
from tests.support.waiting import wait_until

NOBODY = 65534
IS_ROOT = os.geteuid() == 0
AS_USER: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if IS_ROOT else {}


@dataclass(frozen=True)
class Checkout:
    """A copy of the project that its user cannot write, with a ready environment.

    Attributes:
        folder: the checkout.
        home: a folder of the user's own.
    """

    folder: Path
    home: Path

    def start(self, *command: str, **settings: str) -> Process:
        """Run a command as the user, in the user's folder, with its output in `output.log`."""
        with (self.home / "output.log").open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=self.home,
                env=clean_environment(**{"HOME": str(self.home), "TMPDIR": str(self.home)} | settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **AS_USER,
            )

    def run(self, *command: str, **settings: str) -> tuple[int, str]:
        """Run a command to its end; its exit code and output."""
        code = self.start(*command, **settings).wait(100)
        return code, self.said()

    def said(self) -> str:
        """What the last command printed."""
        return (self.home / "output.log").read_text()

    def script(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    """Beside each other in a folder that others can enter; pytest's own are private."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    made = Checkout(folder / "project", folder / "home")
    try:
        folder.chmod(0o755)
        made.home.mkdir()
        copy_project(made.folder)
        make_environment(made.folder / ".venv", made.folder)
        if IS_ROOT:
            os.chown(made.home, NOBODY, NOBODY)
        else:
            subprocess.run(["chmod", "-R", "a-w", made.folder], check=True)
        yield made
    finally:
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)
        shutil.rmtree(folder)


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def test_a_service_user_runs_the_worker_and_the_health_check_from_a_checkout_that_is_not_its_own(
    checkout: Checkout, stack: Programs, small_map: Path
) -> None:
    """The worker does a job, the health check prints the agreed lines, and nothing is written into the checkout."""
    settings = {"API_BASE_URL": stack.base_url, "WORKER_AUTH_TOKEN": WORKER_TOKEN}
    if IS_ROOT:  # a service manager reads the settings as root and hands them on
        (checkout.folder / ".env").write_text("WORKER_AUTH_TOKEN=another-token-of-some-length\n")
        (checkout.folder / ".env").chmod(0o600)
    before = listing(checkout.folder)
    code, said = checkout.run(public_python(), checkout.script("health_check.py"), **settings)
    assert (code, said.splitlines()[1:]) == (0, HEALTHY[1:])
    worker = checkout.start(checkout.script("start_worker.sh"), **settings | {"LOG_FILE": "own.log"})
    try:
        done = stack.until_over(stack.submit(small_map), 90)
    finally:
        worker.send_signal(signal.SIGTERM)
    assert worker.wait(40) == 0, checkout.said()
    assert done["state"] == "succeeded"
    assert listing(checkout.folder) == before


def test_a_user_who_may_not_write_the_checkout_gets_a_local_stack_in_its_own_folders(
    checkout: Checkout, small_map: Path
) -> None:
    """State, log and demo-output go to the user's folders, also beside the state of the checkout's owner."""
    shutil.copy(small_map, checkout.home / "map.tif")
    if IS_ROOT:
        (checkout.folder / ".local").mkdir(mode=0o700)
        (checkout.folder / ".local" / "stack.env").touch(mode=0o600)
    before = listing(checkout.folder)
    code, said = checkout.run(checkout.script("start_worker.sh"), "--demo", "map.tif", API_PORT="0")
    assert code == 0, said
    assert (checkout.home / "demo-output" / "map.png").exists()
    state = checkout.home / ".local" / "state" / "geoprocessing-worker"
    assert {"stack.env", "worker.log", "api.log", "secrets.env"} <= {path.name for path in state.iterdir()}
    stack = checkout.start(checkout.script("start_worker.sh"), API_PORT="0")
    try:
        announced(checkout.home, stack)
        (checkout.home / "output.log").rename(checkout.home / "stack.log")
        wait_until(lambda: "worker_started" in (state / "worker.log").read_text(), "the worker to start", 60)
        code, said = checkout.run(public_python(), checkout.script("health_check.py"))
    finally:
        stack.send_signal(signal.SIGTERM)
    assert stack.wait(60) == 0
    assert said.splitlines() == HEALTHY
    assert listing(checkout.folder) == before


def test_without_an_environment_that_it_can_use_a_user_is_told_how_to_get_one(checkout: Checkout) -> None:
    """Missing, unreadable and outdated environments end in one message that names VENV_DIR; nothing is removed."""
    kept = checkout.folder / ".venv"
    stamp = kept / ".installed"
    missing = str(checkout.folder / "missing")
    kept.chmod(0o755)
    stamp.chmod(0o644)
    stamp.write_text("requirements.txt 1 1 /elsewhere\n")
    kept.chmod(0o555)
    before = listing(kept)
    for venv_dir in (missing, ""):
        code, said = checkout.run(checkout.script("start_worker.sh"), "--demo", VENV_DIR=venv_dir)
        assert (code, "set VENV_DIR to a folder of your own" in said) == (1, True), said
    code, said = checkout.run(public_python(), checkout.script("health_check.py"), VENV_DIR=missing)
    assert (code, "set VENV_DIR to the folder of one" in said) == (1, True), said
    assert listing(kept) == before


@pytest.mark.skipif(not IS_ROOT, reason="needs a second user")
@pytest.mark.parametrize("name", [".installed", "bin"])
def test_an_environment_that_cannot_be_read_counts_as_none(checkout: Checkout, name: str) -> None:
    (checkout.folder / ".venv" / name).chmod(0o600)
    code, said = checkout.run(checkout.script("start_worker.sh"), "--demo")
    assert (code, "set VENV_DIR to a folder of your own" in said) == (1, True), said


def test_an_environment_elsewhere_is_used_when_venv_dir_names_it(checkout: Checkout) -> None:
    """By the script and by the health check, while the checkout's own is of no use."""
    elsewhere = checkout.home / "environment"
    make_environment(elsewhere, checkout.folder)
    (checkout.folder / ".venv" / "bin").chmod(0o000)
    try:
        for script in (["bash", checkout.script("start_worker.sh"), "--help"], [checkout.script("health_check.py")]):
            command = script if len(script) > 1 else [public_python(), *script]
            _, said = checkout.run(*command, VENV_DIR=str(elsewhere))
            assert "--workers N" in said or "All dependencies available" in said, said
    finally:
        (checkout.folder / ".venv" / "bin").chmod(0o755)


def test_a_folder_with_other_files_is_never_emptied_for_an_environment(checkout: Checkout) -> None:
    own = checkout.home / "letters"
    own.mkdir()
    (own / "letter.txt").write_text("dear")
    if IS_ROOT:
        os.chown(own, NOBODY, NOBODY)
    code, said = checkout.run(checkout.script("start_worker.sh"), "--demo", VENV_DIR=str(own))
    assert (code, "holds other files" in said) == (1, True), said
    assert (own / "letter.txt").read_text() == "dear"


@pytest.mark.skipif(not IS_ROOT, reason="needs a second user")
def test_settings_that_cannot_be_read_are_a_mistake_unless_the_environment_has_them(checkout: Checkout) -> None:
    """Else a service user with a private `.env` would start a stack of its own instead of its worker."""
    (checkout.folder / ".env").write_text("API_BASE_URL=http://127.0.0.1:9\n")
    (checkout.folder / ".env").chmod(0o600)
    code, said = checkout.run(checkout.script("start_worker.sh"))
    assert (code, f"{checkout.folder}/.env cannot be read by this user" in said) == (78, True), said
    code, said = checkout.run(public_python(), checkout.script("health_check.py"))
    assert (code, ".env cannot be read by this user" in said) == (1, True), said
    python = str(checkout.folder / ".venv" / "bin" / "python")
    code, said = checkout.run(python, "-m", "geo_jobs_api", "jwt", "--sub", "ada")
    assert (code != 0, ".env cannot be read by this user" in said) == (True, True), said
    data = str(checkout.home / "data")
    code, said = checkout.run(python, "-m", "geo_jobs_api", "jwt", "--sub", "ada", PGHOST="db", DATA_DIR=data)
    assert (code, said.count(".")) == (0, 2), said
