"""Which objective a method trains with. A new baseline is one class in ``objective.py``, one line here, and its name
in ``ebjdat.run.BASELINES``.
"""

from ebjdat.config import Setup
from ebjdat.model.energy import EnergyModel
from ebjdat.run import Run
from ebjdat.training.dhat import DHAT
from ebjdat.training.objective import EBJDAT, PGDAT, TRADES, Objective, Plain, Undefended

OBJECTIVES: dict[str, type[Objective]] = {
    "ebjdat": EBJDAT,
    "control": EBJDAT,  # its recipe has no energy term
    "base": Plain,
    "pgd_at": PGDAT,
    "trades": TRADES,
    "dhat": DHAT,
    "undefended": Undefended,
}


def objective_of(setup: Setup, helper: EnergyModel | None = None) -> Objective:
    """The objective that a run trains with; without its helper network it can still craft adversarial images."""
    assert setup.training is not None, "an external model is not trained here"
    if setup.training.debiasing is not None:
        return DHAT(setup.training.train_eps, setup.training.debiasing, helper)
    return OBJECTIVES[setup.run.method](setup.training.train_eps, setup.recipe)


def stream_of(run: Run) -> str:
    """The name that random streams derive from: the control draws the same numbers as ebjdat, DHAT as PGD-AT."""
    return "pgd_at" if run.method == "dhat" else run.model.replace("control-", "ebjdat-")
