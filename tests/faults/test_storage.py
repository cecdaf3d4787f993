"""Faults of disks and of the tracking store, and what nothing in this repository may do."""

from __future__ import annotations

import ast
import errno
import functools
import json
import os
import re
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.store.db import utils as db_utils

from ebjdat import files, tracking
from ebjdat.errors import UserError
from ebjdat.model.store import load_model, new_model, save_model
from tests import ROOT
from tests.small_runs import TINY, fingerprint, short_run, undisturbed
from tests.synthetic import PARAMS, setup_of, use_empty_store, write_records

SETUP = setup_of(PARAMS)


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


ROWS = [{"epoch": epoch, "loss": 1.0 / epoch} for epoch in range(1, 4)]
ROLLBACK = {"retry": 1, "epoch": 0, "step": 2, "cause": "loss is nan"}


def train() -> None:
    with tracking.Curves(SETUP) as curves:
        for row in ROWS:
            curves.log(row)
        curves.note_rollback(ROLLBACK)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program writes to the store for ever."""
    database = sqlite3.connect(path)
    database.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        database.rollback()
        database.close()


@contextmanager
def newer(path: Path) -> Iterator[None]:
    """The store was made by a later MLflow."""
    with sqlite3.connect(path) as database:
        (version,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
        database.execute("UPDATE alembic_version SET version_num = 'from the future'")
    yield
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))


@contextmanager
def unreachable(path: Path) -> Iterator[None]:
    """A server that does not answer."""
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]


@contextmanager
def full(path: Path) -> Iterator[None]:
    """No room left for the database."""
    with full_disk(1000):
        yield


STORES = {"locked": locked, "unreachable": unreachable, "newer schema": newer, "full": full}


@pytest.mark.parametrize("fault", STORES)
def test_a_store_locked_unreachable_newer_or_full_costs_one_warning_and_what_is_missing_is_logged_later(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    use_empty_store()
    connect, sql = sqlite3.connect, db_utils.sql.text
    with STORES[fault](workspace / "mlflow.db"), monkeypatch.context() as hasty:
        hasty.setattr(tracking.sqlite3, "connect", lambda path, timeout: connect(path, timeout=0.2))
        hasty.setattr(
            db_utils.sql, "text", lambda text: sql(text.replace("busy_timeout = 20000", "busy_timeout = 200"))
        )
        train()
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("warning: curves of digits/ebjdat-jempp/0 not logged: the MLflow store")
    assert "the next `python -m stages.log` logs what is missing" in told
    records = write_records(SETUP, stages=["clean"])
    files.write_text(SETUP.run.model_dir / "history.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    files.write_json(SETUP.run.model_dir / "summary.json", {"events": [ROLLBACK]})
    assert tracking.log_records("digits", records) == 1  # as the stage `log` does
    (run,) = tracking.Store.open("digits").runs()
    assert run.data.metrics["loss"] == pytest.approx(1 / 3) and run.info.status == "FINISHED"
    assert run.data.tags["rollback.1"] == "epoch 0, step 2: loss is nan"


def test_a_strict_switch_makes_a_broken_store_fatal(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "mlflow.db").mkdir()
    monkeypatch.setenv(tracking.STRICT, "1")
    with pytest.raises(UserError, match="EBJDAT_STRICT_TRACKING=1 makes this fatal"):
        train()


SOURCES = sorted(path for name in ("ebjdat", "stages", "benchmarks", "tests") for path in (ROOT / name).rglob("*.py"))


@functools.cache
def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """What a file calls, by dotted names."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


def test_nothing_runs_a_shell_string() -> None:
    shells = re.compile(
        r"os\.(system|popen|spawn\w+|exec\w+)|(subprocess\.)?get(output|statusoutput)|(.*\.)?create_subprocess_shell"
    )
    for path in SOURCES:
        for name, call in calls(path):
            where = f"{path.relative_to(ROOT)}, line {call.lineno}: {name}"
            assert not shells.fullmatch(name), where
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            assert ast.unparse(given["shell"]) == "False" if "shell" in given else True, where
            if re.fullmatch(r"subprocess\.(run|Popen|call|check_call|check_output)", name):
                assert not isinstance(call.args[0], (ast.JoinedStr, ast.Constant)), f"{where} is given a string"


def test_no_parameter_is_put_into_a_command_of_the_pipeline_but_names_of_a_fixed_list() -> None:
    """DVC runs commands by a shell, so only matrix items may stand in them."""
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    commands = re.findall(r"^\s*cmd: (.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        assert re.fullmatch(r"python -m stages\.\w+( --\w+ \$\{item(\.\w+)?\})*", command), command


def test_weights_and_checkpoints_are_read_with_weights_only_and_arrays_without_pickles() -> None:
    for path in SOURCES:
        if "tests" in path.relative_to(ROOT).parts:
            continue
        for name, call in calls(path):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            where = f"{path.relative_to(ROOT)}, line {call.lineno}"
            if name == "torch.load":
                assert given.get("weights_only") == "True", where
            if name in ("np.load", "numpy.load"):
                assert given.get("allow_pickle", "False") == "False", where
            assert name not in ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec"), where


def test_mlflow_is_served_on_loopback() -> None:
    """MLflow's own default, which no command of ours changes."""
    import mlflow.cli

    (host,) = [option for option in mlflow.cli.server.params if option.name == "host"]
    assert host.default == "127.0.0.1"
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile", *SOURCES]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"mlflow.{0,4} (ui|server)", line) and "--host" in line:
                assert re.search(r"--host.{0,4}(127\.0\.0\.1|localhost)", line), f"{path}: {line}"
