"""Pages against the repository: links, commands and paths that exist, public code that is documented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ebjdat
from ebjdat.config import read_yaml
from tests import ROOT
from tests.conftest import faults_by_line

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```sh\n(.*?)```|`([^`\n]+)`", re.DOTALL)
REMOTE = ("remote", "push", "pull", "fetch", "config", "cache")
DVC = set(REMOTE) | {"repro", "exp", "plots", "metrics", "commit", "status", "params", "artifacts", "queue"}
FOLDERS = ("ebjdat/", "stages/", "tests/", "docs/", "benchmarks/", "studies/")


def commands(text: str) -> Iterator[str]:
    """Lines of shell blocks, without comments, and inline code."""
    for block, inline in CODE.findall(text):
        for line in (block or inline).replace("\\\n", " ").splitlines():
            yield line.split("  #")[0].strip()


every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_a_link_of_a_page_leads_to_a_file(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target} is not there"


@every_page
def test_a_command_of_a_page_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in commands(page.read_text(encoding="utf-8")):
        for module in re.findall(r"python3? -m ((?:stages|tests|benchmarks)[\w.]*)", line):
            path = ROOT / Path(*module.split("."))
            assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), f"{page.name}: {line}"
        for target in re.findall(r"^make ([a-z]+)", line):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: {line}"
        for word in re.findall(r"^dvc ([a-z]+)", line):
            assert word in DVC, f"{page.name}: {line}"


@every_page
def test_a_parameter_that_a_page_sets_exists(page: Path) -> None:
    for line in commands(page.read_text(encoding="utf-8")):
        for file, key in re.findall(r"-S '?(?:(params/[\w-]+\.yaml):)?([a-z_.0-9]+)=", line):
            node = read_yaml(ROOT / (file or "params.yaml"))
            for part in key.split("."):
                assert part in node, f"{page.name}: {line}: {file or 'params.yaml'} has no {key}"
                node = node[part]


@every_page
def test_a_path_that_a_page_names_exists(page: Path) -> None:
    for _, inline in CODE.findall(page.read_text(encoding="utf-8")):
        if inline.startswith(FOLDERS) and re.fullmatch(r"[\w./-]+", inline):
            assert (ROOT / inline).exists(), f"{page.name}: {inline}"


@every_page
def test_prose_is_wrapped_at_120_columns(page: Path) -> None:
    text = re.sub(
        r"<!-- (table|cost|benchmark): .*?<!-- end -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_every_line_of_the_list_of_faults_names_tests_that_exist() -> None:
    lines = faults_by_line()
    assert sorted(lines) == list(range(1, 44))
    for number, tests in lines.items():
        assert tests, f"line {number} names no test"
        for file, name in tests:
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", text, re.MULTILINE), f"{file}::{name}"


def test_the_files_that_a_stranger_looks_for_are_there() -> None:
    for name in ("LICENSE", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", ".pre-commit-config.yaml"):
        assert (ROOT / name).stat().st_size > 0
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["license"] == "MIT" and citation["references"][0]["type"] == "conference-paper"
    assert citation["version"] == ebjdat.__version__
    hooks = read_yaml(ROOT / ".pre-commit-config.yaml")
    assert {hook["id"] for repo in hooks["repos"] for hook in repo["hooks"]} >= {"ruff", "mypy"}
