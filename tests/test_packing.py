"""Packs: pieces of one size, verified one by one, put back as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebjdat import packages, packing
from ebjdat.errors import UserError
from ebjdat.provenance import ROOT


@pytest.fixture
def entries(tmp_path: Path) -> dict[str, Path]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "noise").write_bytes(os.urandom(50_000))
    (source / "note").write_text("a ü")
    return {"cache/noise": source / "noise", "packages/a b/note": source / "note"}


def test_a_pack_comes_back_as_it_was_in_pieces_no_larger_than_asked(entries: dict[str, Path], tmp_path: Path) -> None:
    manifest = packing.pack(entries, tmp_path / "pack", 20_000)
    sizes = [(tmp_path / "pack" / piece["name"]).stat().st_size for piece in manifest["pieces"]]
    assert len(sizes) == 3 and max(sizes) <= 20_000
    moved = packing.unpack(tmp_path / "pack", tmp_path / "target")
    assert {path.relative_to(tmp_path / "target").as_posix() for path in moved} == set(entries)
    assert all((tmp_path / "target" / name).read_bytes() == path.read_bytes() for name, path in entries.items())


def test_equal_files_give_equal_pieces(entries: dict[str, Path], tmp_path: Path) -> None:
    first = packing.pack(entries, tmp_path / "one", 20_000)
    os.utime(entries["cache/noise"], (0, 0))
    assert packing.pack(entries, tmp_path / "two", 20_000) == first


def test_an_earlier_pack_in_the_folder_leaves_no_piece_behind(entries: dict[str, Path], tmp_path: Path) -> None:
    packing.pack(entries, tmp_path / "pack", 1_000)
    packing.pack(entries, tmp_path / "pack", 40_000)
    assert sorted(path.name for path in (tmp_path / "pack").iterdir()) == ["manifest.json", "piece-000", "piece-001"]


@pytest.mark.parametrize("damage", ["absent", "truncated", "flipped"])
def test_a_piece_that_is_not_whole_is_named_and_nothing_is_written(
    entries: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    packing.pack(entries, tmp_path / "pack", 20_000)
    piece = tmp_path / "pack" / "piece-001"
    content = bytearray(piece.read_bytes())
    content[7] ^= 1
    if damage == "absent":
        piece.unlink()
    else:
        piece.write_bytes(content if damage == "flipped" else content[:-1])
    with pytest.raises(UserError, match="1 of 3 pieces are not whole: piece-001"):
        packing.unpack(tmp_path / "pack", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_file_that_is_not_the_one_of_the_manifest_is_refused(entries: dict[str, Path], tmp_path: Path) -> None:
    packing.pack(entries, tmp_path / "pack")
    manifest = tmp_path / "pack" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("packages/a b/note", "packages/a b/code"))
    with pytest.raises(UserError, match="is not the file of the manifest"):
        packing.unpack(tmp_path / "pack", tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


def test_results_of_a_campaign_leave_links_locks_and_inputs_behind(tmp_path: Path) -> None:
    for name in ("shared/g/results/p/m/clean.json", "scratch/resume/i.lock", "inputs/cache/x", "row/log.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "shared" / "g" / "models" / "p" / "m").mkdir(parents=True)
    (tmp_path / "shared" / "g" / "models" / "p" / "m" / "buffer.npz").touch()
    (tmp_path / "row" / "results").symlink_to(Path("..") / "shared" / "g" / "results")
    found = packing.campaign_entries(tmp_path, ("*/buffer.npz",))
    assert set(found) == {"shared/g/results/p/m/clean.json", "row/log.txt"}


def test_packed_packages_and_data_are_found_by_children_too(tmp_path: Path) -> None:
    (tmp_path / "packages" / "carried").mkdir(parents=True)
    (tmp_path / "packages" / "carried" / "__init__.py").touch()
    (tmp_path / "cache").mkdir()
    child = "import carried, os; print(os.environ['EBJDAT_CACHE'])"
    code = (
        "import pathlib, subprocess, sys; from ebjdat import packages; packages.use(pathlib.Path(sys.argv[1]));"
        f"import carried; subprocess.run([sys.executable, '-c', {child!r}])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "EBJDAT_CACHE"}
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == str(tmp_path / "cache")


def test_packages_that_are_packed_are_those_that_the_stages_lack_on_a_bare_machine() -> None:
    entries = packing.package_entries()
    assert {"packages/yaml/__init__.py", "packages/sklearn/datasets/images/china.jpg"} <= set(entries)
    assert not [name for name in entries if name.endswith((".so", ".pt", ".h5"))]
    assert packages.INPUTS.parts[0] == ".campaign"


@pytest.mark.parametrize("megabytes", [0.0, -1.0, float("nan"), float("inf")])
def test_pieces_of_no_size_are_refused(megabytes: float) -> None:
    with pytest.raises(UserError, match="--piece-mb"):
        packing.piece_size(megabytes)
    assert packing.piece_size(0.5) == 500_000


def test_a_folder_without_a_pack_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pack is here, or its manifest\.json has not arrived yet"):
        packing.unpack(tmp_path / "nowhere", tmp_path / "there")
    with pytest.raises(UserError, match="no pack is here"):
        packing.missing(tmp_path / "nowhere")


def test_a_manifest_that_has_not_arrived_is_missing_like_a_piece(tmp_path: Path) -> None:
    (tmp_path / "piece-000").touch()
    assert packing.missing(tmp_path) == ["manifest.json"]
