"""A trained model as a plain torch module, for use outside this pipeline.

>>> import ebjdat
>>> model = ebjdat.load("models/digits/ebjdat-jempp/0")
>>> logits = model(images)                  # images (N,C,H,W) float32 in [0, 1]
>>> samples = model.sample(16, y=3)

It maps images in [0, 1] to logits, so AutoAttack, RobustBench's evaluation, captum and torch-fidelity take it as it is.
"""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ebjdat import files
from ebjdat.data.gaussians import Mixture, load_mixture
from ebjdat.errors import UserError
from ebjdat.model import description, exported
from ebjdat.model.description import Description
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import load_model
from ebjdat.training.samplers import chain_start, generate

COMPANY = 64
"""Fewest chains that run together where a chain's forward sees the statistics of its batch."""


class Classifier(EnergyModel):
    """Images (N,C,H,W) float32 in [0, 1] -> logits (N,classes) float32; ``energy`` and ``sample``.

    Attributes:
        description: what the model is and how its chains run; None where only weights are known.
    """

    def __init__(self, network: torch.nn.Module, described: Description | None, folder: Path | None = None) -> None:
        super().__init__(network)
        self.description = described
        self._folder = folder
        self._mixture: Mixture | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N,classes).

        Raises:
            UserError: the images are whole numbers.
        """
        if not x.is_floating_point():
            raise UserError(f"images: expected floating-point numbers in [0, 1], got {x.dtype}: divide by 255 first")
        return super().forward(x)

    def sample(
        self,
        n: int,
        y: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Fresh samples of p(x), or of p(x, y), from the variant's own initialisation.

        Where chains see batch statistics, at least 64 of them run together, so that few samples look like many.

        Args:
            y: one class for all, or labels (n,) int64; None: chains go down E(x), whatever the class.
            generator: source of randomness; None: PyTorch's global one seeds the chains.
            steps: outer steps of the chains; None: as many as the profile's evaluation takes.

        Returns:
            (n,C,H,W) float32 in [0, 1] on the model's device.

        Raises:
            UserError: the model does not generate, or its Gaussians are missing or not the right ones.
            ValueError: n is not positive, or labels do not fit.
        """
        described, device = self.description, next(self.parameters()).device
        if described is None:
            raise UserError("only weights were loaded: give the folder that holds the model's description too")
        if described.recipe is None:
            raise UserError(f"{described.model} is a baseline: it was not trained to generate, so it has no sampler")
        if n < 1:
            raise ValueError(f"n: expected at least 1, got {n}")
        if self._mixture is None and described.gaussians is not None:
            self._mixture = load_mixture(self.gaussians_file())
        mixture = None if self._mixture is None else self._mixture.to(device)
        start = chain_start(described.recipe, mixture, described.shape)
        labels = None if y is None else _labels(y, n, described.classes)
        total = max(n, COMPANY) if described.recipe.chain_statistics == "batch" else n
        if labels is not None and total > n:
            labels = torch.cat([labels, torch.arange(total - n) % described.classes])
        on_device = None if labels is None else labels.to(device)
        steps = described.chain_steps if steps is None else steps
        return generate(self, described.recipe, start, total, steps, _on(device, generator), on_device)[:n]

    def gaussians_file(self) -> Path:
        """The file of the class Gaussians that the chains start from, its hash checked.

        Raises:
            UserError: the model has none, or the file is missing or not the right one.
        """
        described = self.description
        if described is None or described.gaussians is None:
            raise UserError("the chains of this model start from no Gaussians")
        name, here = described.gaussians, (self._folder or Path()).absolute()
        found = [folder / name for folder in (here, *here.parents) if (folder / name).is_file()]
        if not found:
            raise UserError(f"{name} is missing, where the chains of {described.model} start: run the stage prepare")
        if files.file_hash(found[0]) != described.gaussians_sha256:
            raise UserError(f"{found[0]} is not the file that {described.model} was trained with (another hash)")
        return found[0]


def load(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """A trained or exported model, in eval mode, without parameter gradients.

    Args:
        path: a model's folder (its best checkpoint is taken), a checkpoint in one, or an exported folder with
            ``config.json`` and ``model.safetensors``.

    Raises:
        UserError: the file is missing or damaged, or is no model of this project.
    """
    path = Path(path)
    _check_place(path)
    folder = path if path.is_dir() else path.parent
    described: Description | None
    if (folder / exported.CONFIG).is_file() and path.suffix != ".pt":
        network, described = exported.read(folder)
    else:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise UserError(f"{path} is no checkpoint: give a model's folder, its .pt file or an exported folder")
        network = load_model(folder / "best.pt" if path.is_dir() else path).network
        described = description.read(folder) if (folder / description.NAME).is_file() else None
    model = Classifier(network, described, folder)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False)


def _check_place(path: Path) -> None:
    """Refuse a path without a model, naming those near it; damaged files are found in reading."""
    known = ("best.pt", exported.CONFIG)
    if path.is_file() or any((path / name).is_file() for name in known):
        return
    near = next(one for one in (path, *path.parents) if one.is_dir())
    places = [f"{depth}{name}" for depth in ("*/", "*/*/", "*/*/*/") for name in known]
    models = sorted({found.parent.as_posix() for place in places for found in near.glob(place)})
    what = "holds no model" if path.is_dir() else "does not exist"
    raise UserError(f"{path} {what}; models near {near}: {', '.join(models[:20]) or 'none'}")


def _labels(y: int | Tensor, n: int, classes: int) -> Tensor:
    labels = torch.as_tensor(y).cpu().long()
    labels = labels.expand(n) if labels.dim() == 0 else labels
    if tuple(labels.shape) != (n,) or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"y: expected {n} labels of 0 to {classes - 1}, or one of them for all samples")
    return labels


def _on(device: torch.device, generator: torch.Generator | None) -> torch.Generator:
    """A generator on the device: the given one where it lies there already, else one that it seeds."""
    if generator is not None and generator.device.type == device.type:
        return generator
    seed = torch.randint(2**62, (1,), generator=generator, device="cpu" if generator is None else generator.device)
    return torch.Generator(device).manual_seed(int(seed))
