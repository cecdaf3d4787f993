"""A workspace with made-up records of many models: the shape of a finished pipeline in milliseconds."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ebjdat import files
from ebjdat.config import Params, load_params
from ebjdat.evaluation import masking
from ebjdat.evaluation.statistics import Rate, Result
from ebjdat.protocols import PROTOCOLS, Protocol
from ebjdat.provenance import ROOT
from ebjdat.reporting import ledger, tracking
from ebjdat.reporting.lookup import Numbers
from ebjdat.reporting.published import transfer_metric
from ebjdat.reporting.records import Record, build_record, write_record
from ebjdat.subject import MASKING_INPUTS, SURROGATES, Subject

DIGEST = "synthetic-data"
N = 80


def params_of_repository(**changes: object) -> Params:
    """The repository's parameters, with some top-level values replaced."""
    return dataclasses.replace(load_params(ROOT / "params.yaml"), **changes)  # type: ignore[arg-type]


def code(module: str) -> str:
    """A stand-in for the hash of a stage's code."""
    return hashlib.sha256(module.encode()).hexdigest()[:16]


def other_code(module: str) -> str:
    """The same after an edit somewhere."""
    return code(f"{module}, edited")


def prepare_workspace(subjects: Iterable[Subject]) -> None:
    """Data manifest and model files of subjects, in the current folder."""
    for subject in subjects:
        files.write_json(subject.data_dir / "manifest.json", {"digest": DIGEST})
        files.write_text(subject.model_dir / "best.pt", f"weights of {subject.run_name}")


def rate(share: float, seed: int, n: int = N) -> Rate:
    """A rate near ``share``; the same images are hard for every seed."""
    hardness = np.linspace(0.0, 1.0, n) + np.random.default_rng(seed).normal(0.0, 0.02, n)
    return Rate.of(hardness < share)


def rates_of_protocol(protocol: Protocol, strength: float, seed: int) -> dict[str, dict[str, Rate]]:
    """Every accuracy of a protocol by stage, for a model of a given strength in [0, 1]."""
    p, found = protocol.name, {}
    found["clean"] = {f"{p}/clean": rate(0.97, seed), f"{p}/pgd-20": rate(strength, seed)}
    found["clean"] |= {f"{p}/clean-last": rate(0.97, seed), f"{p}/pgd-20-last": rate(strength - 0.05, seed)}
    attacks = [cell.attack for cell in protocol.table1.alone] + ["union"] + ["autoattack"] * protocol.table1.cascade
    found["autoattack"] = {f"{p}/{name}": rate(strength - 0.02, seed) for name in attacks}
    if protocol.table1.cascade:
        found["autoattack"] |= {
            f"{p}/apgd-ce-t{end}": rate(strength - 0.1 * len(end) / 5, seed) for end in ("", "-last")
        }
    found["autoattack"] |= {f"{p}/square": rate(strength + 0.05, seed), f"{p}/clean": rate(0.97, seed)}
    found["transfer"] = {
        transfer_metric(p, surrogate, attack, n): rate(strength + 0.1, seed)
        for surrogate in SURROGATES
        for attack in protocol.transfer.attacks
        for n in protocol.transfer.neighbours
    } | {f"{p}/transfer/{surrogate}/worst": rate(strength + 0.08, seed) for surrogate in SURROGATES}
    found["transfer"] |= {f"{p}/transfer/worst": rate(strength + 0.08, seed)}
    falls = {0.5: 0.15, 1.0: 0.0, 2.0: -0.3, 4.0: -1.0}
    found["sweep"] = {
        f"{p}/apgd-ce/radius-{radius:g}/steps-{steps}": rate(strength + falls[radius], seed)
        for radius in protocol.sweep.radii
        for steps in protocol.sweep.radii_steps
    }
    found["sweep"] |= {f"{p}/apgd-ce/radius-1/steps-{n}": rate(strength + 0.1 / n, seed) for n in (1, 10, 20, 50)}
    found["sweep"] |= {f"{p}/unbounded": rate(-1.0, seed), f"{p}/uniform-noise": rate(0.96, seed)}
    found["eot"] = {
        f"{p}/eot-pgd/{cell.noise}/samples-{cell.samples}/radius-{radius:g}": rate(strength + falls[radius], seed)
        for cell in protocol.eot.cells
        for radius in protocol.eot.radii
    }
    return found


def results(subject: Subject, strength: float) -> dict[str, Result]:
    """Results of every stage for a model."""
    by_stage: dict[str, dict[str, Rate]] = {stage: {} for stage in MASKING_INPUTS}
    for protocol in PROTOCOLS.values():
        for stage, rates in rates_of_protocol(
            protocol, strength * (1.0 if protocol.scale == 1 else 1.1), subject.seed
        ).items():
            by_stage[stage] |= rates
    energies = {f"energy/{kind}/mean": -6.0 for kind in ("clean", "adversarial", "targeted", "training-adversary")}
    energies |= {"energy/gap-adversarial": 0.2, "energy/overlap-adversarial": 0.9, "calibration/ece": 0.02}
    energies |= {"ood/uniform/auroc": 0.99}
    if not subject.is_baseline:
        energies |= {"energy/generated/mean": -6.4, "energy/gap-generated": -0.4}
        energies |= {"energy/overlap-generated": 0.7, "energy/overlap-all": 0.5 + strength / 5}
        energies |= {"energy/overlap-all-fresh": 0.4 + strength / 5}
    values = {"clean": energies}
    found = {stage: Result(n=N, rates=rates, values=values.get(stage, {})) for stage, rates in by_stage.items()}
    merged = {name: one for rates in by_stage.values() for name, one in rates.items()}
    found["masking"] = masking.evaluate(merged, {}, tuple(PROTOCOLS))
    if not subject.is_baseline:
        found["generate"] = generation()
    return found


def generation() -> Result:
    """A result of the stage ``generate``."""
    distances = {"": 0.24, "start-": 1.5, "test-": 0.7, "buffer-": 0.3, "released-": 0.9}
    values = {f"generation/{kind}classifier-frechet": value for kind, value in distances.items()}
    values |= {f"generation/{kind}classifier-kernel": value / 100 for kind, value in distances.items()}
    settings = {"features": {"metric": "classifier-frechet"}, "kernel": {"metric": "classifier-kernel"}}
    return Result(n=N, values=values, settings=settings)


def records_of(params: Params, subject: Subject, strength: float = 0.6, hash_of=code) -> list[Record]:  # type: ignore[no-untyped-def]
    """Records of every stage of a model, without writing them."""
    prepare_workspace([subject])
    found = results(subject, strength)
    return [build_record(subject, params, stage, result, None, hash_of) for stage, result in found.items()]


def write_records(
    params: Params, subject: Subject, strength: float = 0.6, stages: Sequence[str] | None = None
) -> list[Record]:
    """Write a model's records into the current folder."""
    prepare_workspace([subject])
    found = results(subject, strength)
    return [write_record(subject, params, stage, found[stage], code) for stage in stages or found]


def write_ledger(params: Params, records: Iterable[Record]) -> Path:
    """The committed ledger of the selected profile, in the current folder."""
    path = ledger.ledger_path(params.profile)
    files.write_text(path, ledger.ledger_text(records))
    return path


def numbers_of(params: Params, records: Sequence[Record], hash_of=code) -> Numbers:  # type: ignore[no-untyped-def]
    """Numbers of made-up records."""
    return Numbers(params, records, {}, DIGEST, hash_of)


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


def clean_environment(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Work in ``folder`` as if nothing else existed; returns it."""
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", tracking.STRICT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder)
    return folder
