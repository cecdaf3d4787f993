"""Hashes of code and values, files that are whole or absent, stages that say what went wrong."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ebjdat import command, files, provenance
from ebjdat.errors import AuditError, Unfinished, UserError
from ebjdat.progress import Progress, duration


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two packages: a stage that imports a library early, late and relatively."""
    sources = {
        "lib/__init__.py": "",
        "lib/early.py": "from . import sibling\n",
        "lib/sibling.py": "VALUE = 1\n",
        "lib/deep/__init__.py": "from lib.deep import inside\n",
        "lib/deep/inside.py": "import json\n",
        "lib/late.py": "from .deep.inside import json as again\n",
        "lib/unused.py": "VALUE = 2\n",
        "stages/__init__.py": "",
        "stages/one.py": "import lib.early\n\n\ndef main():\n    from lib import late\n    return late\n",
    }
    for name, source in sources.items():
        files.write_text(tmp_path / name, source)
    return tmp_path


def test_the_closure_holds_early_late_and_relative_imports_and_package_files(repository: Path) -> None:
    assert provenance.import_closure("stages.one", repository) == (
        "lib/__init__.py",
        "lib/deep/__init__.py",
        "lib/deep/inside.py",
        "lib/early.py",
        "lib/late.py",
        "lib/sibling.py",
        "stages/__init__.py",
        "stages/one.py",
    )


def test_an_edit_changes_the_hash_only_of_stages_that_import_the_file(repository: Path) -> None:
    before = provenance.closure_hash("stages.one", repository)
    (repository / "lib/unused.py").write_text("VALUE = 3\n")
    assert provenance.closure_hash("stages.one", repository) == before
    (repository / "lib/sibling.py").write_text("VALUE = 3\n")
    assert provenance.closure_hash("stages.one", repository) != before


def test_an_edit_of_plumbing_leaves_the_hash_and_every_listed_module_exists(repository: Path) -> None:
    files.write_text(repository / "ebjdat/files.py", "VALUE = 1\n")
    files.write_text(repository / "lib/unused.py", "import ebjdat.files\n")
    files.write_text(repository / "stages/one.py", "import lib.unused\n")
    before = provenance.closure_hash("stages.one", repository)
    files.write_text(repository / "ebjdat/files.py", "VALUE = 2\n")
    assert provenance.closure_hash("stages.one", repository) == before
    assert "ebjdat/files.py" in provenance.import_closure("stages.one", repository)
    assert all((provenance.ROOT / name).is_file() for name in provenance.PLUMBING)


def test_line_endings_do_not_change_the_hash(repository: Path) -> None:
    before = provenance.closure_hash("stages.one", repository)
    (repository / "lib/sibling.py").write_bytes(b"VALUE = 1\r\n")
    assert provenance.closure_hash("stages.one", repository) == before


@pytest.mark.parametrize(("module", "message"), [("stages.two", "not in this repository"), ("json", "json")])
def test_a_module_from_elsewhere_is_refused(repository: Path, module: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        provenance.import_closure(module, repository)


def test_a_file_that_does_not_parse_is_named(repository: Path) -> None:
    (repository / "lib/late.py").write_text("def\n")
    with pytest.raises(UserError, match=r"lib/late\.py does not parse"):
        provenance.import_closure("stages.one", repository)


def test_equal_values_have_equal_digests_whatever_their_order() -> None:
    assert provenance.digest({"a": 1, "b": [1.5, None]}) == provenance.digest({"b": (1.5, None), "a": 1})
    assert provenance.digest({"a": 1}) != provenance.digest({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        provenance.digest(float("nan"))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.atomic(path) as handle:
        handle.write(b"half")
        raise RuntimeError("killed")
    with pytest.raises(UserError, match="NaN"):
        files.write_json(path, {"a": float("nan")})
    assert files.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "no permission")]
)
def test_a_disk_that_refuses_is_told_in_one_sentence(tmp_path: Path, code: int, message: str) -> None:
    path = tmp_path / "value.txt"
    with pytest.raises(UserError, match=rf"value\.txt could not be written: .*{message}"), files.atomic(path):
        raise OSError(code, "refused")
    assert not path.exists()


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    arrays = {"b": np.arange(5), "a": np.array([True, False])}
    files.write_npz(tmp_path / "one.npz", arrays)
    files.write_npz(tmp_path / "two.npz", dict(reversed(arrays.items())))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz", allow_pickle=False) as stored:
        assert stored["b"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        files.write_npz(tmp_path / "objects.npz", {"a": np.array([{}])})


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', "\x00"])
def test_damaged_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "value.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"value\.json is not readable JSON"):
        files.read_json(path)


def test_a_second_holder_is_told_who_holds_and_a_dead_holder_is_replaced(tmp_path: Path) -> None:
    lock = tmp_path / "run.lock"
    code = f"import os; from ebjdat import files\nwith files.hold({str(lock)!r}, 'the run'):\n    {{}}"
    with files.hold(lock, "the run"):
        run = subprocess.run(
            [sys.executable, "-c", code.format("print('held')")], capture_output=True, text=True, cwd=provenance.ROOT
        )
        assert run.returncode != 0
        assert "the run is in use by process" in run.stderr
    subprocess.run([sys.executable, "-c", code.format("os._exit(9)")], cwd=provenance.ROOT, check=False)
    with files.hold(lock, "the run"):
        assert lock.exists()


def test_the_main_checkout_is_dvcs_root_or_the_folder_above_with_dvc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    inner = tmp_path / "a ü" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert files.main_checkout() == inner
    (tmp_path / "a ü" / ".dvc").mkdir()
    assert files.main_checkout() == tmp_path / "a ü"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert files.main_checkout() == tmp_path


def _raise(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("a wrong\nkey"), 2, "error: a wrong key\n"),
        (AuditError("outside"), 4, "error: outside\n"),
        (Unfinished("1 of 2 rows"), 5, "unfinished: 1 of 2 rows\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_stage_ends_with_one_line_and_a_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command.run(_raise(error))
    assert stop.value.code == code
    assert capsys.readouterr().err == message


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command.run(_raise(ZeroDivisionError()))


def test_a_log_gets_sparse_lines_with_time_left_and_values() -> None:
    stream, now = io.StringIO(), [0.0]
    progress = Progress(100, "sweep", unit="images", stream=stream, clock=lambda: now[0])
    for _ in range(100):
        now[0] += 1.0
        progress.advance(1, robust=0.625)
    lines = stream.getvalue().splitlines()
    assert 5 <= len(lines) <= 12
    assert "sweep: 51/100 images (51 s elapsed, 49 s left), robust 0.625" in lines
    assert lines[-1].startswith("sweep: 100/100 images")


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (float("nan"), "?")]
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
