"""The scripts under a user that may run the checkout but not write it, as services do. Root uses a second user."""

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
        """Run a command to its end. Return its exit code and output."""
        code = self.start(*command, **settings).wait(100)
        return code, self.output()

    def output(self) -> str:
        """The output of the last command."""
        return (self.home / "output.log").read_text()

    def script(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    """Checkout and home in a folder that others can enter. pytest's own are private."""
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


def test_a_service_user_runs_worker_and_health_check_from_a_read_only_checkout(
    checkout: Checkout, stack: Programs, small_map: Path
) -> None:
    """The worker does a job, the health check prints its fixed lines, and the checkout stays unchanged."""
    settings = {"API_BASE_URL": stack.base_url, "WORKER_AUTH_TOKEN": WORKER_TOKEN}
    if IS_ROOT:  # Service managers read the settings as root and pass them on.
        (checkout.folder / ".env").write_text("WORKER_AUTH_TOKEN=another-token-of-some-length\n")
        (checkout.folder / ".env").chmod(0o600)
    before = listing(checkout.folder)
    code, output = checkout.run(public_python(), checkout.script("health_check.py"), **settings)
    assert (code, output.splitlines()[1:]) == (0, HEALTHY[1:])
    worker = checkout.start(checkout.script("start_worker.sh"), **settings | {"LOG_FILE": "own.log"})
    try:
        done = stack.until_over(stack.submit(small_map), 90)
    finally:
        worker.send_signal(signal.SIGTERM)
    assert worker.wait(40) == 0, checkout.output()
    assert done["state"] == "succeeded"
    assert listing(checkout.folder) == before


def test_a_user_without_write_access_gets_a_local_stack_in_its_own_folders(checkout: Checkout, small_map: Path) -> None:
    """State, log and demo-output go to the user's folders, also if the checkout's owner has a state."""
    shutil.copy(small_map, checkout.home / "map.tif")
    if IS_ROOT:
        (checkout.folder / ".local").mkdir(mode=0o700)
        (checkout.folder / ".local" / "stack.env").touch(mode=0o600)
    before = listing(checkout.folder)
    code, output = checkout.run(checkout.script("start_worker.sh"), "--demo", "map.tif", API_PORT="0")
    assert code == 0, output
    assert (checkout.home / "demo-output" / "map.png").exists()
    state = checkout.home / ".local" / "state" / "geoprocessing-worker"
    assert {"stack.env", "worker.log", "api.log", "secrets.env"} <= {path.name for path in state.iterdir()}
    stack = checkout.start(checkout.script("start_worker.sh"), API_PORT="0")
    try:
        announced(checkout.home, stack)
        (checkout.home / "output.log").rename(checkout.home / "stack.log")
        wait_until(lambda: "worker_started" in (state / "worker.log").read_text(), "the worker to start", 60)
        code, output = checkout.run(public_python(), checkout.script("health_check.py"))
    finally:
        stack.send_signal(signal.SIGTERM)
    assert stack.wait(60) == 0
    assert output.splitlines() == HEALTHY
    assert listing(checkout.folder) == before


def test_without_a_usable_environment_the_message_names_the_cure(checkout: Checkout) -> None:
    """Missing, unreadable and outdated environments give one message that names VENV_DIR. No file is removed."""
    kept = checkout.folder / ".venv"
    stamp = kept / ".installed"
    missing = str(checkout.folder / "missing")
    kept.chmod(0o755)
    stamp.chmod(0o644)
    stamp.write_text("requirements.txt 1 1 /elsewhere\n")
    kept.chmod(0o555)
    before = listing(kept)
    for venv_dir in (missing, ""):
        code, output = checkout.run(checkout.script("start_worker.sh"), "--demo", VENV_DIR=venv_dir)
        assert (code, "set VENV_DIR to a folder of your own" in output) == (1, True), output
    code, output = checkout.run(public_python(), checkout.script("health_check.py"), VENV_DIR=missing)
    assert (code, "set VENV_DIR to another environment" in output) == (1, True), output
    assert listing(kept) == before


@pytest.mark.skipif(not IS_ROOT, reason="needs a second user")
@pytest.mark.parametrize("name", [".installed", "bin"])
def test_an_unreadable_environment_counts_as_none(checkout: Checkout, name: str) -> None:
    (checkout.folder / ".venv" / name).chmod(0o600)
    code, output = checkout.run(checkout.script("start_worker.sh"), "--demo")
    assert (code, "set VENV_DIR to a folder of your own" in output) == (1, True), output


def test_venv_dir_names_an_environment_elsewhere(checkout: Checkout) -> None:
    """By the script and the health check, if the checkout's own is unusable."""
    elsewhere = checkout.home / "environment"
    make_environment(elsewhere, checkout.folder)
    (checkout.folder / ".venv" / "bin").chmod(0o000)
    try:
        for script in (["bash", checkout.script("start_worker.sh"), "--help"], [checkout.script("health_check.py")]):
            command = script if len(script) > 1 else [public_python(), *script]
            _, output = checkout.run(*command, VENV_DIR=str(elsewhere))
            assert "--workers N" in output or "All dependencies available" in output, output
    finally:
        (checkout.folder / ".venv" / "bin").chmod(0o755)


def test_a_folder_with_other_files_is_never_emptied_for_an_environment(checkout: Checkout) -> None:
    own = checkout.home / "letters"
    own.mkdir()
    (own / "letter.txt").write_text("dear")
    if IS_ROOT:
        os.chown(own, NOBODY, NOBODY)
    code, output = checkout.run(checkout.script("start_worker.sh"), "--demo", VENV_DIR=str(own))
    assert (code, "holds other files" in output) == (1, True), output
    assert (own / "letter.txt").read_text() == "dear"


@pytest.mark.skipif(not IS_ROOT, reason="needs a second user")
def test_unreadable_settings_are_refused_unless_the_environment_has_them(checkout: Checkout) -> None:
    """Otherwise a service user with a private `.env` would start a local stack instead of its worker."""
    (checkout.folder / ".env").write_text("API_BASE_URL=http://127.0.0.1:9\n")
    (checkout.folder / ".env").chmod(0o600)
    code, output = checkout.run(checkout.script("start_worker.sh"))
    assert (code, f"{checkout.folder}/.env cannot be read by this user" in output) == (78, True), output
    code, output = checkout.run(public_python(), checkout.script("health_check.py"))
    assert (code, ".env cannot be read by this user" in output) == (1, True), output
    python = str(checkout.folder / ".venv" / "bin" / "python")
    code, output = checkout.run(python, "-m", "geo_jobs_api", "jwt", "--sub", "ada")
    assert (code != 0, ".env cannot be read by this user" in output) == (True, True), output
    data = str(checkout.home / "data")
    code, output = checkout.run(python, "-m", "geo_jobs_api", "jwt", "--sub", "ada", PGHOST="db", DATA_DIR=data)
    assert (code, output.count(".")) == (0, 2), output
