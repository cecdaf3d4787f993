"""What the attack stages share: the model they are asked about, its test images, the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebjdat.attacks.batches import Batches
from ebjdat.config import Params
from ebjdat.data.prepared import load_prepared
from ebjdat.device import choose_device
from ebjdat.evaluation import external
from ebjdat.evaluation.outcomes import Outcomes, kept
from ebjdat.evaluation.statistics import Result
from ebjdat.model.store import load_model
from ebjdat.reporting.records import write_record
from ebjdat.subject import Subject
from stages.arguments import from_arguments


@dataclass(frozen=True)
class Task:
    """A stage's subject with its first n test images and labels, on the device."""

    stage: str
    params: Params
    subject: Subject
    device: torch.device
    x: Tensor
    y: Tensor

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that the evaluations of attacks of our own share."""
        evaluation = self.params.current.evaluation
        return {
            "nominal": evaluation.radius,
            "variant": self.subject.variant,
            "batches": Batches(evaluation.batch_size),
        }

    def opener(self, checkpoint: str = "best") -> Callable[[], nn.Module]:
        """What opens the subject's best or last checkpoint; it can be sent to another process."""
        load = external.load if self.subject.is_external else load_model
        return partial(load, self.subject.model_dir / f"{checkpoint}.pt", self.device)

    def model(self, checkpoint: str = "best") -> nn.Module:
        """The subject's best or last checkpoint."""
        return self.opener(checkpoint)()

    def outcomes(self, *models: Path) -> AbstractContextManager[Outcomes]:
        """What a killed run of this very stage has left; ``models`` are files of other models that decide it."""
        weights = (self.subject.model_dir / "best.pt", *models)
        return kept(self.stage, self.params, self.subject, weights, self.x, self.y)

    def finish(self, result: Result) -> None:
        """Write the record and print its accuracies with their intervals."""
        write_record(self.subject, self.params, self.stage, result)
        for name, rate in result.rates.items():
            low, high = (100 * bound for bound in rate.interval())
            print(f"{self.subject.run_name} {name}: {100 * rate.accuracy:.1f} % [{low:.1f}, {high:.1f}], n {rate.n}")


def begin(stage: str, description: str | None) -> Task:
    """Read parameters and data of ``stage``; ``--model`` names a baseline."""
    params, subject = from_arguments(description)
    images = getattr(params.current.evaluation, stage).images
    device = choose_device(params.device)
    data = load_prepared(subject.data_dir)
    return Task(stage, params, subject, device, data.x_test[:images].to(device), data.y_test[:images].to(device))
