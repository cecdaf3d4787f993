"""A workspace with made-up records of many models: the shape of a finished pipeline in milliseconds."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import changed as changed
from ebjdat import files, tracking
from ebjdat.config import MASKING_INPUTS, Params, Setup, load_params, resolve
from ebjdat.evaluation import masking
from ebjdat.protocols import PROTOCOLS, Protocol
from ebjdat.record import Record, write_record
from ebjdat.run import Run
from ebjdat.statistics import Rate, Result
from tests import ROOT

DIGEST = "synthetic-data"
N = 80
SURROGATES = ("pgd_at", "undefended")


def params_of_repository(profile: str = "digits", **changes: object) -> Params:
    """The repository's parameters, with some top-level values replaced."""
    return load_params(ROOT, profile).model_copy(update=changes)


PARAMS = params_of_repository()


def setup_of(params: Params, model: str = "", seed: int = 0) -> Setup:
    """What the parameters say about a model, or about the one that they select."""
    return resolve(params, Run(params.profile, model or params.model, seed))


def prepare_workspace(*runs: Run) -> None:
    """Data manifest and model files of runs, in the current folder."""
    for run in runs:
        files.write_json(run.data_dir / "manifest.json", {"digest": DIGEST, "levels": 16})
        files.write_text(run.model_dir / "best.pt", f"weights of {run}")


def rate(share: float, seed: int, n: int = N) -> Rate:
    """A rate near ``share``; the same images are hard for every seed."""
    hardness = np.linspace(0.0, 1.0, n) + np.random.default_rng(seed).normal(0.0, 0.02, n)
    return Rate.of(hardness < share)


def rates_of_protocol(protocol: Protocol, strength: float, seed: int) -> dict[str, dict[str, Rate]]:
    """Every accuracy of a protocol by stage, for a model of a given strength in [0, 1]."""
    p = protocol.name
    falls = {0.5: 0.15, 1.0: 0.0, 2.0: -0.3, 4.0: -1.0}
    clean = {"clean": 0.97, "pgd-20": strength, "clean-last": 0.97, "pgd-20-last": strength - 0.05}
    attacks = [cell.attack for cell in protocol.table1.alone] + ["union"]
    attacks += ["autoattack"] if protocol.table1.cascade else ["union-with-fab"]
    autoattack = dict.fromkeys(attacks, strength - 0.02)
    if protocol.table1.cascade:
        autoattack |= {"apgd-ce-t": strength - 0.1, "apgd-ce-t-last": strength - 0.2}
    autoattack |= {"square": strength + 0.05, "clean": 0.97}
    transfer = {"transfer/worst": strength + 0.08}
    for surrogate in SURROGATES:
        transfer[f"transfer/{surrogate}/worst"] = strength + 0.08
        for attack in protocol.transfer.attacks:
            suffixes = [f"/neighbours-{n}" for n in protocol.transfer.neighbours] if attack.startswith("v") else [""]
            transfer |= {f"transfer/{surrogate}/{attack}{suffix}": strength + 0.1 for suffix in suffixes}
    sweep = {
        f"apgd-ce/radius-{radius:g}/steps-{steps}": strength + falls[radius]
        for radius in protocol.sweep.radii
        for steps in protocol.sweep.radii_steps
    }
    sweep |= {f"apgd-ce/radius-1/steps-{n}": strength + 0.1 / n for n in (1, 10, 20, 50)}
    sweep |= {"unbounded": -1.0, "uniform-noise": 0.96}
    eot = {
        f"eot-pgd/{cell.noise}/samples-{cell.samples}/radius-{radius:g}": strength + falls[radius]
        for cell in protocol.eot.cells
        for radius in protocol.eot.radii
    }
    shares = {"clean": clean, "autoattack": autoattack, "transfer": transfer, "sweep": sweep, "eot": eot}
    return {stage: {f"{p}/{name}": rate(share, seed) for name, share in own.items()} for stage, own in shares.items()}


def results(run: Run, strength: float) -> dict[str, Result]:
    """Results of every stage for a model."""
    by_stage: dict[str, dict[str, Rate]] = {stage: {} for stage in MASKING_INPUTS}
    for protocol in PROTOCOLS.values():
        own = strength * (1.0 if protocol.scale == 1 else 1.1)
        for stage, rates in rates_of_protocol(protocol, own, run.seed).items():
            by_stage[stage] |= rates
    energies = {f"energy/{kind}/mean": -6.0 for kind in ("clean", "adversarial", "targeted", "training-adversary")}
    energies |= {"energy/gap-adversarial": 0.2, "energy/overlap-adversarial": 0.9, "calibration/ece": 0.02}
    energies |= {"ood/uniform/auroc": 0.99}
    if run.variant:
        energies |= {"energy/generated/mean": -6.4, "energy/gap-generated": -0.4}
        energies |= {"energy/overlap-generated": 0.7, "energy/overlap-all": 0.5 + strength / 5}
        energies |= {"energy/overlap-all-fresh": 0.4 + strength / 5}
    values = {"clean": energies}
    found = {stage: Result(n=N, rates=rates, values=values.get(stage, {})) for stage, rates in by_stage.items()}
    merged = {name: one for rates in by_stage.values() for name, one in rates.items()}
    found["masking"] = masking.evaluate(merged, {}, tuple(PROTOCOLS))
    if run.variant:
        found["generate"] = generation()
    return found


def generation() -> Result:
    """A result of the stage ``generate``."""
    distances = {"": 0.24, "start-": 1.5, "test-": 0.7, "buffer-": 0.3, "released-": 0.9}
    values = {f"generation/{kind}classifier-frechet": value for kind, value in distances.items()}
    values |= {f"generation/{kind}classifier-kernel": value / 100 for kind, value in distances.items()}
    settings = {"features": {"metric": "classifier-frechet"}, "kernel": {"metric": "classifier-kernel"}}
    return Result(n=N, values=values, settings=settings)


def write_records(setup: Setup, strength: float = 0.6, stages: Sequence[str] | None = None) -> list[Record]:
    """Write a model's records, and what they rest on, into the current folder."""
    prepare_workspace(setup.run)
    found = results(setup.run, strength)
    return [write_record(setup, stage, found[stage], data=DIGEST) for stage in stages or found]


@functools.cache
def _empty_store() -> Path:
    """An MLflow database with its schema, made once per test run because that takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="mlflow-template-"))
    path = folder / "mlflow.db"
    tracking._client(f"sqlite:///{path}").search_experiments()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return path


def use_empty_store() -> None:
    """Put an empty MLflow store into the current folder."""
    shutil.copy(_empty_store(), "mlflow.db")
