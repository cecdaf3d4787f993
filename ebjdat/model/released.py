"""Checkpoints as the public repositories of JEM, JEM++, SADAJEM and EB-JDAT save them, as models of this project.

They save ``{"model_state_dict": ..., "replay_buffer": ...}``: ``f`` is the body of the network, ``class_output`` its
head, and the buffer is in [-1, 1]. ``energy_output`` and ``f.linear`` are in the files but in no logit;
``f.layer_one`` and ``f.other_layers`` (JEM++ with ``--model yopo``) are second names of layers. Depth, width and
normalisation follow from names and shapes. Nothing in a file is executed.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebjdat import files
from ebjdat.config import IMPORTED, Variant
from ebjdat.errors import UserError
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import model_digest, save_model
from ebjdat.model.wideresnet import Architecture, Norm, WideResNet

CLASSES = 10
_WRAPPERS = ("model_state_dict", "state_dict", "model", "net", "ema")
"""Keys that weights lie under, in the order of choice."""
_ADDED = {*_WRAPPERS, "module", "_orig_mod"}
"""Parts of a name that come from wrapping: a dictionary made flat, several GPUs, an average, ``torch.compile``."""
_UNUSED = ("energy_output.", "f.linear.", "f.layer_one.", "f.other_layers.")
_OURS = {"stem": "f.conv1", "norm": "f.bn1", "head": "class_output"}
_INNER = {"norm1": "bn1", "norm2": "bn2", "shortcut": "shortcut.0"}
_PLAIN = (
    "in the environment it came from, run torch.save({'model_state_dict': model.state_dict(), 'replay_buffer': "
    "torch.as_tensor(buffer)}, 'plain.pt') and import plain.pt"
)


@dataclass(frozen=True)
class Released:
    """A checkpoint in our terms.

    Attributes:
        state: weights float32 by the names of :class:`WideResNet`.
        buffer: replay buffer (n,C,H,W) float32 in [0, 1], a little outside where chains are not clamped; or None.
    """

    architecture: Architecture
    state: dict[str, Tensor]
    buffer: Tensor | None


def read(path: Path, shape: tuple[int, int, int]) -> Released:
    """Read a checkpoint for images of ``shape`` (C,H,W).

    Raises:
        UserError: it is damaged, needs code to be opened, or holds another network or buffer.
    """
    try:
        held = _content(path)
        found = _named(_weights(held))
        architecture = architecture_of(found)
        if architecture.channels != shape[0]:
            raise UserError(f"takes images of {architecture.channels} channels, those of this profile have {shape[0]}")
        return Released(architecture, _fitted(found, architecture), _buffer(held.get("replay_buffer"), shape))
    except UserError as error:
        raise UserError(f"{path} {error}") from None


def _content(path: Path) -> Mapping[str, Any]:
    """What lies in a file of PyTorch or safetensors; the first bytes say which."""
    try:
        with path.open("rb") as handle:
            head = handle.read(9)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None
    try:
        if head[8:] == b"{":  # after eight bytes of length
            from safetensors.torch import load_file

            return load_file(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers throw nearly anything at foreign bytes
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needed:
            raise UserError(f"needs the code of {needed[1]}, and no code in a file is run here: {_PLAIN}") from None
        reason = re.sub(r"(?s).*WeightsUnpickler error:\s*", "", str(error)).split("\n")[0].split(". ")[0]
        raise UserError(
            f"is damaged or holds more than weights ({reason or type(error).__name__}): download it again, or {_PLAIN}"
        ) from None
    if not isinstance(held, Mapping):
        raise UserError(f"holds a {type(held).__name__}, not weights by name: {_PLAIN}")
    return held


def _weights(held: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name, inside whatever dictionaries lie around them."""
    for key in _WRAPPERS:
        if isinstance(held.get(key), Mapping):
            return _weights(held[key])
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    tensors.pop("replay_buffer", None)
    if not tensors:
        raise UserError(f"holds no weights, found {_some(map(str, held))}: {_PLAIN}")
    return tensors


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that logits depend on, without what wrapping added to their names."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = ".".join(part for part in name.split(".") if part not in _ADDED)
        if short in named:
            raise UserError(f"holds two sets of weights (two tensors {short}): keep one")
        named[short] = tensor
    named.pop("n_averaged", None)  # a counter of PyTorch's averaged models
    return {name: tensor for name, tensor in named.items() if not name.startswith(_UNUSED)}


def architecture_of(found: Mapping[str, Tensor]) -> Architecture:
    """Depth, width, channels and normalisation, from names and shapes.

    Raises:
        UserError: not the network of the JEM family, or one that this project does not have.
    """
    blocks = len({match[1] for name in found if (match := re.fullmatch(r"f\.layer1\.(\d+)\.conv1\.weight", name))})
    names = ("f.conv1.weight", "f.layer1.0.conv1.weight", "class_output.weight")
    stem, first, head = (tuple(found[name].shape) if name in found else () for name in names)
    if (len(stem), len(first), len(head)) != (4, 4, 2):
        raise UserError(f"is no WideResNet of the JEM repositories: expected {', '.join(names)}, found {_some(found)}")
    norms = {name.removeprefix("f.bn1.") for name in found if name.startswith("f.bn1.")}
    if norms and "running_mean" not in norms:
        raise UserError(f"has a normalisation other than batch and none: f.bn1 holds {_some(norms)}")
    width = max(1, first[0] // 16)
    if head[0] != CLASSES and head[1] == 64 * width:
        raise UserError(f"has {head[0]} classes: data and protocols here have {CLASSES}")
    norm: Norm = "batch" if norms else "none"
    return Architecture(depth=6 * blocks + 4, width=width, channels=stem[1], classes=CLASSES, norm=norm)


def _fitted(found: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Every weight of the architecture, float32, under our name; none may be missing, left over or of other shape."""
    with torch.device("meta"):
        wanted = WideResNet(architecture).state_dict()
    theirs = {_theirs(name, (architecture.depth - 4) // 6): name for name in wanted}
    network = f"WideResNet-{architecture.depth}-{architecture.width} with norm {architecture.norm}"
    # Nothing here reads the count of batches, and PyTorch before 0.4.1 did not write it.
    missing = [name for name in theirs if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"looks like {network} and lacks {_some(missing)}")
    if extra := found.keys() - theirs.keys():
        raise UserError(f"looks like {network} and holds {_some(extra)} besides")
    for name, tensor in found.items():
        ours, shape = wanted[theirs[name]], f"{tuple(tensor.shape)} {tensor.dtype}"
        if tensor.shape != ours.shape or tensor.is_floating_point() != ours.is_floating_point():
            raise UserError(f"looks like {network}, but {name} is {shape}, expected {tuple(ours.shape)} {ours.dtype}")
        if not bool(tensor.float().isfinite().all()):
            raise UserError(f"has NaN or infinite values in {name}")
    return {name: found.get(their, torch.zeros(())).to(wanted[name].dtype) for their, name in theirs.items()}


def _theirs(name: str, blocks: int) -> str:
    """What the JEM repositories call our ``name``; ``blocks``: of each of the three groups."""
    first, *rest = name.split(".")
    if first != "blocks":
        return f"{_OURS[first]}.{rest[0]}"
    group, block = divmod(int(rest[0]), blocks)
    return f"f.layer{group + 1}.{block}.{_INNER.get(rest[1], rest[1])}.{rest[2]}"


def _buffer(held: Any, shape: tuple[int, int, int]) -> Tensor | None:
    """The replay buffer, from [-1, 1] to [0, 1]."""
    if held is None or (isinstance(held, list) and not held):
        return None
    found = tuple(held.shape) if isinstance(held, Tensor) else ()
    if found[1:] != shape or not found[0]:
        raise UserError(f"has a replay_buffer of shape {found}, expected (n, {', '.join(map(str, shape))})")
    images = held.float()
    low, high = float(images.min()), float(images.max())
    if not -100 < low < 0 < high < 100:  # NaN fails here too; JEM's chains are not clamped
        raise UserError(f"has a replay_buffer with pixels from {low:.3g} to {high:.3g}, expected about -1 to 1")
    return (images + 1.0) / 2.0


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return (", ".join(listed[:3]) or "nothing") + more


def variant_of(norm: Norm, chosen: str | None, variants: Mapping[str, Variant]) -> str:
    """The recipe by which chains start and run: ``chosen``, or the only one with that normalisation; else UserError."""
    fitting = [name for name, variant in variants.items() if variant.norm == norm and not variant.like]
    name = fitting[0] if chosen is None and len(fitting) == 1 else chosen or "nothing"
    if name not in variants or variants[name].norm != norm:
        raise UserError(f"the checkpoint has norm {norm}: expected --variant {' or '.join(fitting)}, got {name}")
    return name


def write(folder: Path, released: Released, variant: str, source: Path) -> str:
    """Write ``best.pt``, ``buffer.npz`` (where there is a buffer) and ``external.json``; returns the fingerprint."""
    model = EnergyModel(WideResNet(released.architecture))
    model.network.load_state_dict(released.state)
    save_model(folder / "best.pt", model)
    (folder / "buffer.npz").unlink(missing_ok=True)
    if released.buffer is not None:
        files.write_npz(folder / "buffer.npz", {"images": released.buffer.numpy()}, compress=False)
    said = {"variant": variant, "weights": model_digest(model)}
    said["fingerprint"] = files.digest(said)
    files.write_json(folder / IMPORTED, said | {"file": source.name, "file_sha256": files.file_hash(source)})
    return said["fingerprint"]
