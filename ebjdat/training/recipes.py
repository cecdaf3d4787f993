"""Which objective a method trains with. A new baseline is one class in ``objective.py``, one line here, and its name
in ``ebjdat.run.BASELINES``.
"""

from __future__ import annotations

from ebjdat.config import Setup
from ebjdat.run import Run
from ebjdat.training.objective import EBJDAT, PGDAT, TRADES, Objective, Plain, Undefended

OBJECTIVES: dict[str, type[Objective]] = {
    "ebjdat": EBJDAT,
    "control": EBJDAT,  # its recipe has no energy term
    "base": Plain,
    "pgd_at": PGDAT,
    "trades": TRADES,
    "undefended": Undefended,
}


def objective_of(setup: Setup) -> Objective:
    """The objective that a run trains with."""
    assert setup.training is not None, "an external model is not trained here"
    return OBJECTIVES[setup.run.method](setup.training.train_eps, setup.recipe)


def stream_of(run: Run) -> str:
    """The name that random streams derive from: the control draws the same numbers as ebjdat."""
    return run.model.replace("control-", "ebjdat-")
