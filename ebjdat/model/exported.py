"""A model for others: ``config.json`` and ``model.safetensors``, the two files of Hugging Face's Hub mixin.

safetensors (https://github.com/huggingface/safetensors): eight bytes with the length of a JSON header,
the header with type, shape and place of every tensor, then the tensors' bytes, little-endian. Nothing
in such a file can be executed. Reader and writer are here because the format is smaller than a
dependency; a test compares them with the library where it is installed.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.model import description
from ebjdat.model.description import Description
from ebjdat.model.store import Architecture
from ebjdat.model.wideresnet import WideResNet

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_TYPES |= {"BOOL": torch.bool}
_NAMES = {kind: name for name, kind in _TYPES.items()}
_LONGEST_HEADER = 100_000_000


def write(folder: Path, network: nn.Module, architecture: Architecture, described: Description) -> None:
    """Write the two files; the weights' names start with ``network.``, as in the module of ``ebjdat.load``."""
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    write_safetensors(folder / WEIGHTS, state, {"format": "pt"})
    config = {"architecture": asdict(architecture), "model": described.plain(), "model_type": "ebjdat"}
    files.write_json(folder / CONFIG, config)


def read(folder: Path) -> tuple[nn.Module, Description]:
    """The network and its description from an exported folder.

    Raises:
        UserError: a file is missing or damaged, or the weights do not fit.
    """
    config = files.read_json(folder / CONFIG)
    try:
        network = WideResNet(**asdict(Architecture(**config["architecture"])))
        described = description.parse(config["model"], str(folder / CONFIG))
        state = read_safetensors(folder / WEIGHTS)
        network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in state.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} is no exported model of this project: {str(error).splitlines()[0]}") from None
    return network, described


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors in the order of their names; equal tensors give equal bytes.

    Raises:
        ValueError: a type that the format does not have.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    parts, place = [], 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name}: safetensors has no type for {tensor.dtype}")
        parts.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        shape, end = list(tensor.shape), place + len(parts[-1])
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with files.atomic(path) as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            handle.write(part)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        if length > min(_LONGEST_HEADER, len(raw) - 8):
            raise ValueError("the header is longer than the file")
        header, data = json.loads(raw[8 : 8 + length]), memoryview(raw)[8 + length :]
        return {name: _tensor(entry, data) for name, entry in header.items() if name != "__metadata__"}
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} is no safetensors file: {str(error).splitlines()[0]}") from None


def _tensor(entry: dict[str, Any], data: memoryview) -> Tensor:
    first, end = entry["data_offsets"]
    if not 0 <= first <= end <= len(data):
        raise ValueError("a tensor lies outside the file")
    flat = torch.frombuffer(bytearray(data[first:end]), dtype=torch.uint8) if end > first else torch.empty(0)
    return flat.to(torch.uint8).view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
