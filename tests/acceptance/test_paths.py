"""Files, modules and tests that the documents name exist."""

import re
from pathlib import Path

import pytest

from tests.acceptance.test_documents import DOCUMENTS, text_of
from tests.support.processes import ROOT

WORKER = ROOT / "geoprocessing-worker"
API = ROOT / "geo_jobs_api"
TESTS = ROOT / "tests"
# Folders that documents leave out of paths.
BASES = (ROOT, WORKER, API, API / "database", TESTS, TESTS / "worker", ROOT / "docs")
# Made by commands of the documents, or a pattern.
NO_PATHS = {"demo-output/", "NNNN_name.sql"}
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
FILE = re.compile(r".*\w\.(?:py|sql|sh|md|json|toml|yml|txt)")
TEST = re.compile(r"(?:(?P<file>[\w/]+(?:\.py)?)::|…(?P<here>::)?)(?P<name>\w*…?)(?:\[\w+\])?")


def named_in(document: str) -> list[str]:
    """The spans of code in a document, without its blocks."""
    return CODE.findall(re.sub(r"^```.*?^```", "", text_of(document), flags=re.MULTILINE | re.DOTALL))


def exists(path: str, document: str) -> bool:
    bases = (*BASES, (ROOT / document).parent)
    if "/" not in path:
        return any(path == file.name for base in bases for file in base.rglob(path) if ".venv" not in file.parts)
    return any((base / path).exists() or (base / f"{path}.py").exists() for base in bases)


def is_path(text: str) -> bool:
    """Text with the ending of a file, or one that begins with a folder of the project."""
    if not PATH.fullmatch(text) or text in NO_PATHS:
        return False
    first, slash, rest = text.partition("/")
    return bool(FILE.fullmatch(text)) or (bool(slash) and (not rest or any((base / first).is_dir() for base in BASES)))


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_every_path_that_a_document_names_exists(document: str) -> None:
    missing = [text for text in named_in(document) if is_path(text) and not exists(text, document)]
    assert missing == []


def folder_rows() -> list[tuple[Path, list[str]]]:
    """The folders of both tables in ARCHITECTURE, each with the names in its second column."""
    rows = re.findall(r"^\| `(\w+(?:/\w+)?)/`[^|]*\| (.*?) \| [^|]*\|$", text_of("docs/ARCHITECTURE.md"), re.MULTILINE)
    found = [(base / folder, CODE.findall(text)) for folder, text in rows for base in (WORKER, API)]
    return [(folder, names) for folder, names in found if folder.is_dir() and any(is_in(folder, n) for n in names)]


def is_in(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").exists() or (folder / name.rstrip("/")).is_dir()


def test_the_tables_of_folders_name_modules_that_exist() -> None:
    """Each name in lower case is a module of its folder, except the task types."""
    rows = folder_rows()
    assert len(rows) > 20
    unknown = [
        f"{folder.name}/{name}"
        for folder, names in rows
        for name in names
        if re.fullmatch(r"[a-z_]+", name) and not name.startswith("geotiff_") and not is_in(folder, name)
    ]
    assert unknown == []


def test_the_table_of_the_worker_names_every_module() -> None:
    named = {folder / f"{name}.py" for folder, names in folder_rows() for name in names}
    folders = {folder for folder, _ in folder_rows() if WORKER in folder.parents}
    modules = {file for folder in folders for file in folder.glob("*.py") if not file.name.startswith("__")}
    assert sorted(str(file.relative_to(WORKER)) for file in modules - named) == []


def names_of_tests(file: str) -> list[str]:
    """The names of the tests in a file, which may be given without `worker/`, `test_` and `.py`."""
    path = Path(file)
    stem = path.name.removesuffix(".py").removeprefix("test_")
    for base in (TESTS, TESTS / "worker"):
        candidate = base / path.parent / f"test_{stem}.py"
        if candidate.exists():
            return re.findall(r"^(?:async )?def (test_\w+)", candidate.read_text(encoding="utf-8"), re.MULTILINE)
    return []


def test_every_test_that_the_tests_page_names_exists() -> None:
    """`…::name` and `…ending` belong to the file named before. An ellipsis at the end stands for the rest."""
    missing, file = [], ""
    for text in named_in("tests/README.md"):
        found = TEST.fullmatch(text)
        if found is None:
            continue
        file = found["file"] or file
        name, names = found["name"], names_of_tests(file)
        if found["file"] or found["here"]:
            is_there = any(known.startswith(name[:-1]) if name.endswith("…") else known == name for known in names)
        else:
            is_there = any(known.endswith(name) for known in names)
        if not is_there:
            missing.append(text)
    assert missing == []
