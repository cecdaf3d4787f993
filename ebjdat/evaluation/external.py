"""A classifier that was not trained here, as a model that the evaluation stages can open.

It comes from a factory: ``module:function``, called without arguments, returns a torch module that
maps images (N,C,H,W) float32 in [0, 1] to logits (N,10). Its weights are kept beside the factory's
name, so that every stage, and every worker of AutoAttack, meets the same model.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ebjdat import files, provenance
from ebjdat.data.gaussians import CLASSES
from ebjdat.errors import UserError
from ebjdat.model.store import model_digest, read_payload, save_payload
from ebjdat.subject import EXTERNAL

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def method_of(name: str) -> str:
    """``external-<name>``, the method that stands for the model in records and tables.

    Raises:
        UserError: the name has other characters than a-z, 0-9 and single hyphens.
    """
    name = name.removeprefix(EXTERNAL)
    if len(name) > 40 or not NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: expected at most 40 of a-z, 0-9 and single hyphens between them")
    return EXTERNAL + name


def find_factory(spec: str) -> Callable[[], Any]:
    """The function that ``module:function`` names; the current folder and PYTHONPATH are searched.

    Raises:
        UserError: no such module or function.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise UserError(f"--factory {spec!r}: expected module:function, such as my_module:make_model")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UserError(f"--factory {spec}: {error}; run from its folder, or set PYTHONPATH") from None
    except AttributeError:
        raise UserError(f"--factory {spec}: module {module} has no {name}") from None
    if not callable(found):
        raise UserError(f"--factory {spec}: {name} is no function")
    return found


def make(spec: str) -> nn.Module:
    """The factory's model on the CPU, in eval mode, without parameter gradients.

    Raises:
        UserError: the factory returns no torch module.
    """
    model = find_factory(spec)()
    if not isinstance(model, nn.Module):
        raise UserError(f"--factory {spec}: expected a torch.nn.Module, got {type(model).__name__}")
    return model.cpu().eval().requires_grad_(False)


def check(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Two images of ``shape`` (C,H,W) in [0, 1] must give finite logits (2,10).

    Raises:
        UserError: they do not.
    """
    try:
        logits = model(torch.full((2, *shape), 0.5))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the model fails on images of shape {shape}: {reason}") from None
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (2, CLASSES):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(f"the model must give logits (N, {CLASSES}); two images gave {found}")
    if not bool(logits.isfinite().all()):
        raise UserError("the model's logits are not finite")


def save(folder: Path, spec: str, shape: tuple[int, ...]) -> str:
    """Make the factory's model, check it, keep it in ``folder``; returns its fingerprint.

    Writes ``best.pt`` (factory and weights) and ``external.json``. The fingerprint hashes weights,
    architecture as printed, the factory's name and the source of its file, not what that file imports.
    """
    model = make(spec)
    check(model, shape)
    source = inspect.getsourcefile(inspect.unwrap(find_factory(spec)))
    described = {
        "factory": spec,
        "source": provenance.file_hash(source) if source else None,
        "weights": model_digest(model),
        "architecture": provenance.digest(str(model), 64),
    }
    fingerprint = provenance.digest(described)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_payload(folder / "best.pt", {"factory": spec, "state": state})
    files.write_json(folder / "external.json", described | {"fingerprint": fingerprint})
    return fingerprint


def load(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """A model that :func:`save` kept, from its factory with its weights, in eval mode.

    Raises:
        UserError: the file is missing or damaged, the factory is gone, or the weights do not fit it.
    """
    payload = read_payload(Path(path))
    if not isinstance(payload.get("factory"), str):
        raise UserError(f"{path} is not a model of stages.evaluate_model; run it again")
    model = make(payload["factory"])
    try:
        model.load_state_dict(payload["state"])
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path} does not fit its factory any longer: {str(error).splitlines()[0]}") from None
    return model.to(device)
