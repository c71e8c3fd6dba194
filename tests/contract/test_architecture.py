"""The tables of docs/ARCHITECTURE.md and the import contracts of pyproject.toml agree."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from tests.support.processes import ROOT

SOURCES = {"geoprocessing_worker": ROOT / "geoprocessing-worker", "geo_jobs_api": ROOT / "geo_jobs_api"}
HEADINGS = {"geoprocessing_worker": "## The folders of the worker", "geo_jobs_api": "## The folders of the API"}
NAME = re.compile(r"`([a-z_/]+?)(?:/|\.py)?`")


def paths(modules: list[str]) -> set[str]:
    """Modules as paths in their package."""
    return {module.partition(".")[2].replace(".", "/") for module in modules}


class Contracts:
    """The imports that the contracts allow, by folder or module of one package."""

    def __init__(self, package: str) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        contracts: list[dict[str, Any]] = project["tool"]["importlinter"]["contracts"]
        (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == [package])
        self.layers: list[list[str]] = [layer.split(" | ") for layer in layers]
        self.names = {name for layer in self.layers for name in layer}
        self.top = {name for name in self.names if not (SOURCES[package] / name).is_dir()}
        self._forbidden = [
            (paths(contract["source_modules"]), paths(contract["forbidden_modules"]))
            for contract in contracts
            if contract["type"] == "forbidden"
        ]

    def allowed(self, name: str) -> set[str]:
        """The folders and modules that one may import. A sub-folder may import as its folder, unless forbidden."""
        folder = name.partition("/")[0]
        place = next(number for number, layer in enumerate(self.layers) if folder in layer)
        found = {each for layer in self.layers[place + 1 :] for each in layer}
        for sources, forbidden in self._forbidden:
            if {name, folder} & sources:
                found -= forbidden
        return found


def rows(package: str) -> list[tuple[tuple[str, ...], str]]:
    """The first and the last cell of each row: the names, and the imports."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    lines = text.partition(HEADINGS[package])[2].partition("\n## ")[0].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    return [(tuple(NAME.findall(row[0])), row[-1]) for row in cells]


def documented(text: str, names: tuple[str, ...], later: list[tuple[str, ...]], contracts: Contracts) -> set[str]:
    """The folders and modules that a cell stands for. `later`: the names of the rows below."""
    if text == "all below":
        return {name for others in later for name in others}
    found = set(later[-1]) if text == "the last row" else set()
    if "top" in text.split(", "):
        found |= contracts.allowed(names[0]) & contracts.top
    for name in NAME.findall(text.replace("and `tasks` by name", "")):
        found |= {name} | (contracts.allowed(name) if f"`{name}` and below" in text else set())
    return found


@pytest.mark.parametrize("package", SOURCES)
def test_the_documented_imports_are_those_of_the_contracts(package: str) -> None:
    """Each row's last column has the folders and modules that the contracts allow it, and no folder is missing."""
    contracts, table = Contracts(package), rows(package)
    assert contracts.names - contracts.top <= {name for names, _ in table for name in names}
    for number, (names, text) in enumerate(table):
        if names:  # the last row of the worker, whose modules have an order of their own, has none
            later = [others for others, _ in table[number + 1 :]]
            allowed = set.union(*(contracts.allowed(name) for name in names)) - set(names)
            assert documented(text, names, later, contracts) - set(names) == allowed, names
