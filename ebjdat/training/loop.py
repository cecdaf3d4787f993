"""Training: one loop for EB-JDAT, the plain variants and the baselines.

Iterations are whole batches of an order drawn per epoch; each takes one step of the objective. After an epoch the
model is scored on the validation split (see ``ebjdat.training.selection``) and its state may be saved.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebjdat.config import Setup
from ebjdat.data.prepared import Prepared as Data
from ebjdat.device import out_of_memory
from ebjdat.errors import Interrupted, UserError
from ebjdat.model.compute import compile_blocks, compute_dtype, input_gradients_only
from ebjdat.model.energy import EnergyModel
from ebjdat.model.store import Architecture, new_model
from ebjdat.model.wideresnet import cut_batches, statistics
from ebjdat.progress import Progress
from ebjdat.seeds import derive
from ebjdat.training import parallel
from ebjdat.training.augmentation import add_noise, augment
from ebjdat.training.objective import Batch, Terms
from ebjdat.training.optimisers import learning_rate, new_optimiser, sharpest_neighbour
from ebjdat.training.recipes import objective_of, stream_of
from ebjdat.training.replay_buffer import ReplayBuffer
from ebjdat.training.samplers import chain_start
from ebjdat.training.selection import renew_statistics, validate
from ebjdat.training.state import Checkpoints, State
from ebjdat.training.streams import Streams
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


class Trainer:
    """The training of one run.

    Args:
        setup: the run and its parameters.
        data: prepared splits; moved to ``device``.
        checkpoints: where the resumable state lives; None keeps none.
        report: called with each epoch's row.
        note: called with each rollback's event.
        helper: the trained network that ``setup.helper`` asks for, on ``device``, in eval mode.
    """

    def __init__(
        self,
        setup: Setup,
        data: Data,
        *,
        device: torch.device,
        checkpoints: Checkpoints | None = None,
        report: Report = lambda row: None,
        note: Report = lambda event: None,
        supervisor: Supervisor | None = None,
        helper: EnergyModel | None = None,
    ) -> None:
        assert setup.training is not None, "an external model is not trained here"
        self.setup, self.training, self.recipe = setup, setup.training, setup.recipe
        self.device, self.checkpoints, self.report, self.note = device, checkpoints, report, note
        self.objective, self.supervisor = objective_of(setup, helper), supervisor or Supervisor()
        # Training meets the same few shapes again and again, but a trial may choose another kernel the next time.
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        self.x, self.y = _on(data.x_train, device), data.y_train.to(device)
        self.x_val, self.y_val = _on(data.x_val, device), data.y_val.to(device)
        self.steps_per_epoch = max(1, len(self.x) // self.training.batch_size)
        self.architecture = Architecture(
            depth=setup.network.depth,
            width=setup.network.width,
            channels=data.shape[0],
            classes=10,
            norm=self.training.norm if self.recipe is None else self.recipe.norm,
            momentum=self.training.bn_momentum,
        )
        self.state = self._new_state(data)
        self.good = self.state.snapshot()
        self._signal: int | None = None

    def run(self) -> Outcome:
        """Train to the end, from the newest checkpoint where there is one.

        Raises:
            DivergenceError: retries are used up.
            UserError: out of memory, after a checkpoint was written.
            Interrupted: SIGTERM or Ctrl-C, after a checkpoint was written.
        """
        if self.checkpoints is not None:
            self.good = self.checkpoints.load(self.state) or self.good
        self._loss = parallel.with_averaged_gradients(self.state.model, self.objective.loss)
        total = self.training.epochs * self.steps_per_epoch
        with self._signals(), Progress(total, self.setup.run.model, silent=bool(parallel.rank())) as progress:
            while self.state.epoch < self.training.epochs:
                progress.skip(self._iterations() - progress.done)  # a resumed run, or after a rollback
                diverged = full = ""
                try:
                    self._epoch(progress)
                except Diverged as cause:
                    diverged = str(cause)
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    full = str(error).splitlines()[0]
                # Only here: while an exception is handled, it keeps the graph of its iteration in the device's memory.
                if full:
                    raise self._too_large(full)
                if diverged:
                    self.note(self.supervisor.roll_back(self.state, self.good, diverged))
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

    def _batch(self, order: Tensor, order_p: Tensor) -> Batch:
        """The iteration's images, augmented and noisy as the recipe says: this process's share of them."""
        training, recipe, streams = self.training, self.recipe, self.state.streams
        first = self.state.step * training.batch_size
        chosen = order[first : first + training.batch_size]
        x, y, x_p = augment(self.x[chosen], training.pad, training.flip, streams.augment), self.y[chosen], None
        if recipe is not None:
            x = add_noise(x, recipe.labelled_noise, streams.noise)
            first = self.state.step * training.px_batch_size
            places = torch.arange(first, first + training.px_batch_size, device=self.device)
            x_p = self.x[order_p[places % len(order_p)]]
            if recipe.px_augmented:
                x_p = augment(x_p, training.pad, training.flip, streams.augment)
            x_p = parallel.share(add_noise(x_p, recipe.px_noise, streams.noise))
        return Batch(parallel.share(x), parallel.share(y), x_p)

    def _iteration(self, batch: Batch) -> None:
        """One optimiser step; nothing is applied unless every value is finite.

        With sharpness, the gradient is taken at the worst neighbour of the weights, for the same negatives and
        adversarial images, with running statistics frozen.
        """
        state, model = self.state, self.state.model.train()
        rate = learning_rate(self.training, self._iterations(), self.steps_per_epoch) * state.rate_cut
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        with input_gradients_only(model):
            prepared = self.objective.prepare(model, batch, state.buffer, state.streams)
        state.optimiser.zero_grad(set_to_none=True)
        loss, terms = self._loss(prepared)
        loss.backward()
        if self.recipe is not None and self.recipe.sharpness:
            with sharpest_neighbour(model, self.recipe.sharpness), statistics(model, "batch"):
                self._loss(prepared)[0].backward()
        checked = self._check(terms, self._clipped_norm(), prepared.x_gen)
        state.optimiser.step()
        for name, value in checked.items():
            state.sums[name] = state.sums[name] + value if name in state.sums else value.clone()

    def _clipped_norm(self) -> Tensor:
        """The gradient norm before clipping, a scalar on the device."""
        parameters = list(self.state.model.parameters())
        if self.training.gradient_clip is not None:
            return torch.nn.utils.clip_grad_norm_(parameters, self.training.gradient_clip)
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def _check(self, terms: Terms, norm: Tensor, chain: Tensor | None) -> Terms:
        """One transfer to the host per iteration: all scalars that must be finite.

        Returns:
            The terms, as means over all processes.
        """
        values = {**terms, "gradient norm": norm}
        if chain is not None and self.state.buffer is not None:
            # A mean is finite where every value is.
            values |= {"chain mean": chain.mean(), "buffer mean": self.state.buffer.images.mean()}
            values["energy_gap_px"] = terms["energy_data"] - terms["energy_generated"]
        stacked = parallel.average(torch.stack([value.detach().float() for value in values.values()]))
        self.supervisor.check(self.state, dict(zip(values, stacked.tolist(), strict=True)))
        return dict(zip(terms, stacked, strict=False))

    def _finish_epoch(self) -> dict[str, Any]:
        """Select on the validation split with re-estimated statistics; then training's own return."""
        state = self.state
        terms = {name: float(value) / self.steps_per_epoch for name, value in sorted(state.sums.items())}
        training = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
        renew_statistics(state.model, self.setup, self.x, self.y)
        clean, robust = validate(state.model, self.setup, self.x_val, self.y_val)
        # The other accuracy, then the later epoch, decides between equals.
        score = [robust, clean] if self.objective.selected_by == "robust" else [clean, robust]
        if state.best is None or score >= state.best["score"]:
            state.remember_best(score)
        rate = state.optimiser.param_groups[0]["lr"]
        row = {"epoch": state.epoch + 1, "lr": rate, "rollbacks": state.retries, **terms}
        row |= {"val_clean": clean, "val_robust": robust}
        if state.epoch + 1 < self.training.epochs:
            state.model.load_state_dict(training)
        return row

    def _new_state(self, data: Data) -> State:
        training, recipe, name, seed = self.training, self.recipe, stream_of(self.setup.run), self.setup.run.seed
        model = new_model(self.architecture, derive(seed, name, "init")).to(self.device).train()
        cut_batches(model, training.bn_parts)
        parallel.synchronise(model)
        model.dtype = compute_dtype(training.precision, self.device)
        if training.compile and parallel.gathers(model):
            print("BatchNorm gathers statistics from several processes: the network runs eagerly", file=sys.stderr)
        elif training.compile:
            compile_blocks(model, self.x[: training.batch_size])
        streams, buffer = Streams(seed, name, self.device), None
        if recipe is not None:
            mixture = data.mixture.to(self.device) if recipe.chain_start == "informative" else None
            start = chain_start(recipe, mixture, data.shape)
            buffer = ReplayBuffer(training.buffer_size, start, recipe.reinit, streams.buffer)
        return State(model, new_optimiser(training, model), buffer, streams)

    def _iterations(self) -> int:
        """Iterations done since the start of the run."""
        return self.state.epoch * self.steps_per_epoch + self.state.step

    def _order(self, what: str) -> Tensor:
        """The epoch's order of training images; a function of seed and epoch alone, retries included."""
        seed = derive(self.setup.run.seed, stream_of(self.setup.run), "order", what, self.state.epoch)
        return torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed)).to(self.device)

    def _shown(self) -> dict[str, float]:
        row = self.state.history[-1] if self.state.history else {}
        return {name: row[name] for name in ("loss", "val_clean", "val_robust") if name in row}

    def _save(self) -> None:
        if self.checkpoints is not None:
            saved = self.state.snapshot() if self.state.step else self.good
            self.checkpoints.save(saved, self.good, self.state.best)
            parallel.agreed(None)  # the others wait: who goes on from here must find what the first one writes

    def _save_if_due(self, *, epoch_ends: bool) -> None:
        due = self.checkpoints is not None and self.checkpoints.due(epoch_ends=epoch_ends)
        if parallel.decided(due):
            self._save()

    def _too_large(self, reason: str) -> UserError:
        """What to do when memory runs out; the start of the epoch is saved, for the iteration is half done."""
        written = ""
        if self.checkpoints is not None and not parallel.rank():
            self.checkpoints.save(self.good, self.good, self.state.best)
            written = "a checkpoint of the epoch's start is written. "
        return UserError(
            f"{self.setup.run}: out of memory at epoch {self.state.epoch} on {self.device.type} ({reason}); {written}"
            "Free the device and run again, or lower batch_size, px_batch_size or buffer_size in "
            f"params/{self.setup.run.profile}.yaml (which starts another run)"
        )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT are noted inside the block; earlier handlers return afterwards."""

        def note(number: int, frame: object) -> None:
            self._signal = number

        before: dict[int, Any] = {}
        with contextlib.suppress(ValueError):  # not the main thread: whoever runs us handles signals
            before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

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
        )


def _on(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).contiguous(memory_format=torch.channels_last)
