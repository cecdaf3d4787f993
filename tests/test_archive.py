"""Extraction of archives that somebody else made."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from ebjdat.data.archive import extract
from ebjdat.errors import UserError

LIMIT = 10_000


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_regular_files_are_unpacked_below_the_target(tmp_path: Path, make) -> None:
    archive = make(tmp_path / "a", {"one.txt": b"1", "deep/two.txt": b"22"})
    written = extract(archive, tmp_path / "out", LIMIT)
    assert [path.read_bytes() for path in written] == [b"1", b"22"]
    assert files_below(tmp_path / "out") == ["deep/two.txt", "one.txt"]


@pytest.mark.parametrize("make", [make_tar, make_zip])
@pytest.mark.parametrize(
    "name", ["../evil", "good/../../evil", "/evil", "..\\evil", "C:\\evil", "C:evil", "\\evil", "a\\..\\..\\evil"]
)
def test_a_path_that_leaves_the_target_is_refused_and_nothing_is_written(tmp_path: Path, make, name: str) -> None:
    archive = make(tmp_path / "a", {"good.txt": b"1", name: b"evil"})
    before = files_below(tmp_path)
    with pytest.raises(UserError, match="outside the target"):
        extract(archive, tmp_path / "out", LIMIT)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("kind", "named"),
    [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "link"), (tarfile.CHRTYPE, "device"), (tarfile.FIFOTYPE, "device")],
)
def test_a_tar_with_a_link_or_a_device_is_refused_and_nothing_is_written(
    tmp_path: Path, kind: bytes, named: str
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("good.txt")
        archive.addfile(entry)
        entry = tarfile.TarInfo("odd")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(UserError, match=f"'odd' is a {named}"):
        extract(tmp_path / "a.tar", tmp_path / "out", LIMIT)
    assert files_below(tmp_path) == ["a.tar"]


def test_a_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("odd")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="'odd' is a link"):
        extract(tmp_path / "a.zip", tmp_path / "out", LIMIT)


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path, make) -> None:
    archive = make(tmp_path / "bomb", {"a": bytes(LIMIT // 2), "b": bytes(LIMIT // 2 + 1)})
    assert archive.stat().st_size < LIMIT
    with pytest.raises(UserError, match="exceed 10,000 bytes"):
        extract(archive, tmp_path / "out", LIMIT)
    assert files_below(tmp_path) == ["bomb"]


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_a_truncated_archive_is_named(tmp_path: Path, mode: str) -> None:
    whole = make_tar(tmp_path / "whole", {"a": bytes(range(256)) * 30}, mode)
    (tmp_path / "half.tar").write_bytes(whole.read_bytes()[: whole.stat().st_size // 8])
    with pytest.raises(UserError, match=r"half\.tar is not a whole archive"):
        extract(tmp_path / "half.tar", tmp_path / "out", LIMIT)


def test_a_missing_archive_is_named_and_a_web_page_in_its_place_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is missing"):
        extract(tmp_path / "none", tmp_path / "out", LIMIT)
    (tmp_path / "page.tar.gz").write_text("\n<!DOCTYPE html><html>404</html>")
    with pytest.raises(UserError, match="web page"):
        extract(tmp_path / "page.tar.gz", tmp_path / "out", LIMIT)


def test_files_that_exist_are_not_overwritten(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar.gz", {"one": b"new"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "one").write_bytes(b"old")
    with pytest.raises(UserError, match="not overwritten"):
        extract(archive, tmp_path / "out", LIMIT)
    assert (tmp_path / "out" / "one").read_bytes() == b"old"
