"""A tiny run through every stage that decides numbers, pinned: whoever moves numbers raises a revision.

Where this fails on purpose: raise the entry of REVISIONS in ebjdat/protocols.py that the message names, then
`python -m tests.test_golden` pins the new numbers.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ebjdat import files
from ebjdat.evaluation import cases
from ebjdat.protocols import REVISIONS
from ebjdat.record import read_record
from ebjdat.run import Run
from tests import tiny
from tests.small_runs import run_stage

PINNED = Path(__file__).with_name("golden.json")
SURROGATE = Run("digits", "pgd_at", 0)
MODELS = (Run("digits", "ebjdat-jempp", 0), SURROGATE)
STEPS = {"square": 300, "fab-t": 10, "apgd-t": 10}
"""Of AutoAttack, for time; tests/test_protocols.py pins the real ones."""
STAGES = ("clean", "autoattack", "craft", "transfer", "sweep", "eot", "generate")
TOLERANCE = {"count": 3, "relative": 0.05, "absolute": 0.02, "share": 0.06}
"""Another CPU rounds otherwise: a few images of a rate or of the 40 to 64 behind a share, a twentieth of a value.

A change of the method moves more."""
SHARES = ("val_", "overlap")
"""Names of shares of few images."""


def made(folder: Path) -> dict[str, dict[str, float]]:
    """Numbers by stage of a run made afresh in ``folder``, which is the current one."""
    before = dict(cases.PROTOCOLS)
    shorten()
    params = tiny.write_params(folder, surrogates=[SURROGATE.model])
    tiny.prepare(params)
    tiny.train(params, *(run.model for run in MODELS))
    run_stage("reference")
    found: dict[str, dict[str, float]] = {"train": {}}
    for run in MODELS:
        summary = files.read_json(run.model_dir / "summary.json")
        found["train"] |= {f"{run.model}/{name}": value for name, value in summary["selected"].items()}
    for stage in STAGES:
        run = SURROGATE if stage == "craft" else MODELS[0]
        run_stage(stage, "--model", run.model)
        if stage == "craft":
            manifest = files.read_json(run.crafted() / "manifest.json")
            found[stage] = {name: entry["accuracy"] for name, entry in manifest["found"].items()}
        else:
            record = read_record(run.record(stage))
            found[stage] = {name: rate["correct"] for name, rate in record["rates"].items()} | record["values"]
    cases.PROTOCOLS.update(before)
    return found


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, float]]]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("golden")
        patch.chdir(folder)
        patch.setenv("EBJDAT_CORES", "1")
        yield made(folder)


def shorten() -> None:
    """Fewer steps of AutoAttack."""
    for name, protocol in cases.PROTOCOLS.items():
        alone = tuple(replace(cell, steps=STEPS.get(cell.attack, cell.steps)) for cell in protocol.table1.alone)
        cases.PROTOCOLS[name] = replace(protocol, table1=replace(protocol.table1, alone=alone))


@pytest.mark.parametrize("stage", ["train", *STAGES])
def test_the_numbers_of_a_tiny_run_are_those_of_its_revision(stage: str, numbers: dict[str, Any]) -> None:
    pinned = files.read_json(PINNED)[stage]
    told = f"numbers of {stage} moved: raise REVISIONS[{stage!r}] in ebjdat/protocols.py, `python -m tests.test_golden`"
    assert pinned["revision"] == REVISIONS[stage], "pin the numbers of the new revision: `python -m tests.test_golden`"
    assert set(numbers[stage]) == set(pinned["numbers"]), told
    moved = {name: (old, numbers[stage][name]) for name, old in pinned["numbers"].items()
             if not near(name, old, numbers[stage][name])}  # fmt: skip
    assert not moved, f"{told} (pinned, now): {moved}"


def near(name: str, old: float, new: float) -> bool:
    if isinstance(old, int):
        return abs(old - new) <= TOLERANCE["count"]
    absolute = TOLERANCE["share" if any(part in name for part in SHARES) else "absolute"]
    return math.isclose(old, new, rel_tol=TOLERANCE["relative"], abs_tol=absolute)


def pin() -> None:
    """Write the numbers of today's code."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = made(Path(folder))
    pinned = {stage: {"revision": REVISIONS[stage], "numbers": numbers} for stage, numbers in found.items()}
    files.write_json(PINNED, pinned)


if __name__ == "__main__":
    pin()
