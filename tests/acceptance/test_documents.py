"""Run every block of commands in the documents as pasted, in order, against the stack that README starts.

A comment before a block gives the reason if it is not run. The number of such blocks is bounded. Only the ports differ
from the documents, since they may be in use here. Other documents begin with README's first definitions.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.acceptance.test_start_worker import announced
from tests.support.checkout import copy_project, make_environment
from tests.support.markdown import Block, blocks
from tests.support.processes import FINAL, ROOT, clean_environment, free_port, running
from tests.support.waiting import wait_until

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "docs/decisions/*.md", "examples/*/README.md", "tests/README.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
API_PAGE = "docs/API.md"
MAX_NOT_RUN = 5
README_PORTS = ("8000", "8765")
# Searches exit with 1 if there is no hit.
SEARCHES = "grep "
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


@dataclass
class Place:
    """A fresh copy of the project, in which the blocks run."""

    folder: Path
    ports: dict[str, str]
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def with_free_ports(self, text: str) -> str:
        """The text with free ports of this machine."""
        for port, free in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}").replace(f"server {port}", f"server {free}")
        return text

    @property
    def environment(self) -> dict[str, str]:
        return clean_environment(HOME=str(self.folder), API_PORT=self.ports["8000"], TMPDIR=str(self.folder / "tmp"))

    def paste(self, all_blocks: list[Block], before: str = "") -> str:
        """Run blocks in one shell. Fail on the first failing command. Return all output."""
        parts = [PREAMBLE, before]
        for block in all_blocks:
            if block.remark == "run beside":
                self._run(parts)
                self._start_beside(block)
                parts = [PREAMBLE, before]
            elif block.remark != "not run":
                refused = block.reason if block.remark == "refused here" else ""
                parts += [f"may_be_refused={json.dumps(refused)}", self.with_free_ports(block.text)]
        return self._run(parts)

    def _run(self, parts: list[str]) -> str:
        script = "\n".join([*parts, "jobs -p >> background.pids"])
        output, log = self.folder / "pasted.log", self.folder / "failed.log"
        log.write_text("")
        with output.open("w") as file:
            subprocess.run(
                ["bash", "-c", script],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=300,
                start_new_session=True,
            )
        output_text = output.read_text()
        for line in log.read_text().splitlines():
            code, refused, command = line.split("\t", 2)
            is_search = command.startswith(SEARCHES) and code == "1"
            is_expected = bool(refused) and all(words in output_text for words in refused.split(" | "))
            assert is_search or is_expected, f"exit code {code} of {command}\n{output_text[-3000:]}"
        return output_text

    def _start_beside(self, block: Block) -> None:
        """Start a block that needs its own terminal, and wait until it prints its address."""
        folder = self.folder / "beside"
        folder.mkdir()
        command = [
            "bash",
            "-c",
            f"cd {self.folder} && {self.with_free_ports(block.text).strip().replace('./', 'exec ./')}",
        ]
        process = self._stack.enter_context(running(command, folder, self.environment))
        announced(folder, process)

    def close(self) -> None:
        self._stack.close()
        background = self.folder / "background.pids"
        for pid in background.read_text().split() if background.exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)


# A failing command does not end the shell, like at a terminal. Its exit code is recorded.
# curl fails on a refusal, and prints it.
PREAMBLE = """
shopt -s expand_aliases
set -o pipefail -o errtrace
may_be_refused=
trap 'printf "%s\\t%s\\t%s\\n" $? "$may_be_refused" "${BASH_COMMAND%%$'"'\\n'"'*}" >> failed.log' ERR
curl() { command curl --fail-with-body "$@"; }
"""


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def with_commands() -> list[str]:
    """The documents that have blocks of commands."""
    return [document for document in DOCUMENTS if blocks(text_of(document), "bash")]


def definitions() -> str:
    """The lines of README that later blocks and documents use: address, token, helper."""
    lines = re.findall(r"^(?:API=|JWT=|field\(\)).*$", text_of("README.md"), re.MULTILINE)
    assert len(lines) == 3
    return "\n".join(lines)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A copy of the project in which README's blocks have run. Their stack continues to run."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    made = Place(folder / "project", {port: str(free_port()) for port in README_PORTS})
    try:
        folder.chmod(0o755)
        copy_project(made.folder)
        (made.folder / "tmp").mkdir()
        make_environment(made.folder / ".venv", made.folder)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def readme(place: Place) -> str:
    """The output of README's blocks, from the start of the stack."""
    return place.paste(blocks(text_of("README.md"), "bash"))


@pytest.mark.timeout(600)
def test_every_block_of_the_readme_runs_as_pasted(place: Place, readme: str) -> None:
    """Commands succeed, calls are accepted, and their files and job exist."""
    assert (place.folder / "demo-output" / "terrain.png").exists()
    assert (place.folder / "out" / "map.png").exists()
    assert '"name":"map.png"' in readme.replace('": "', '":"')
    assert "HEALTHY - Worker is ready to process jobs" in readme
    with caller_of(place) as person:
        assert [(job["taskType"], job["state"]) for job in jobs_of(person)] == [("geotiff_to_png", "succeeded")]


@pytest.mark.timeout(600)
def test_every_block_of_the_api_page_runs_as_pasted(place: Place, readme: str) -> None:
    """Beside README's stack. The pipeline's jobs succeed. Schedule and webhook exist."""
    place.paste(blocks(text_of(API_PAGE), "bash"), place.with_free_ports(definitions()))
    with caller_of(place) as person:
        wait_until(
            lambda: all(job["state"] in FINAL for job in jobs_of(person)), "the jobs of the pipeline to end", 120
        )
        kinds = ("geotiff_to_png", "geotiff_to_cog", "geotiff_to_tiles", "geotiff_info")
        assert {(job["taskType"], job["state"]) for job in jobs_of(person)} == {(kind, "succeeded") for kind in kinds}
        assert [one["name"] for one in person.get("/api/schedules").json()["schedules"]] == ["every morning"]
        assert len(person.get("/api/webhooks").json()["webhooks"]) == 1


def caller_of(place: Place) -> httpx.Client:
    return httpx.Client(base_url=place.with_free_ports("http://127.0.0.1:8000"), headers=place_token(place))


def jobs_of(person: httpx.Client) -> list[dict[str, str]]:
    found: list[dict[str, str]] = person.get("/api/geo-jobs").raise_for_status().json()["jobs"]
    return found


def place_token(place: Place) -> dict[str, str]:
    python = str(place.folder / ".venv" / "bin" / "python")
    command = [python, "-m", "geo_jobs_api", "jwt", "--sub", "you"]
    made = subprocess.run(
        command, cwd=place.folder, env=place.environment, capture_output=True, text=True, check=True, timeout=60
    )
    return {"Authorization": f"Bearer {made.stdout.strip()}"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", [name for name in with_commands() if name not in {"README.md", API_PAGE}])
def test_every_block_of_a_document_runs_as_pasted(document: str, place: Place, readme: str) -> None:
    """Beside README's stack, with one succeeded and one failed job."""
    place.paste(blocks(text_of(document), "bash"), place.with_free_ports(f"{definitions()}\n{FAILED_JOB}"))


# One dead letter, for the operator's commands.
FAILED_JOB = """
echo '<html>' > page.tif
FAILED=$(curl -s -X POST $API/api/geo-jobs -H "Authorization: Bearer $JWT" \\
  -d '{"taskType":"geotiff_to_png"}' | field '["id"]')
PUT_URL=$(curl -s -X POST $API/api/geo-jobs/$FAILED/upload -H "Authorization: Bearer $JWT" \\
  -d '{"fileName":"page.tif","fileSize":'$(stat -c %s page.tif)',"fileType":"image/tiff"}' | field '["uploadUrl"]')
curl -s -X PUT "$PUT_URL" --data-binary @page.tif
until curl -s $API/api/geo-jobs/$FAILED -H "Authorization: Bearer $JWT" | grep -q '"failed"'; do sleep 0.2; done
"""


@pytest.mark.parametrize(
    ("text", "remark", "reason", "is_found"),
    [
        ("true\ngrep -c x /dev/null\n", "", "", False),
        ("false\ntrue\n", "", "", True),
        ("x=$(false)\ntrue\n", "", "", True),
        ("f() { cat /nowhere; }\nf | wc -l\n", "", "", True),
        ("curl -s http://127.0.0.1:9/\n", "", "", True),
        ("cat /nowhere\n", "refused here", "No such file | nowhere", False),
        ("cat /nowhere\n", "refused here", "No such file | Permission denied", True),
        ("false\n", "not run", "it only fails here", False),
    ],
)
def test_a_command_that_fails_is_found(text: str, remark: str, reason: str, is_found: bool, tmp_path: Path) -> None:
    """A failure in the middle of a block counts. A search without a hit and a named refusal do not."""
    place = Place(tmp_path, {"8000": "8000"})
    with pytest.raises(AssertionError) if is_found else contextlib.nullcontext():
        place.paste([Block("bash", text, remark, reason)])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_of_json_are_json(document: str) -> None:
    for block in blocks(text_of(document), "json"):
        json.loads(block.text)


def test_few_blocks_are_not_run_and_each_has_a_reason() -> None:
    """A higher bound needs a reason."""
    not_run = [block for document in DOCUMENTS for block in blocks(text_of(document)) if block.remark == "not run"]
    assert len(not_run) <= MAX_NOT_RUN
    assert all(len(block.reason.split()) > 3 for block in not_run)


def test_every_fence_has_a_language() -> None:
    """A block without a language would never run."""
    for document in DOCUMENTS:
        assert [block.text for block in blocks(text_of(document)) if not block.language] == [], document


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_every_file_that_a_document_links_is_there(document: str) -> None:
    missing = [link for link in LINK.findall(text_of(document)) if not (ROOT / document).parent.joinpath(link).exists()]
    assert missing == []


def test_the_readme_links_every_document() -> None:
    """The pages of decisions have their own index."""
    linked = set(LINK.findall(text_of("README.md")))
    assert {name for name in DOCUMENTS if not name.startswith("docs/decisions/0")} - {"README.md"} <= linked | {
        f"{link}/README.md" for link in linked
    }
