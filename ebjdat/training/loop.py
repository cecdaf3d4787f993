"""Training: one loop for EB-JDAT, the plain variants and the baselines.

Iterations are whole batches of an order drawn per epoch; after each epoch BatchNorm statistics are
re-estimated on a copy of the running ones and PGD robust accuracy on the validation split selects
the checkpoint, by one rule for every method (robust overfitting: Rice et al., ICML 2020,
arXiv:2002.11569). The test split is never seen here.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ebjdat.config import Network, Shared
from ebjdat.data.prepared import Prepared as Data
from ebjdat.device import out_of_memory
from ebjdat.errors import Interrupted, UserError
from ebjdat.model.compute import compile_network, compute_dtype
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import Architecture, new_model
from ebjdat.model.wideresnet import cut_batches, statistics
from ebjdat.progress import Progress
from ebjdat.training import parallel
from ebjdat.training.adversary import sign_ascent, uniform_start
from ebjdat.training.augmentation import add_noise, augment
from ebjdat.training.normalisation import estimate_statistics
from ebjdat.training.objective import Batch, Terms
from ebjdat.training.optimisers import learning_rate, new_optimiser, sharpest_neighbour
from ebjdat.training.recipes import Recipe
from ebjdat.training.replay_buffer import ReplayBuffer, ShardedBuffer
from ebjdat.training.samplers import chain_start
from ebjdat.training.state import Checkpoints, State
from ebjdat.training.streams import Streams, derive
from ebjdat.training.supervisor import Diverged, Supervisor

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run: best and last models (with re-estimated statistics), and what happened."""

    best: EnergyModel
    last: EnergyModel
    buffer: Tensor | None
    """Replay buffer (size,C,H,W) of the best epoch."""
    best_epoch: int
    history: list[dict[str, Any]]
    events: list[dict[str, Any]]
    architecture: Architecture


class Trainer:
    """One run of a recipe.

    Args:
        recipe: method and variant.
        shared, network: sections of the profile.
        data: prepared splits; moved to ``device``.
        seed: of every stream.
        checkpoints: where the resumable state lives; None keeps none.
        report: called with each epoch's row.
        note: called with each rollback's event.
    """

    def __init__(
        self,
        recipe: Recipe,
        shared: Shared,
        network: Network,
        data: Data,
        *,
        seed: int,
        device: torch.device,
        checkpoints: Checkpoints | None = None,
        report: Report = lambda row: None,
        note: Report = lambda event: None,
        supervisor: Supervisor | None = None,
    ) -> None:
        self.recipe, self.shared, self.seed, self.device = recipe, shared, seed, device
        self.checkpoints, self.report, self.note = checkpoints, report, note
        self.supervisor = supervisor or Supervisor()
        # Training meets the same few shapes again and again; no effect on a CPU.
        torch.backends.cudnn.benchmark = True
        self.x, self.y = _on(data.x_train, device), data.y_train.to(device)
        self.x_val, self.y_val = _on(data.x_val, device), data.y_val.to(device)
        self.steps_per_epoch = max(1, len(self.x) // recipe.schedule.batch_size)
        self.architecture = Architecture(
            depth=network.depth,
            width=network.width,
            channels=data.shape[0],
            classes=10,
            norm=recipe.norm,
            momentum=shared.bn_momentum,
        )
        self.state = self._new_state(data)
        self.good = self.state.snapshot()
        self._signal: int | None = None

    def _new_state(self, data: Data) -> State:
        model = new_model(self.architecture, derive(self.seed, self.recipe.stream, "init")).to(self.device).train()
        cut_batches(model, self.shared.bn_parts)
        parallel.synchronise(model)
        model.dtype = compute_dtype(self.shared.precision, self.device)
        if self.shared.compile and parallel.gathers(model):
            print("BatchNorm gathers statistics from several processes: the network runs eagerly", file=sys.stderr)
        elif self.shared.compile:
            compile_network(model, self.x[: self.recipe.schedule.batch_size])
        streams = Streams(self.seed, self.recipe.stream, self.device)
        buffer = None
        if self.recipe.variant is not None:
            variant = self.recipe.variant
            mixture = data.mixture.to(self.device) if variant.chain_start == "informative" else None
            start = chain_start(variant, mixture, data.shape)  # type: ignore[arg-type]
            kind = ShardedBuffer if parallel.world() > 1 else ReplayBuffer
            buffer = kind(self.shared.buffer_size, start, variant.reinit, streams.buffer)
        return State(model, new_optimiser(self.recipe.schedule, model), buffer, streams)

    def run(self) -> Outcome:
        """Train to the end, from the newest checkpoint where there is one.

        Raises:
            DivergenceError: retries are used up.
            UserError: out of memory, after a checkpoint was written.
            Interrupted: SIGTERM or Ctrl-C, after a checkpoint was written.
        """
        if self.checkpoints is not None:
            self.good = self.checkpoints.load(self.state) or self.good
        self._loss = parallel.with_averaged_gradients(self.state.model, self.recipe.objective.loss)
        epochs = self.recipe.schedule.epochs
        with (
            self._signals(),
            Progress(epochs * self.steps_per_epoch, self.recipe.name, silent=bool(parallel.rank())) as progress,
        ):
            progress.done = self.state.epoch * self.steps_per_epoch + self.state.step
            while self.state.epoch < epochs:
                try:
                    self._epoch(progress)
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    raise self._too_large() from error
                except Diverged as cause:
                    self.note(self.supervisor.roll_back(self.state, self.good, str(cause)))
                    progress.done = self.state.epoch * self.steps_per_epoch + self.state.step
        return self._outcome()

    def _epoch(self, progress: Progress) -> None:
        state = self.state
        order, order_p = self._order("labelled"), self._order("px")
        while state.step < self.steps_per_epoch:
            self._iteration(self._batch(order, order_p))
            state.step += 1
            progress.advance(1, **self._shown())
            stop = parallel.agreed(self._signal)
            if stop is not None:
                self._save()
                raise Interrupted(128 + stop)
            self._save_if_due(epoch_ends=False)
        row = self._finish_epoch()
        state.history.append(row)
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        self.good = state.snapshot()
        self._save_if_due(epoch_ends=True)
        self.report(row)

    def _order(self, what: str) -> Tensor:
        """The epoch's order of training images; a function of seed and epoch alone, retries included."""
        generator = torch.Generator().manual_seed(
            derive(self.seed, self.recipe.stream, "order", what, self.state.epoch)
        )
        return torch.randperm(len(self.x), generator=generator).to(self.device)

    def _batch(self, order: Tensor, order_p: Tensor) -> Batch:
        """This process's share of the iteration's images, augmented and noisy as the recipe says."""
        x, y, x_p = self._whole_batch(order, order_p)
        return Batch(parallel.share(x), parallel.share(y), None if x_p is None else parallel.share(x_p))

    def _whole_batch(self, order: Tensor, order_p: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        schedule, variant, streams = self.recipe.schedule, self.recipe.variant, self.state.streams
        first = self.state.step * schedule.batch_size
        chosen = order[first : first + schedule.batch_size]
        x = augment(self.x[chosen], self.shared.pad, self.shared.flip, streams.augment)
        if variant is None:
            return x, self.y[chosen], None
        x = add_noise(x, variant.labelled_noise, streams.noise)
        places = torch.arange(schedule.px_batch_size, device=self.device) + self.state.step * schedule.px_batch_size
        x_p = self.x[order_p[places % len(order_p)]]
        if variant.px_augmented:
            x_p = augment(x_p, self.shared.pad, self.shared.flip, streams.augment)
        return x, self.y[chosen], add_noise(x_p, variant.px_noise, streams.noise)

    def _iteration(self, batch: Batch) -> None:
        """One optimiser step; nothing is applied unless every value is finite.

        With sharpness, the gradient is taken at the worst neighbour of the weights, for the same
        negatives and adversarial images, with running statistics frozen.
        """
        state, recipe = self.state, self.recipe
        model = state.model.train()
        self._set_rate()
        prepared = recipe.objective.prepare(model, batch, state.buffer, state.streams)
        state.optimiser.zero_grad(set_to_none=True)
        loss, terms = self._loss(prepared)
        loss.backward()
        if recipe.variant is not None and recipe.variant.sharpness:
            with sharpest_neighbour(model, recipe.variant.sharpness), statistics(model, "batch"):
                self._loss(prepared)[0].backward()
        norm = self._clipped_norm(model)
        checked = self._check(terms, norm, prepared.x_gen)
        state.optimiser.step()
        for name, value in checked.items():
            state.sums[name] = state.sums[name] + value if name in state.sums else value.clone()

    def _clipped_norm(self, model: EnergyModel) -> Tensor:
        """The gradient norm before clipping, a scalar on the device."""
        if self.shared.gradient_clip is not None:
            return torch.nn.utils.clip_grad_norm_(model.parameters(), self.shared.gradient_clip)
        return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])

    def _set_rate(self) -> None:
        step = self.state.epoch * self.steps_per_epoch + self.state.step
        rate = learning_rate(self.recipe.schedule, step, self.steps_per_epoch, self.shared.warmup)
        for group in self.state.optimiser.param_groups:
            group["lr"] = rate * self.state.rate_cut

    def _check(self, terms: Terms, norm: Tensor, chain: Tensor | None) -> Terms:
        """One transfer to the host per iteration: all scalars that must be finite.

        Returns:
            The terms, as means over all processes.
        """
        values = {**terms, "gradient norm": norm}
        if chain is not None and self.state.buffer is not None:
            # A mean is finite where every value is.
            values |= {"chain mean": chain.mean(), "buffer mean": self.state.buffer.mean()}
            values["energy_gap_px"] = terms["energy_data"] - terms["energy_generated"]
        stacked = parallel.average(torch.stack([value.detach().float() for value in values.values()]))
        self.supervisor.check(self.state, dict(zip(values, stacked.tolist(), strict=True)))
        return dict(zip(terms, stacked, strict=False))

    def _shown(self) -> dict[str, float]:
        row = self.state.history[-1] if self.state.history else {}
        return {name: row[name] for name in ("loss", "val_clean", "val_robust") if name in row}

    def _finish_epoch(self) -> dict[str, Any]:
        """Select on the validation split with re-estimated statistics; then training's own return."""
        state = self.state
        terms = {name: float(value) / self.steps_per_epoch for name, value in sorted(state.sums.items())}
        training = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
        self._estimate_statistics()
        clean, robust = self._validate()
        # The other accuracy, then the later epoch, decides between equals.
        score = [robust, clean] if self.recipe.selected_by == "robust" else [clean, robust]
        if state.best is None or score >= state.best["score"]:
            state.remember_best(score)
        rate = state.optimiser.param_groups[0]["lr"]
        row = {"epoch": state.epoch + 1, "lr": rate, "rollbacks": state.retries, **terms}
        row |= {"val_clean": clean, "val_robust": robust}
        if state.epoch + 1 < self.recipe.schedule.epochs:
            state.model.load_state_dict(training)
        return row

    def _estimate_statistics(self) -> None:
        """Cumulative statistics over the kinds of images that training sees; for both, as the profile says."""
        x, y = self.x[: self.shared.bn_images], self.y[: self.shared.bn_images]
        which = self.shared.bn_estimate if self.recipe.sees == "both" else self.recipe.sees
        batch = self.recipe.schedule.batch_size
        if which != "clean":
            generator = torch.Generator(self.device).manual_seed(derive(self.seed, self.recipe.stream, "statistics"))
            eps = self.recipe.schedule.train_eps
            half = len(x) // 2 if which == "both" else 0
            parts = zip(x[half:].split(batch), y[half:].split(batch), strict=True)
            x_adv = torch.cat([pgd(self.state.model, a, b, eps, 10, generator) for a, b in parts])
            # Interleaved, so that equal weights per batch are equal weights per kind.
            x = torch.stack([x[: len(x_adv)], x_adv], 1).flatten(0, 1) if half else x_adv
        estimate_statistics(self.state.model, x, batch)

    def _validate(self) -> tuple[float, float]:
        """Clean and PGD robust accuracy on the validation split, in [0, 1]."""
        generator = torch.Generator(self.device).manual_seed(derive(self.seed, "validation"))
        eps, steps = self.recipe.schedule.train_eps, self.shared.validation_steps
        clean = robust = 0
        with statistics(self.state.model, "running"):
            for x, y in zip(self.x_val.split(512), self.y_val.split(512), strict=True):
                x_adv = pgd(self.state.model, x, y, eps, steps, generator)
                x, y, x_adv = parallel.share(x), parallel.share(y), parallel.share(x_adv)
                with torch.no_grad():
                    right = self.state.model(x).argmax(1) == y
                    clean += int(right.sum())
                    robust += int((right & (self.state.model(x_adv).argmax(1) == y)).sum())
        clean, robust = parallel.total(torch.tensor([clean, robust])).tolist()
        return clean / len(self.y_val), robust / len(self.y_val)

    def _save(self) -> None:
        if self.checkpoints is not None:
            self.checkpoints.save(self.state, self.good)

    def _save_if_due(self, *, epoch_ends: bool) -> None:
        due = self.checkpoints is not None and self.checkpoints.due(epoch_ends=epoch_ends)
        if parallel.decided(due):
            self._save()

    def _too_large(self) -> UserError:
        """What to do when memory runs out; the start of the epoch is saved, for the iteration is half done."""
        written = ""
        if self.checkpoints is not None and parallel.rank() == 0:
            self.state.restore(self.good)
            self._save()
            written = "a checkpoint of the epoch's start is written. "
        return UserError(
            f"{self.recipe.name}: out of memory at epoch {self.state.epoch} on {self.device.type}; {written}"
            "Free the device and run again, or lower batch_size, px_batch_size or "
            "buffer_size in params.yaml (which starts another run)"
        )

    def _signals(self) -> _Signals:
        def note(number: int, frame: object) -> None:
            self._signal = number

        return _Signals(note)

    def _outcome(self) -> Outcome:
        best = self.state.best
        assert best is not None
        chosen = new_model(self.architecture, 0)
        chosen.load_state_dict(best["model"])
        return Outcome(
            best=chosen.eval(),
            last=self.state.model.eval(),
            buffer=best["buffer"],
            best_epoch=best["epoch"] + 1,
            history=self.state.history,
            events=self.state.events,
            architecture=self.architecture,
        )


class _Signals:
    """SIGTERM and SIGINT call ``note`` inside the block; earlier handlers return afterwards."""

    def __init__(self, note: Callable[[int, Any], None]) -> None:
        self.note = note

    def __enter__(self) -> None:
        self.before: dict[int, Any] = {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self.note)
        except ValueError:  # not the main thread: whoever runs us handles signals
            self.before = {}

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def pgd(model: EnergyModel, x: Tensor, y: Tensor, eps: float, steps: int, generator: torch.Generator) -> Tensor:
    """PGD on the cross-entropy with step eps/4 from a random start; (N,C,H,W) in [0, 1].

    The same images are given to all processes and come back to all of them; each attacks its share.
    """
    start, own = uniform_start(x, eps, generator), parallel.share(y)
    x_adv = sign_ascent(
        model,
        lambda logits: F.cross_entropy(logits, own, reduction="sum"),
        parallel.share(x),
        parallel.share(start),
        eps=eps,
        step=eps / 4,
        steps=steps,
    )
    return parallel.whole(x_adv, len(x))


def _on(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).contiguous(memory_format=torch.channels_last)
