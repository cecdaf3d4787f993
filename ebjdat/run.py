"""Which run is meant: a profile, a model and a seed, and where its files lie. No run overwrites another."""

from dataclasses import dataclass
from pathlib import Path

METHODS = {
    "ebjdat": "EB-JDAT, with the energy term between clean, adversarial and generated images",
    "base": "the plain joint energy model, without adversarial training",
    "control": "EB-JDAT without its energy term",
}
"""What a JEM variant is trained with."""
BASELINES = {
    "pgd_at": "adversarial training with PGD, a baseline",
    "trades": "TRADES, a baseline",
    "dhat": "DHAT, a baseline",
    "undefended": "trained on clean images, a baseline",
}
"""Methods without a generative term."""
HELPER = "undefended"
"""The baseline that DHAT's helper network is trained as."""
EXTERNAL = "external-"
"""Start of the name of a model that was not trained here."""


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """One run.

    Attributes:
        profile: scale of the experiment, a file in ``params/``.
        model: ``<method>-<variant>``; a baseline, or ``<baseline>-<name>`` with settings of its own in the profile; or
            ``external-<name>``.
        seed: of the training; for an external model, that of the surrogates it meets.
    """

    profile: str
    model: str
    seed: int

    def __str__(self) -> str:
        return f"{self.profile}/{self.model}/{self.seed}"

    @property
    def method(self) -> str:
        """``ebjdat``, ``base``, ``control``, the baseline's name, or ``external-<name>``."""
        method, _, more = self.model.partition("-")
        return method if more and method in (*METHODS, *BASELINES) else self.model

    @property
    def variant(self) -> str | None:
        """The JEM variant; None for a model without one."""
        method, _, variant = self.model.partition("-")
        return variant if variant and method in METHODS else None

    @property
    def about(self) -> str:
        """How it was trained, in a few words."""
        return (METHODS | BASELINES).get(self.method, "trained elsewhere")

    @property
    def is_external(self) -> bool:
        """Whether it was not trained here."""
        return self.model.startswith(EXTERNAL)

    @property
    def data_dir(self) -> Path:
        """Prepared data of the profile."""
        return Path("data") / self.profile

    @property
    def model_dir(self) -> Path:
        """best.pt, last.pt, model.json, buffer.npz, history.jsonl, summary.json."""
        return Path("models") / self.profile / self.model / str(self.seed)

    def record(self, stage: str) -> Path:
        """The record that ``stage`` writes about this run; in git."""
        return Path("results") / self.profile / "records" / self.model / str(self.seed) / f"{stage}.json"

    def arrays(self, stage: str) -> Path:
        """Folder of what ``stage`` leaves besides: per-image arrays, pictures; in DVC's cache."""
        return Path("results") / self.profile / "arrays" / self.model / str(self.seed) / stage

    @property
    def pictures(self) -> Path:
        """Folder of the pictures that the stage ``log`` draws of this run; in DVC's cache."""
        return Path("results") / self.profile / "pictures" / self.model / str(self.seed)

    @property
    def diverged(self) -> Path:
        """What a training that was given up says of its end; in git. One that succeeds removes it."""
        return Path("results") / self.profile / "diverged" / self.model / f"{self.seed}.json"

    def crafted(self) -> Path:
        """Adversarial images crafted on this run, for the transfer stage of others; in DVC's cache."""
        return Path("results") / self.profile / "crafted" / str(self.seed) / self.model


def reference_dir(profile: str) -> Path:
    """What generated images are compared with, once per profile."""
    return Path("models") / profile / "reference"
