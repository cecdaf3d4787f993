"""Odd classifiers, and sound ones, at the door of stages.evaluate_model; docs/your-model.md shows what becomes of them.

``python -m tests.zoo`` tries all of them and fills the table of the page.
"""

from __future__ import annotations

import importlib
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebjdat import files
from ebjdat.errors import UserError
from ebjdat.evaluation import external
from tests.small_models import SmallNet, fit, held_out, trained

PAGE = Path(__file__).parents[1] / "docs" / "your-model.md"
BEGIN, END = "<!-- zoo -->", "<!-- /zoo -->"
MEAN, SPREAD = 0.5, 0.05
"""What two models standardise images with; so narrow a spread makes its absence plain."""


class Around(nn.Module):
    """A trained network with something around its forward pass."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Any], net: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.around = net or trained(), forward

    def forward(self, x: Tensor) -> Any:
        return self.around(self.net, x)


class InAList(nn.Module):
    """The weights of its last layer are in a Python list, and new at every call of the factory."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.hidden = trained(), [torch.randn(10, 10)]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) @ self.hidden[0]


class Attention(nn.Module):
    """A small vision transformer on patches of 2x2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.place = nn.Conv2d(1, 16, 2, stride=2), nn.Parameter(torch.randn(16, 16) / 4)
        self.layer, self.head = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(x).flatten(2).mT + self.place).mean(1))


class WithHistory(SmallNet):
    """Its state holds something that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"trained": "elsewhere"}

    def set_extra_state(self, state: Any) -> None:
        pass


@lru_cache
def fitted(name: str, shift: float = 0.0, scale: float = 1.0) -> dict[str, Tensor]:
    """Weights of a network of :data:`PLAIN` after a moment of training on digits, standardised by shift and scale."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fit(PLAIN[name](), 4, change=lambda model, x, y: (x - shift) / scale).state_dict()


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10)),
    "attention": Attention,
    "wide head": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12)),
}


def plain(name: str, shift: float = 0.0, scale: float = 1.0) -> nn.Module:
    """A network of :data:`PLAIN` with its weights, in train mode as somebody may leave it."""
    model = PLAIN[name]()
    model.load_state_dict(fitted(name, shift, scale))
    return model


def pair() -> nn.ModuleList:
    """Two networks."""
    return nn.ModuleList([trained(), trained(adversarial=True)])


def mean_probability(nets: Any, x: Tensor) -> Tensor:
    """The mean probability of several networks."""
    return torch.stack([net(x).softmax(1) for net in nets]).mean(0)


def norm_of_the_batch() -> nn.Module:
    """Without running statistics a BatchNorm takes those of the batch, in eval mode too."""
    net = SmallNet()
    net.norm = nn.BatchNorm2d(16, track_running_stats=False)
    return net


def under(context: Callable[[], Any]) -> Callable[[nn.Module, Tensor], Tensor]:
    """A forward pass inside a context such as ``torch.no_grad``."""

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        with context():
            return net(x)

    return forward


def seeded_noise(net: nn.Module, x: Tensor) -> Tensor:
    """Noise that is the same at every call, and another one for every image of a batch."""
    return net(x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))


def with_a_bias(value: float) -> nn.Module:
    """One of its logits is ``value``."""
    model = trained()
    model.head.bias.data[3] = value
    return model


def round_straight(net: nn.Module, x: Tensor) -> Tensor:
    """Rounds to 5 levels forward, and passes gradients as they are."""
    return net(x + ((4.0 * x).round() / 4.0 - x).detach())


def weight_normed() -> nn.Module:
    """Its head's weights are computed from other parameters."""
    net = trained()
    nn.utils.parametrizations.weight_norm(net.head)
    return net


def int8() -> nn.Module:
    """Dynamic quantisation."""
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {nn.Linear})


def untrained() -> nn.Module:
    """Weights of its initialisation."""
    torch.manual_seed(0)
    return SmallNet()


def ends() -> nn.Module:
    """A script that ends the program."""
    sys.exit("usage: train.py --data FOLDER")


def loses_weights() -> nn.Module:
    """A script whose file is not there."""
    raise FileNotFoundError("weights.pt")


def of_weights(weights: Path) -> nn.Module:
    """A function that cannot be called without arguments."""
    return untrained()


Models = dict[str, tuple[str, Any]]
"""What a model is, and its factory, by name."""
SOUND: Models = {
    "cnn": ("a convolutional network with BatchNorm", trained),
    "robust": ("the same, adversarially trained", lambda: trained(adversarial=True)),
    "mlp": ("fully connected, left in train mode with dropout", lambda: plain("mlp")),
    "attention": ("a small vision transformer", lambda: plain("attention")),
    "normalised": (
        "standardises images itself",
        lambda: Around(lambda net, x: net((x - MEAN) / SPREAD), plain("mlp", MEAN, SPREAD)),
    ),
    "scripted": ("TorchScript, scripted", lambda: torch.jit.script(trained())),
    "traced": ("TorchScript, traced", lambda: torch.jit.trace(trained(), torch.zeros(2, 1, 8, 8))),
    "frozen": ("TorchScript, frozen", lambda: torch.jit.freeze(torch.jit.script(trained()))),
    "parallel": ("in DataParallel", lambda: nn.DataParallel(trained())),
    "compiled": ("in torch.compile", lambda: torch.compile(trained(), backend="eager")),
    "ensemble": (
        "an ensemble, mean of logits",
        lambda: Around(lambda nets, x: sum(net(x) for net in nets) / 2, pair()),
    ),
    "log_of_votes": (
        "an ensemble, logarithm of its mean probability",
        lambda: Around(lambda nets, x: mean_probability(nets, x).log(), pair()),
    ),
    "log_softmax": ("logarithms of probabilities", lambda: Around(lambda net, x: net(x).log_softmax(1))),
    "shifted": ("all logits higher by 100", lambda: Around(lambda net, x: net(x) + 100.0)),
    "wide_head": ("the first 10 of 12 logits", lambda: Around(lambda net, x: net(x)[:, :10], plain("wide head"))),
    "weight_norm": ("weight normalisation", weight_normed),
    "resized": (
        "resizes images",
        lambda: Around(lambda net, x: net(F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="bilinear"), 2))),
    ),
    "channels_last": ("another memory format", lambda: trained().to(memory_format=torch.channels_last)),
    "straight_through": ("rounds images, with the gradient of no rounding", lambda: Around(round_straight)),
}
TAKEN: Models = {
    "bfloat16_answers": ("answers in bfloat16", lambda: Around(lambda net, x: net(x).bfloat16())),
    "float16_answers": ("answers in float16", lambda: Around(lambda net, x: net(x).half())),
    "bfloat16_inside": (
        "bfloat16 weights, images cast inside",
        lambda: Around(lambda net, x: net(x.bfloat16()), trained().bfloat16()),
    ),
    "float64_inside": (
        "float64 weights, images cast inside",
        lambda: Around(lambda net, x: net(x.double()), trained().double()),
    ),
    "times_1000": ("logits times 1000", lambda: Around(lambda net, x: 1000.0 * net(x))),
    "normalised_outside": ("standardised by its data loader only", lambda: plain("mlp", MEAN, SPREAD)),
    "in_0_255": ("made for images in [0, 255]", lambda: Around(lambda net, x: net(x / 255.0))),
    "untrained": ("its weights were never loaded", untrained),
}
REFUSED: Models = {
    "probabilities": ("gives probabilities", lambda: Around(lambda net, x: net(x).softmax(1))),
    "sharp_probabilities": (
        "softmax of 30 x logits",
        lambda: Around(lambda net, x: (30.0 * net(x)).softmax(1)),
    ),
    "votes": ("an ensemble, mean probability", lambda: Around(mean_probability, pair())),
    "classes": ("gives classes", lambda: Around(lambda net, x: net(x).argmax(1))),
    "whole_numbers": ("gives whole numbers", lambda: Around(lambda net, x: net(x).round().long())),
    "a_tuple": ("gives a tuple", lambda: Around(lambda net, x: (net(x), x))),
    "a_dictionary": ("gives a dictionary", lambda: Around(lambda net, x: {"logits": net(x)})),
    "numpy": ("gives a NumPy array", lambda: Around(lambda net, x: net(x).numpy())),
    "three_logits": ("3 classes", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))),
    "a_map": ("logits (N, 10, 1, 1)", lambda: Around(lambda net, x: net(x)[:, :, None, None])),
    "squeezed": ("squeezes its output", lambda: Around(lambda net, x: net(x).squeeze(0))),
    "in_place": ("scales its input in place", lambda: Around(lambda net, x: net(x.mul_(0.5)))),
    "detached": ("detaches", lambda: Around(lambda net, x: net(x.detach()))),
    "no_grad": ("runs under no_grad", lambda: Around(under(torch.no_grad))),
    "inference_mode": ("runs under inference_mode", lambda: Around(under(torch.inference_mode))),
    "int8": ("dynamically quantised", int8),
    "rounded": ("rounds images", lambda: Around(lambda net, x: net((4.0 * x).round() / 4.0))),
    "random": ("noise at every call", lambda: Around(lambda net, x: net(x) + torch.randn(10))),
    "dropout": ("functional dropout, always on", lambda: Around(lambda net, x: net(F.dropout(x, 0.2)))),
    "reseeded": ("seeded noise, by the place in the batch", lambda: Around(seeded_noise)),
    "batch": ("subtracts the batch's mean", lambda: Around(lambda net, x: net(x - x.mean(0)))),
    "batch_norm": ("BatchNorm without running statistics", norm_of_the_batch),
    "nan": ("NaN in a weight", lambda: with_a_bias(float("nan"))),
    "minus_infinity": ("one logit is minus infinity", lambda: with_a_bias(float("-inf"))),
    "bfloat16": ("bfloat16 weights", lambda: trained().bfloat16()),
    "half": ("float16 weights", lambda: trained().half()),
    "double": ("float64 weights", lambda: trained().double()),
    "colour": ("made for 3 colours", lambda: nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())),
    "other_size": ("made for 32x32 images", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))),
    "lazy": ("a lazy layer, never called", lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10))),
    "in_a_list": ("weights in a Python list", InAList),
    "with_history": ("a state that is no tensor", WithHistory),
    "a_number": ("the factory gives a number", lambda: 0.5),
    "a_function": ("the factory gives a function", lambda: torch.softmax),
    "a_module": ("the factory is the model itself", SmallNet()),
    "no_weights": ("its file is missing", loses_weights),
    "leaves": ("its script ends the program", ends),
    "needs_an_argument": ("its factory wants an argument", of_weights),
}
ZOO = SOUND | TAKEN | REFUSED


def __getattr__(name: str) -> Any:
    """Factories of this module, by the names of :data:`ZOO`."""
    if name in ZOO:
        return ZOO[name][1]
    raise AttributeError(name)


def spec(name: str) -> str:
    """``module:function`` of a model."""
    return f"{__name__}:{name}"


def at_the_door(name: str, folder: Path) -> tuple[bool, str]:
    """Whether a model is taken into ``folder``, and the sentence: why not, or what is odd about it."""
    x, y = held_out(100)
    try:
        external.save(folder, spec(name), x, y)
    except UserError as error:
        return False, str(error).removeprefix(f"--factory {spec(name)}: ")
    return True, "; ".join(external.look(external.load(folder / "best.pt"), x, y)[1])


def table(found: dict[str, tuple[bool, str]]) -> str:
    """What :func:`at_the_door` found, as Markdown; measured numbers, which another machine may change, as ``...``."""
    rows = ["| the model | | what is said |", "| --- | --- | --- |"]
    for name, (taken, said) in found.items():
        said = re.sub(r"by [\d.e+-]+\d|[\d.]+(?= %)", lambda found: "by ..." if " " in found[0] else "...", said)
        fate = "taken, same flags" if name in SOUND else "taken" if taken else "refused"
        rows.append(f"| {ZOO[name][0]} | {fate} | {said.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def main() -> None:
    """Fill the table of the page."""
    warnings.simplefilter("ignore")  # PyTorch's, about TorchScript and int8
    with tempfile.TemporaryDirectory() as folder:
        found = {name: at_the_door(name, Path(folder, name)) for name in ZOO}
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    files.write_text(PAGE, f"{before}{BEGIN}\n{table(found)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    # The factories are looked up in the imported module.
    importlib.import_module("tests.zoo").main()
