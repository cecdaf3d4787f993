"""Bad input of every kind: whatever a file holds, the user gets one sentence and no traceback."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebjdat.attacks.outcomes import Outcomes
from ebjdat.config import load_params, parse_params
from ebjdat.data import cifar10
from ebjdat.data.fetch import members
from ebjdat.data.gaussians import load_mixture
from ebjdat.data.prepared import load_prepared
from ebjdat.errors import UserError
from ebjdat.evaluation.samples import read_buffer
from ebjdat.files import digest, read_json
from ebjdat.model import exported, released
from ebjdat.model.description import describe
from ebjdat.model.store import load_model, new_model, read_payload
from ebjdat.record import read_record
from tests import ROOT
from tests.small_runs import TINY, tiny_data
from tests.synthetic import PARAMS, setup_of
from tests.test_config import RAW, params_with

MANY = int(os.environ.get("EBJDAT_FUZZ", "60"))
"""Inputs of each kind; raise it by EBJDAT_FUZZ for a longer search."""
SOME = settings(
    max_examples=MANY, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**4000), 2**63]),
    st.floats(allow_nan=True),
    st.text(max_size=8),
    st.sampled_from(["8/255", "8/0", "1e-4", "1e999", "../..", "nan", "8/255/1", "ебать", "\x00"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars.filter(bool), inner, max_size=3),
    max_leaves=6,
)


def keys(node: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a tree."""
    found = [prefix] if prefix else []
    if isinstance(node, dict):
        for name, item in node.items():
            found += keys(item, (*prefix, name))
    return found


def only_user_errors(call: Any, *arguments: Any) -> None:
    """Anything but success or a UserError of one clear line fails the test with its traceback."""
    try:
        call(*arguments)
    except UserError as error:
        assert str(error).strip()


@SOME
@given(file_and_path=st.sampled_from([(file, path) for file in RAW for path in keys(RAW[file])]), value=values)
def test_any_value_at_any_key_of_the_parameters_is_taken_or_refused_in_one_sentence(
    file_and_path: tuple[str, tuple[Any, ...]], value: Any
) -> None:
    file, path = file_and_path
    only_user_errors(params_with, file, ".".join(path), value)


@SOME
@given(raw=values)
def test_parameters_that_are_no_parameters_at_all_are_refused(raw: Any) -> None:
    for parse in (
        lambda: parse_params(raw, lambda name: RAW["digits"]),
        lambda: parse_params(RAW["params.yaml"], lambda name: raw),
    ):
        with pytest.raises(UserError):
            parse()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(ROOT / "params", tmp_path_factory.mktemp("params") / "params")).parent


TEXT = (ROOT / "params.yaml").read_bytes()


@SOME
@given(at=st.integers(0, len(TEXT)), length=st.integers(0, 40), put=st.text(max_size=20) | st.binary(max_size=8))
def test_a_parameter_file_with_any_edit_is_read_or_refused(
    folder: Path, at: int, length: int, put: str | bytes
) -> None:
    new = put.encode("utf-8", "surrogatepass") if isinstance(put, str) else put
    (folder / "params.yaml").write_bytes(TEXT[:at] + new + TEXT[at + length :])
    only_user_errors(load_params, folder)


@pytest.mark.parametrize(
    "text",
    [
        "a: 2026-13-45\n",  # YAML takes it for a date
        "a: &a [*a]\n",
        "? [1, 2]\n: 3\n",
        "a: !!python/object/apply:os.system [true]\n",
        "[" * 1000,
        "a: 0x" + "f" * 5000 + "\n",
        "a: " + "9" * 5000 + "\n",
        "a: !!binary x\n",
        "",
    ],
    ids=["date", "cycle", "list as key", "object", "deep", "large hex", "large number", "binary", "empty"],
)
def test_yaml_that_is_odd_or_hostile_is_refused_in_one_sentence(folder: Path, text: str) -> None:
    (folder / "params.yaml").write_text(text)
    with pytest.raises(UserError):
        load_params(folder)


def test_a_folder_in_place_of_the_parameters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(UserError):
        load_params(tmp_path)


def _tar(mode: str) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:  # type: ignore[call-overload]
        for name in ("one.txt", "folder/two.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 300
            archive.addfile(entry, io.BytesIO(bytes(range(100)) * 3))
    return sink.getvalue()


def _zip() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one.txt", bytes(range(100)) * 3)
        archive.writestr("folder/two.txt", b"2")
    return sink.getvalue()


ARCHIVES = [_tar("w"), _tar("w:gz"), _tar("w:bz2"), _tar("w:xz"), _zip()]


@settings(SOME, max_examples=3 * MANY)
@given(
    archive=st.sampled_from(ARCHIVES),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=4)), max_size=4),
    keep=st.none() | st.integers(0, 4000),
)
def test_a_damaged_archive_is_refused_and_nothing_of_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, archive: bytes, edits: list[tuple[int, bytes]], keep: int | None
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(archive)
    for at, put in edits:
        at %= len(content)
        content[at : at + len(put)] = put
    (folder / "archive").write_bytes(content[:keep])
    only_user_errors(members, folder / "archive", ["one.txt", "folder/two.txt"])
    assert list(folder.iterdir()) == [folder / "archive"]


READERS: list[tuple[str, Any]] = [
    ("archive", lambda path: members(path, ["one.txt"])),
    ("state.pt", read_payload),
    ("state.pt", load_model),
    ("theirs.pt", lambda path: released.read(path, (3, 32, 32))),
    ("manifest.json", read_json),
    ("manifest.json", lambda path: load_prepared(path.parent)),
    ("clean.json", read_record),
    (f"{digest('attack')}.json", lambda path: Outcomes(path.parent).read("attack")),
    ("gaussians.npz", load_mixture),
    ("buffer.npz", lambda path: read_buffer(path, (1, 8, 8))),
    ("cifar10.npz", lambda path: cifar10.read(path.parent)),
    ("cifar-10-python.tar.gz", cifar10.read),
    ("model.safetensors", lambda path: exported.read(path.parent)),
]
BEGINNINGS = [b"", b"PK\x03\x04", b"<!doctype html>", b"\t" * 8 + b"{", b"\x02" + bytes(7) + b"{}"]
ODD = [
    b"",
    b"<<<<<<< HEAD",
    b"[]",
    b"{}",
    b'{"schema": 2}',
    b'{"name": ""}',
    b'{"decided by": {}, "flags": [["x", "2"]]}',
]


@pytest.mark.parametrize(("name", "read"), READERS, ids=[name for name, _ in READERS])
@SOME
@given(content=st.sampled_from(ODD) | st.builds(bytes.__add__, st.sampled_from(BEGINNINGS), st.binary(max_size=400)))
def test_any_bytes_are_refused_by_every_reader_of_files(
    tmp_path_factory: pytest.TempPathFactory, name: str, read: Any, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    if name == "model.safetensors":
        exported.write(folder, new_model(TINY, 0).network, describe(setup_of(PARAMS, "undefended"), tiny_data()))
    (folder / name).write_bytes(content)
    try:
        read(folder / name)
    except UserError as error:
        assert name in str(error) or str(folder) in str(error)
