"""Settings of every test; the marker ``faults`` for those that docs/faults.md names."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run in this process; once it has had a second thread of OpenMP, a fork of it waits for that for ever."""
    monkeypatch.setattr("ebjdat.device.THREADS", 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of faults."""
    from tests.fault_list import tests_by_line

    named = {test for tests in tests_by_line().values() for test in tests}
    below = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(below).as_posix() if item.path.is_relative_to(below) else ""
        if place.startswith("faults/") or (place, item.name.split("[")[0]) in named:
            item.add_marker(pytest.mark.faults)
