"""What the evaluation stages share: the run they are asked about, its test images, the device, the record."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ebjdat import files
from ebjdat.attacks.batches import Batches
from ebjdat.attacks.outcomes import Outcomes, kept
from ebjdat.config import Setup
from ebjdat.data.prepared import Prepared, load_prepared
from ebjdat.device import choose_device, fix_threads
from ebjdat.evaluation import external
from ebjdat.evaluation.cases import Case, make_cases
from ebjdat.evaluation.unreliable import remarks
from ebjdat.model import description
from ebjdat.model.store import load_model
from ebjdat.record import read_record, write_record
from ebjdat.run import Run
from ebjdat.statistics import Result


@dataclass(frozen=True)
class Task:
    """A stage about one run, with its first n test images and labels on the device."""

    stage: str
    setup: Setup
    device: torch.device
    prepared: Prepared
    x: Tensor
    y: Tensor

    @property
    def run(self) -> Run:
        """Which run."""
        return self.setup.run

    @property
    def label(self) -> str:
        """For its progress."""
        return f"{self.stage} {self.run}"

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Those that the run has."""
        return ("best",) if self.run.is_external else ("best", "last")

    @property
    def cases(self) -> list[Case]:
        """Both protocols on its images."""
        return make_cases(self.x, self.y, self.setup.evaluation.radius, self.setup.input_noise)

    @cached_property
    def batches(self) -> Batches:
        """How many images go through a model at a time."""
        return Batches(self.setup.evaluation.batch_size)

    def opener(self, checkpoint: str = "best") -> Callable[[], nn.Module]:
        """What opens a checkpoint; it can be sent to another process."""
        load = external.load if self.run.is_external else load_model
        return partial(load, self.run.model_dir / f"{checkpoint}.pt", self.device)

    def model(self, checkpoint: str = "best") -> nn.Module:
        """A checkpoint."""
        return self.opener(checkpoint)()

    def outcomes(self, *checkpoints: str) -> AbstractContextManager[Outcomes]:
        """What a killed run of this very stage has left."""
        return kept(self.setup, self.stage, self.x, self.y, *checkpoints)

    def beside(self, name: str) -> Path:
        """A file beside the record, in DVC's cache."""
        return self.run.arrays(self.stage) / name

    def finish(self, result: Result) -> None:
        """Write arrays and record; print accuracies with their intervals, and warnings."""
        if result.arrays is not None:
            files.write_npz(self.beside("arrays.npz"), result.arrays)
        params = {"fingerprint": external.fingerprint_of(self.run.model_dir)} if self.run.is_external else {}
        record = write_record(self.setup, self.stage, result, data=self.prepared.digest, params=params)
        clean = self.run.record("clean")
        said = remarks(record, read_record(clean) if clean.is_file() else None)
        for name, rate in result.rates.items():
            low, high = (100 * bound for bound in rate.interval())
            remark = f", {said[name]}" if name in said else ""
            print(f"{self.run} {name}: {100 * rate.accuracy:.1f} % [{low:.1f}, {high:.1f}], n {rate.n}{remark}")
        for name, texts in result.warnings.items():
            for text in texts:
                print(f"{self.run} warning: {name}: {text}", file=sys.stderr)


def begin(stage: str, setup: Setup) -> Task:
    """Read the data of a stage.

    Raises:
        UserError: the model is missing, or was trained with other parameters or data than today's.
    """
    if setup.run.is_external:
        external.fingerprint_of(setup.run.model_dir)  # whether it was taken in
    section = getattr(setup.evaluation, {"craft": "transfer", "generate": "generation"}.get(stage, stage))
    images = getattr(section, "images", None)
    device = choose_device(setup.device, setup.deterministic)
    data = load_prepared(setup.run.data_dir)
    if not setup.run.is_external:
        description.check(description.read(setup.run.model_dir), setup, data)
    fix_threads(device)
    return Task(stage, setup, device, data, data.x_test[:images].to(device), data.y_test[:images].to(device))
