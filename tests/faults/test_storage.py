"""Faults of disks, and what nothing in this repository may do."""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.model.store import load_model, new_model, save_model
from tests import ROOT
from tests.small_runs import TINY, fingerprint, short_run, undisturbed


@contextmanager
def full_disk(free: int = 30_000) -> Iterator[None]:
    """No file grows beyond ``free`` bytes: the system refuses real writes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def read_only() -> Iterator[None]:
    """Files cannot be opened for writing, nor folders made (root may write anywhere, so it is played)."""
    names = ("open", "mkdir")
    before = {name: getattr(Path, name) for name in names}

    def refusing(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Path, *arguments: Any, **named: Any) -> Any:
            mode = arguments[0] if arguments and isinstance(arguments[0], str) else named.get("mode", "")
            if original is before["mkdir"] or (isinstance(mode, str) and set(mode) & set("wxa+")):
                raise OSError(errno.EROFS, "Read-only file system", str(self))
            return original(self, *arguments, **named)

        return call

    try:
        for name in names:
            setattr(Path, name, refusing(before[name]))
        yield
    finally:
        for name in names:
            setattr(Path, name, before[name])


DISKS = {"full": full_disk, "read-only": read_only}


@pytest.mark.parametrize("disk", DISKS)
def test_a_disk_full_or_read_only_at_a_checkpoint_leaves_the_earlier_one_and_training_goes_on_after_it_is_mended(
    tmp_path: Path, disk: str
) -> None:
    expected = undisturbed()
    run = short_run("ebjdat-jempp", tmp_path)
    save, saves = run._save, [0]

    def second_fails() -> None:
        saves[0] += 1
        if saves[0] == 1:
            save()
            return
        with DISKS[disk]():
            save()

    run._save = second_fails  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"could not be written") as error:
        run.run()
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-0000-000001-00000000"]
    assert not list(tmp_path.glob(".step*"))
    assert fingerprint(short_run("ebjdat-jempp", tmp_path).run()) == expected


BIG = np.random.default_rng(0).random((100, 100))
NOISE = np.random.default_rng(1).integers(0, 256, (400, 400), np.uint8)


def a_model(path: Path) -> None:
    save_model(path, new_model(TINY, 0))


WRITERS: dict[str, Callable[[Path], object]] = {
    "metrics": lambda path: files.write_json(path, BIG.tolist()),
    "samples": lambda path: files.write_npz(path, {"images": BIG}, compress=False),
    "pictures": lambda path: files.write_png(path, NOISE),
    "history": lambda path: files.write_text(path, "row\n" * 20_000),
    "model": a_model,
}


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("what", WRITERS)
def test_a_disk_full_or_read_only_keeps_the_old_file_whole_and_is_told_in_one_sentence(
    tmp_path: Path, what: str, disk: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match=r"file could not be written: ") as error, DISKS[disk]():
        WRITERS[what](path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["file"]
    WRITERS[what](path)
    assert path.stat().st_size > 30_000
    if what == "model":
        load_model(path)


SOURCES = sorted(path for name in ("ebjdat", "stages", "benchmarks", "tests") for path in (ROOT / name).rglob("*.py"))


def test_weights_and_arrays_are_never_read_with_pickles() -> None:
    """Both defaults are safe; ruff sees to pickle, exec, eval and shells."""
    for path in SOURCES:
        if path != Path(__file__):
            assert not re.search(r"weights_only=False|allow_pickle=True", path.read_text(encoding="utf-8")), path


def test_mlflow_is_served_on_loopback() -> None:
    """MLflow's own default, which no command of ours changes."""
    import mlflow.cli

    (host,) = [option for option in mlflow.cli.server.params if option.name == "host"]
    assert host.default == "127.0.0.1"
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile", *SOURCES]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"mlflow.{0,4} (ui|server)", line) and "--host" in line:
                assert re.search(r"--host.{0,4}(127\.0\.0\.1|localhost)", line), f"{path}: {line}"
