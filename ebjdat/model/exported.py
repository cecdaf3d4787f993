"""A model for others: ``config.json`` and ``model.safetensors``, the two files of Hugging Face's Hub mixin."""

from dataclasses import asdict
from pathlib import Path

from torch import nn

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.model import description
from ebjdat.model.description import Description
from ebjdat.model.wideresnet import Architecture, WideResNet

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def write(folder: Path, network: WideResNet, described: Description) -> None:
    """Write the two files; the weights' names start with ``network.``, as in the module of ``ebjdat.load``."""
    from safetensors.torch import save

    state = {f"network.{name}": tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    with files.atomic(folder / WEIGHTS) as handle:
        handle.write(save(state, {"format": "pt"}))
    config = {"architecture": asdict(network.architecture), "model": described.plain(), "model_type": "ebjdat"}
    files.write_json(folder / CONFIG, config)


def read(folder: Path) -> tuple[nn.Module, Description]:
    """The network and its description from an exported folder.

    Raises:
        UserError: a file is missing or damaged, or the weights do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    config, weights = files.read_json(folder / CONFIG), folder / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{weights} is missing")
    try:
        network = WideResNet(Architecture(**config["architecture"]))
        described = description.parse(config["model"], str(folder / CONFIG))
        state = load(weights.read_bytes())
        network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in state.items()})
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{folder} is no exported model of this project: {str(error).splitlines()[0]}") from None
    return network, described
