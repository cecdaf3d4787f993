"""On demand: an undefended network on real CIFAR-10 images must fall to 0 to 2 % under `standard` (minutes).

    python -m tests.check_undefended [test images]

WRN-10-1, plain cross-entropy on 10,000 training images, ten epochs; then the AutoAttack cascade at
8/255 on the first test images that it sees.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from ebjdat.attacks.autoattack import Job, run_job
from ebjdat.config import Data, load_params, resolve
from ebjdat.data.cifar10 import load_cifar10
from ebjdat.data.prepared import Prepared, split
from ebjdat.run import Run
from ebjdat.training.loop import Trainer

ROOT = Path(__file__).resolve().parents[1]


def main(images: int = 100) -> int:
    """Train, attack, print; 1 when the network keeps more than 2 %."""
    setup = resolve(load_params(ROOT, "cifar10-smoke"), Run("cifar10-smoke", "undefended", 0))
    assert setup.training is not None
    setup = replace(setup, training=setup.training.model_copy(update={"epochs": 10, "batch_size": 100}))
    settings = Data(dataset="cifar10", folder=None, split_seed=0, train=10000, validation=500, test=images)
    parts = split(load_cifar10(), settings)
    tensors = {name: torch.from_numpy(array) for name, array in parts.items()}
    x = {name: tensors[f"x_{name}"].float() / 255 for name in ("train", "val", "test")}
    y = {name: tensors[f"y_{name}"].long() for name in ("train", "val", "test")}
    data = Prepared(x["train"], y["train"], x["val"], y["val"], x["test"], y["test"], "none", None, 255)  # type: ignore[arg-type]
    model = Trainer(setup, data, device=torch.device("cpu")).run().best.requires_grad_(False)
    clean = (model(x["test"]).argmax(1) == y["test"]).sum()
    job = Job(protocol="standard", attack="cascade", steps=100, targets=9, eps=8 / 255, seed=0, first=0, last=images)
    robust = int(run_job(model, x["test"], y["test"], job).final.sum())
    print(f"undefended WRN-10-1, {images} CIFAR-10 test images: clean {int(clean)}, AutoAttack at 8/255 {robust}")
    return int(robust > 0.02 * images)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2])))
