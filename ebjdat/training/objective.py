"""What training minimises: EB-JDAT with its readings, the plain variants, and the baselines.

An objective works in two halves, so that the second pass of sharpness-aware minimisation sees the same negatives and
the same adversarial images:

    prepare(model, batch)  walks the chains and crafts adversarial images
    loss(model, prepared)  the scalar to minimise, with the terms it is made of

EB-JDAT models p(x, x_adv, y) = p(y | x_adv, x) p(x_adv | x) p(x) ("Your Classifier Can Do More", arXiv:2505.19459)
and minimises

    w_px * [mean E(x_p) - mean E(x_gen)] + w_clean * CE(f(x), y) + w_adversarial * CE(f(x_adv), y)
    + w_energy * energy term

with the energy term of p(x_adv | x) under the reading

    energy                    G(E(x_adv) - E(x)), paired on the same x; G is the form of the gap
    cross_entropy, committed  mean E(x_p) - mean E(x_adv), unpaired: x_adv as extra negatives
    none                      0

The two outer terms point in opposite directions: the first lowers E(x_adv) relative to its reference, the second
raises it.

BatchNorm: chains see what the variant says and update nothing; adversarial images are crafted with running statistics;
in the loss each of x_p, x_gen, x, x_adv is normalised by its own batch, and only x and x_adv update running statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ebjdat.config import Gap, Variant
from ebjdat.model.energy import EnergyModel, energy
from ebjdat.model.wideresnet import statistics
from ebjdat.training import parallel
from ebjdat.training.adversary import inner_objective, pgd, sign_ascent, uniform_start
from ebjdat.training.replay_buffer import ReplayBuffer
from ebjdat.training.samplers import chain
from ebjdat.training.streams import Streams, normal


@dataclass(frozen=True, slots=True)
class Batch:
    """One iteration's images, augmented and noisy as the recipe says; (N,C,H,W), labels (N,)."""

    x: Tensor
    y: Tensor
    x_p: Tensor | None
    """Images of the p(x) term; None for objectives without one."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch with what both passes share."""

    batch: Batch
    x_gen: Tensor | None = None
    x_adv: Tensor | None = None


Terms = dict[str, Tensor]
"""Detached scalars by name, for the history."""


class Objective:
    """A method: its two halves, and what it means for statistics and selection.

    Args:
        eps: radius of the training adversary, pixel units.
        recipe: the JEM recipe as the method uses it; None for a baseline.
    """

    sees: ClassVar[Literal["clean", "adversarial", "both"]] = "both"
    """Which kinds of images the labelled terms see, and so BatchNorm in training."""
    selected_by: ClassVar[Literal["robust", "clean"]] = "robust"
    """Validation accuracy that selects the checkpoint: PGD robust accuracy, by one rule for all that are compared."""

    def __init__(self, eps: float, recipe: Variant | None = None) -> None:
        self.eps, self.recipe = eps, recipe

    @property
    def reach(self) -> float:
        """How far :meth:`craft` can get from x, pixel units; more than eps where it does not project."""
        return self.eps

    def prepare(self, model: EnergyModel, batch: Batch, buffer: ReplayBuffer | None, streams: Streams) -> Prepared:
        """Everything that needs input gradients."""
        return Prepared(batch, x_adv=self.craft(model, batch.x, batch.y, streams.attack))

    def craft(self, model: EnergyModel, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Adversarial images (N,C,H,W) in [0, 1] for images x in [0, 1] and labels y (N,)."""
        raise NotImplementedError

    def loss(self, model: EnergyModel, prepared: Prepared) -> tuple[Tensor, Terms]:
        """The scalar to minimise and its terms."""
        raise NotImplementedError


class EBJDAT(Objective):
    """EB-JDAT over a JEM variant; without its energy term where the recipe's reading is ``none``."""

    recipe: Variant

    @property
    def reach(self) -> float:
        """See :class:`Objective`."""
        return self.eps * (1.0 if self.recipe.project else 1.0 + self.recipe.attack_steps * self.recipe.attack_step)

    def prepare(self, model: EnergyModel, batch: Batch, buffer: ReplayBuffer | None, streams: Streams) -> Prepared:
        """Walk the chains from the replay buffer; craft x_adv under the reading."""
        assert buffer is not None and batch.x_p is not None
        start, places = buffer.draw(len(batch.x_p), streams.buffer)
        x_gen = chain(model, start, self.recipe, self.recipe.steps, streams.chains)
        buffer.put(places, x_gen)
        x_adv = None if self.sees == "clean" else self.craft(model, batch.x, batch.y, streams.attack)
        return Prepared(batch, x_gen, x_adv)

    def craft(self, model: EnergyModel, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """The inner problem; see ``ebjdat.training.adversary``."""
        recipe = self.recipe
        with torch.no_grad(), statistics(model, "running"):
            reference = model(x)
        return sign_ascent(
            model,
            lambda logits: inner_objective(recipe.reading, logits, reference, y),
            x,
            uniform_start(x, self.eps, generator),
            eps=self.eps,
            step=recipe.attack_step * self.eps,
            steps=recipe.attack_steps,
            project_to_ball=recipe.project,
        )

    def loss(self, model: EnergyModel, prepared: Prepared) -> tuple[Tensor, Terms]:
        """The weighted sum of the module's formula."""
        recipe, batch = self.recipe, prepared.batch
        data_logits, generated_logits, clean_logits, adversarial_logits = self._forwards(model, prepared)
        data, generated, clean = energy(data_logits), energy(generated_logits), energy(clean_logits)
        px = data.mean() - generated.mean()
        classify = F.cross_entropy(clean_logits, batch.y)
        total = recipe.w_px * px + recipe.w_clean * classify
        terms = {"loss_px": px, "loss_clean": classify, "energy_data": data.mean()}
        terms |= {"energy_generated": generated.mean(), "energy_clean": clean.mean()}
        if adversarial_logits is not None:
            adversarial = energy(adversarial_logits)
            robust = F.cross_entropy(adversarial_logits, batch.y)
            outer = energy_term(recipe.reading, recipe.gap, adversarial, clean, data)
            total = total + recipe.w_adversarial * robust + recipe.w_energy * outer
            terms |= {"loss_adversarial": robust, "loss_energy": outer, "energy_adversarial": adversarial.mean()}
            terms["energy_gap"] = adversarial.mean() - clean.mean()
        return total, detached(total, terms)

    def _forwards(self, model: EnergyModel, prepared: Prepared) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Logits of x_p, x_gen, x and, where there is one, x_adv.

        Without normalisation no image sees another, and all sets are one pass. With BatchNorm each set is a pass of its
        own: x_p and x_gen leave running statistics alone, x and then x_adv update them.
        """
        x, x_p, x_gen, x_adv = prepared.batch.x, prepared.batch.x_p, prepared.x_gen, prepared.x_adv
        assert x_p is not None and x_gen is not None
        if self.recipe.norm == "none":
            sets = [x_p, x_gen, x] if x_adv is None else [x_p, x_gen, x, x_adv]
            parts = model(torch.cat(sets)).split([len(part) for part in sets])
            return parts[0], parts[1], parts[2], None if x_adv is None else parts[3]
        with statistics(model, "batch"):
            data, generated = model(x_p), model(x_gen)
        return data, generated, model(x), None if x_adv is None else model(x_adv)


class Plain(EBJDAT):
    """The plain JEM variant: EB-JDAT without its two adversarial terms."""

    sees = "clean"


class PGDAT(Objective):
    """PGD adversarial training (Madry et al., ICLR 2018; settings of Rice et al., ICML 2020, arXiv:2002.11569)."""

    sees = "adversarial"
    steps = 10

    def craft(self, model: EnergyModel, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """PGD from a random start."""
        return pgd(model, x, y, uniform_start(x, self.eps, generator), self.eps, self.steps)

    def loss(self, model: EnergyModel, prepared: Prepared) -> tuple[Tensor, Terms]:
        """Cross-entropy on adversarial images only."""
        assert prepared.x_adv is not None
        logits = model(prepared.x_adv)
        total = F.cross_entropy(logits, prepared.batch.y)
        return total, detached(total, {"loss_adversarial": total, "energy_adversarial": energy(logits).mean()})


class TRADES(Objective):
    """TRADES (Zhang et al., ICML 2019, arXiv:1901.08573): CE(f(x), y) + beta KL(f(x) || f(x_adv))."""

    beta = 6.0
    steps, step = 10, 0.007 / 0.031

    def craft(self, model: EnergyModel, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Raise the divergence from x + 0.001 N(0, 1); labels are not used."""
        with torch.no_grad(), statistics(model, "running"):
            reference = F.softmax(model(x), dim=1)

        def divergence(logits: Tensor) -> Tensor:
            return F.kl_div(F.log_softmax(logits, dim=1), reference, reduction="sum")

        start, step = x + 0.001 * normal(x, generator), self.step * self.eps
        return sign_ascent(model, divergence, x, start, eps=self.eps, step=step, steps=self.steps)

    def loss(self, model: EnergyModel, prepared: Prepared) -> tuple[Tensor, Terms]:
        """CE on clean images plus beta times the mean divergence."""
        assert prepared.x_adv is not None
        logits, adversarial = model(prepared.batch.x), model(prepared.x_adv)
        classify = F.cross_entropy(logits, prepared.batch.y)
        smooth = F.kl_div(F.log_softmax(adversarial, dim=1), F.softmax(logits, dim=1), reduction="batchmean")
        total = classify + self.beta * smooth
        terms = {"loss_clean": classify, "loss_adversarial": smooth, "energy_clean": energy(logits).mean()}
        terms |= {"energy_adversarial": energy(adversarial).mean()}
        terms["energy_gap"] = terms["energy_adversarial"] - terms["energy_clean"]
        return total, detached(total, terms)


class Undefended(Objective):
    """Plain cross-entropy; selected by clean accuracy, for robust accuracy would stop it at its first epochs."""

    sees = "clean"
    selected_by = "clean"

    def prepare(self, model: EnergyModel, batch: Batch, buffer: ReplayBuffer | None, streams: Streams) -> Prepared:
        """Nothing to prepare."""
        return Prepared(batch)

    def loss(self, model: EnergyModel, prepared: Prepared) -> tuple[Tensor, Terms]:
        """Cross-entropy on clean images."""
        logits = model(prepared.batch.x)
        total = F.cross_entropy(logits, prepared.batch.y)
        return total, detached(total, {"loss_clean": total, "energy_clean": energy(logits).mean()})


def energy_term(reading: str, form: Gap, adversarial: Tensor, clean: Tensor, data: Tensor) -> Tensor:
    """The outer energy term from E(x_adv) and E(x) (N,) and E(x_p) (M,); a scalar."""
    if reading == "energy":
        return energy_gap(adversarial, clean, form)
    if reading == "none":
        return adversarial.new_zeros(())
    assert reading in ("cross_entropy", "committed"), reading
    return data.mean() - adversarial.mean()


def energy_gap(adversarial: Tensor, clean: Tensor, form: Gap) -> Tensor:
    """G(E(x_adv) - E(x)) for paired energies (N,): the forms of the reading ``energy``."""
    gap = adversarial - clean
    if form == "mean_hinge":
        return parallel.mean(gap).clamp_min(0.0)
    if form == "mean_absolute":
        return parallel.mean(gap).abs()
    if form == "sample_hinge":
        return gap.clamp_min(0.0).mean()
    if form == "sample_absolute":
        return gap.abs().mean()
    assert form == "mean", form
    return gap.mean()


def detached(total: Tensor, terms: Terms) -> Terms:
    """The terms of a loss and the loss itself, without gradient."""
    return {"loss": total.detach(), **{name: value.detach() for name, value in terms.items()}}
