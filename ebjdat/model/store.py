"""Models on disk: weights with what is needed to build the network again.

A file is read with ``weights_only=True``, so nothing in it is ever executed.
"""

import hashlib
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch

from ebjdat.errors import UserError
from ebjdat.model.energy import EnergyModel
from ebjdat.model.wideresnet import Architecture, WideResNet


def new_model(architecture: Architecture, seed: int) -> EnergyModel:
    """A freshly initialised model; its weights depend on ``seed`` only, the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = WideResNet(architecture)
    return EnergyModel(network).to(memory_format=torch.channels_last)


def save_model(path: Path, model: EnergyModel) -> None:
    """Write the model atomically; equal models give equal bytes."""
    assert isinstance(model.network, WideResNet)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_payload(path, {"architecture": asdict(model.network.architecture), "state": state})


def save_payload(path: Path, payload: dict) -> None:
    """Write tensors and plain values atomically, for :func:`read_payload`; equal values give equal bytes.

    Raises:
        UserError: the disk is full or not writable; an earlier file stays.
    """
    # The archive records its own file name, so the temporary file keeps it.
    scratch = path.parent / f".{path.name}.{os.getpid()}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        torch.save(payload, scratch / path.name)
        (scratch / path.name).replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        raise UserError(f"{path} could not be written: {str(error).splitlines()[0]}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_payload(path: Path) -> dict:
    """The content of a file written by :func:`torch.save`, tensors on the CPU.

    Raises:
        UserError: the file is missing, damaged, or holds anything but tensors and plain values.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is missing: run the stage that trains it (dvc repro)")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's reader throws nearly anything at foreign bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint of tensors and plain values: {reason}") from None
    if not isinstance(payload, dict):
        raise UserError(f"{path} holds a {type(payload).__name__}, expected a dictionary written by this project")
    return payload


def load_model(path: str | Path, device: str | torch.device = "cpu") -> EnergyModel:
    """A trained model in eval mode, without parameter gradients.

    Raises:
        UserError: see :func:`read_payload`; also when keys or shapes do not fit the architecture.
    """
    payload = read_payload(Path(path))
    try:
        model = EnergyModel(WideResNet(Architecture(**payload["architecture"])))
        model.load_state_dict(payload["state"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} does not describe a model of this project: {str(error).splitlines()[0]}") from None
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False)


def model_digest(model: torch.nn.Module) -> str:
    """sha256 over names, dtypes, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, because NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
