"""Settings of every test; the marker ``faults`` for those that docs/faults.md names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import ROOT

_ROW = re.compile(r"^\| (\d+) \|.*\|([^|]*)\|$", re.MULTILINE)
_TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run in this process; once it has had a second thread of OpenMP, a fork of it waits for that for ever."""
    monkeypatch.setattr("ebjdat.device.THREADS", 1)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout, which is the current folder."""
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def faults_by_line() -> dict[int, list[tuple[str, str]]]:
    """Tests of docs/faults.md as (file below tests/, function) by the number of their line."""
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    return {int(number): _TEST.findall(cell) for number, cell in _ROW.findall(page)}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of faults; leave out those that need more GPUs than there are, so that none looks passed."""
    named = {test for tests in faults_by_line().values() for test in tests}
    below = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(below).as_posix() if item.path.is_relative_to(below) else ""
        if place.startswith("faults/") or (place, item.name.split("[")[0]) in named:
            item.add_marker(pytest.mark.faults)
    import torch

    wanted = {item: mark.args[0] for item in items if (mark := item.get_closest_marker("gpu"))}
    if absent := [item for item, devices in wanted.items() if devices > torch.cuda.device_count()]:
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in absent]
