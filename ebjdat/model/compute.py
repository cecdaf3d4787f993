"""How forwards are computed: precision, compilation, and gradients of inputs only.

Precision concerns the body of the network alone. Input mapping, pooled features, head, logits, energies, losses, chain
states, attacks and the optimiser are float32 under every setting.

    float32   every operation in float32, TF32 off on GPUs (see ``ebjdat.device``)
    bfloat16  convolutions and normalisation of activations in bfloat16 by autocast; weights, their
              gradients and BatchNorm statistics stay float32
    auto      bfloat16 where the hardware multiplies bfloat16 natively, else float32
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ebjdat.device import out_of_memory
from ebjdat.model.energy import EnergyModel
from ebjdat.model.wideresnet import Block, statistics

Precision = Literal["float32", "bfloat16", "auto"]


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type that ``precision`` stands for on ``device``; see the module."""
    if precision == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 run in hardware: NVIDIA from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported()


@contextmanager
def input_gradients_only(model: nn.Module) -> Iterator[None]:
    """Inside, parameters ask for no gradient, so that a backward computes that of the input alone.

    Eager autograd skips unasked weight gradients anyway; it also drops what they alone would need, and a compiled
    backward is built without them. In bfloat16 the convolutions' weights are rounded once, not in each forward, to the
    same bits. May be nested.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rounds = getattr(model, "dtype", torch.float32) == torch.bfloat16
    layers: list[dict[str, Any]] = [
        module._parameters for module in model.modules() if isinstance(module, nn.Conv2d) and rounds
    ]
    before = [dict(layer) for layer in layers]
    for parameter in learning:
        parameter.requires_grad_(False)
    for layer in layers:
        layer.update({name: None if one is None else one.to(torch.bfloat16) for name, one in layer.items()})
    try:
        yield
    finally:
        for layer, weights in zip(layers, before, strict=True):
            layer.update(weights)
        for parameter in learning:
            parameter.requires_grad_(True)


def compile_blocks(model: EnergyModel, x: Tensor) -> bool:
    """Compile the residual blocks and try them with both statistics and both kinds of gradient on x (N,C,H,W).

    Blocks of one shape share their code, so a deep network takes no longer to compile. Where compilation fails, the
    model stays eager and one line on stderr says why. Weights and statistics are left as they are.

    Returns:
        Whether the blocks are compiled.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    # One graph per shape, batch size, statistics and kind of gradient: more than the defaults allow.
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, limit, max(512, getattr(torch._dynamo.config, limit)))
    for block in blocks:
        block.compile(dynamic=False)
    try:
        _try_passes(model, x)
    except (RuntimeError, ImportError, OSError, subprocess.SubprocessError) as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        for block in blocks:
            block._compiled_call_impl = None  # PyTorch has no public way back
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(f"warning: the network could not be compiled and runs eagerly: {reason[0]}", file=sys.stderr)
        return False
    return True


def _try_passes(model: EnergyModel, x: Tensor) -> None:
    with input_gradients_only(model):
        for which in ("batch", "running"):
            with statistics(model, which):  # type: ignore[arg-type]
                images = x.detach().requires_grad_()
                torch.autograd.grad(model.energy(images).sum(), images)
    with statistics(model, "batch"):
        torch.autograd.grad(model.energy(x).sum(), list(model.parameters()))
