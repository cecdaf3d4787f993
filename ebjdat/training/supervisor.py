"""Watches a run for divergence, the known disease of energy-based training.

Three signs stop an iteration before its optimiser step: a value that is not finite (a term of the loss, an energy, the
gradient norm, chains, replay buffer); an energy gap |E(x_p) - E(x_gen)| whose running mean has left any healthy range;
and, earlier, a running mean that rises window after window until it has doubled. The run then returns to the start of
its epoch with new random streams, derived from the seed and the retry count, and a smaller learning rate; after
``max_retries`` it ends with a DivergenceError.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from ebjdat.errors import DivergenceError
from ebjdat.training.state import State

TRACE = 200


class Diverged(Exception):
    """An iteration must not be applied; the message says why."""


class Supervisor:
    """Bounded retries for one run.

    Args:
        max_retries: rollbacks before the run is given up.
        rate_cut: factor on the learning rate at each rollback.
        gap_limit: largest mean energy gap in nats over about ``window`` iterations.
        window: time constant of that mean, in iterations.
        rises: windows in a row in which the mean must rise to count as a trend.
        trend_floor: nats below which a rising mean is no concern; healthy runs stay below a few nats.
    """

    def __init__(
        self,
        max_retries: int = 5,
        rate_cut: float = 0.5,
        gap_limit: float = 50.0,
        window: int = 20,
        rises: int = 5,
        trend_floor: float = 10.0,
    ) -> None:
        self.max_retries, self.rate_cut, self.gap_limit, self.window = max_retries, rate_cut, gap_limit, window
        self.rises, self.trend_floor = rises, trend_floor
        self.trace: deque[dict[str, float]] = deque(maxlen=TRACE)
        """Values of the last iterations, for the report of a run that is given up."""

    def check(self, state: State, values: dict[str, float]) -> None:
        """Raise :class:`Diverged` when an iteration's scalars are not finite or the gap drifts."""
        self.trace.append({"epoch": state.epoch, "step": state.step, **values})
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(f"{name} is {value}")
        if "energy_gap_px" in values:
            self._check_drift(state.drift, abs(values["energy_gap_px"]))

    def _check_drift(self, drift: dict[str, float], gap: float) -> None:
        seen = drift["seen"] = drift.get("seen", 0) + 1
        mean = drift["mean"] = drift.get("mean", 0.0) + (gap - drift.get("mean", 0.0)) / self.window
        if mean > self.gap_limit:
            raise Diverged(f"the mean energy gap |E(x_p) - E(x_gen)| reached {mean:.1f} nats")
        if seen % self.window:
            return
        # The mean starts at 0; without this correction every run would rise at first.
        level = mean / (1 - (1 - 1 / self.window) ** seen)
        if level <= drift.get("level", math.inf):
            drift["rises"], drift["low"] = 0, level
        else:
            drift["rises"] += 1
        drift["level"] = level
        if drift["rises"] >= self.rises and level > max(self.trend_floor, 2 * drift["low"]):
            raise Diverged(
                f"the mean energy gap |E(x_p) - E(x_gen)| rose from {drift['low']:.1f} to {level:.1f} nats "
                f"in {int(drift['rises'])} windows of {self.window} iterations"
            )

    def roll_back(self, state: State, good: dict[str, Any], cause: str) -> dict[str, Any]:
        """Return to ``good`` with new streams and a smaller rate; log the event and give it back.

        Raises:
            DivergenceError: the retries are used up.
        """
        events, retries = [dict(event) for event in state.events], state.retries + 1
        event = {"retry": retries, "epoch": state.epoch, "step": state.step, "cause": cause}
        if retries > self.max_retries:
            raise DivergenceError(
                f"training diverged at epoch {state.epoch}, step {state.step} ({cause}) "
                f"and {self.max_retries} retries did not help: lower the learning rate or raise the input noise"
            )
        cut = state.rate_cut * self.rate_cut
        state.restore(good)
        state.retries, state.rate_cut, state.events = retries, cut, [*events, event]
        state.streams.restart(retries)
        state.drift = {}
        return event
