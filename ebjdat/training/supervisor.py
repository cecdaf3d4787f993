"""Watches a run for divergence, the known disease of energy-based training.

Two signs stop an iteration before its optimiser step: a value that is not finite (loss, gradient
norm or chain), and an energy gap |E(x_p) - E(x_gen)| whose running mean has left any healthy
range, which comes long before an overflow. The run then returns to its last good state, the start of
the epoch or the checkpoint that it continued from, with new random streams, derived from the seed and
the retry count, and a smaller learning rate; after ``max_retries`` it ends with a DivergenceError.
"""

from __future__ import annotations

import math
from typing import Any

from ebjdat.errors import DivergenceError
from ebjdat.training.state import State


class Diverged(Exception):
    """An iteration must not be applied; the message says why."""


class Supervisor:
    """Bounded retries for one run.

    Args:
        max_retries: rollbacks before the run is given up.
        rate_cut: factor on the learning rate at each rollback.
        gap_limit: largest mean energy gap in nats over about ``window`` iterations.
        window: time constant of that mean, in iterations.
    """

    def __init__(
        self, max_retries: int = 5, rate_cut: float = 0.5, gap_limit: float = 50.0, window: float = 20.0
    ) -> None:
        self.max_retries, self.rate_cut, self.gap_limit, self.window = max_retries, rate_cut, gap_limit, window

    def check(self, state: State, values: dict[str, float]) -> None:
        """Raise :class:`Diverged` when an iteration's scalars are not finite or the gap has drifted."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(f"{name} is {value}")
        if "energy_gap_px" in values:
            state.gap += (abs(values["energy_gap_px"]) - state.gap) / self.window
            if state.gap > self.gap_limit:
                raise Diverged(f"the mean energy gap |E(x_p) - E(x_gen)| reached {state.gap:.1f} nats")

    def roll_back(self, state: State, good: dict[str, Any], cause: str) -> None:
        """Return to ``good`` with new streams and a smaller rate, and log the event.

        Raises:
            DivergenceError: the retries are used up.
        """
        events, retries = [dict(event) for event in state.events], state.retries + 1
        event = {"retry": retries, "epoch": state.epoch, "step": state.step, "cause": cause}
        if retries > self.max_retries:
            raise DivergenceError(
                f"{state.streams.name}: training diverged at epoch {state.epoch}, step {state.step} ({cause}) "
                f"and {self.max_retries} retries did not help: lower the learning rate or raise the input noise"
            )
        cut = state.rate_cut * self.rate_cut
        state.restore(good)
        state.retries, state.rate_cut, state.events = retries, cut, [*events, event]
        state.streams.restart(retries)
        state.gap = 0.0
