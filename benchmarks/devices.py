"""One process and several: does a model come out as accurate, an attack with the same flags, and how long does it take?

    python -m benchmarks.devices accuracy --seeds 0 1 2    # the stage `train` with devices 1 and 2, on digits
    python -m benchmarks.devices time                      # training steps of larger networks on this CPU

Each writes ``benchmarks/results/devices-<what>.json``; `python -m benchmarks.pages` puts both into docs/gpu.md.
Digits must be prepared (``python -m stages.prepare``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from benchmarks.harness import RESULTS, ROOT, setup_of
from ebjdat import files
from ebjdat.attacks.autoattack import Job
from ebjdat.attacks.outcomes import Outcomes
from ebjdat.attacks.slices import run_jobs
from ebjdat.config import read_yaml
from ebjdat.data.prepared import Prepared, load_prepared
from ebjdat.model.store import load_model
from ebjdat.training import parallel
from ebjdat.training.loop import Trainer

NETWORKS = ((10, 1), (16, 2))
BATCH = 64
IMAGES, SLICE = 200, 50
ATTACKS = (("apgd-ce", 50), ("apgd-dlr", 20), ("square", 200))


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "time", "steps"], help="steps: one measurement of `time`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5, help="steps per measurement")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each kind, in turn")
    parser.add_argument("--network", type=int, nargs=2, default=[10, 1], help="depth and width, for `steps`")
    parser.add_argument("--parts", type=int, default=1, help="bn_parts, for `steps`")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process, for `steps`")
    arguments = parser.parse_args()
    if arguments.what == "steps":
        steps(tuple(arguments.network), arguments.parts, arguments.threads, arguments.repeats)
        return
    found: dict[str, Any] = {"machine": harness.machine(torch.device("cpu"))}
    if arguments.what == "accuracy":
        found["runs"] = accuracy(arguments.seeds, arguments.devices)
    else:
        found |= {"batch_size": BATCH, "runs": times(arguments.repeats, arguments.rounds)}
    harness.finish(found, RESULTS / f"devices-{arguments.what}.json")


def accuracy(seeds: list[int], devices: list[int]) -> list[dict[str, Any]]:
    """Train EB-JDAT-JEM++ on digits once per seed and number of devices; attack each with one process and with two."""
    runs = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "data").symlink_to(ROOT / "data")
        for seed in seeds:
            for count in devices:
                seconds = _train(folder, seed, count)
                runs.append({"seed": seed, "devices": count, "seconds": round(seconds, 1), **_measured(folder, seed)})
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    return runs


def _train(folder: Path, seed: int, count: int) -> float:
    raw = read_yaml(ROOT / "params.yaml") | {"devices": count, "device": "cpu", "profile": "digits"}
    files.write_json(folder / "params.yaml", raw)  # JSON is YAML, too
    if not (folder / "params").exists():
        (folder / "params").symlink_to(ROOT / "params")
    environment = dict(os.environ, PYTHONPATH=str(ROOT), EBJDAT_SCRATCH=str(folder / "scratch"))
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "stages.train", "--model", "ebjdat-jempp", "--seed", str(seed)],
        cwd=folder,
        env=environment,
        check=True,
        timeout=3600,
    )
    return time.monotonic() - started


def _measured(folder: Path, seed: int) -> dict[str, Any]:
    """Accuracies of the best checkpoint, and whether two processes find what one finds, image by image."""
    model_dir = folder / "models" / "digits" / "ebjdat-jempp" / str(seed)
    summary = files.read_json(model_dir / "summary.json")
    data = load_prepared(ROOT / "data" / "digits")
    x, y = data.x_test[:IMAGES], data.y_test[:IMAGES]
    radius = setup_of("digits", "ebjdat-jempp").evaluation.radius
    jobs = [
        Job(protocol="standard", attack=name, steps=n, targets=0, eps=radius, seed=0, first=i, last=i + SLICE)
        for name, n in ATTACKS
        for i in range(0, len(x), SLICE)
    ]
    images = {job: (x[job.first : job.last], y[job.first : job.last]) for job in jobs}
    load = {"best": partial(load_model, model_dir / "best.pt")}
    found = []
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as place:
            outcomes = run_jobs(jobs, load, images, done=Outcomes(Path(place)), workers=workers)
        found.append({name: [outcomes[job].final for job in jobs if job.attack == name] for name, _ in ATTACKS})
    flags = [{name: np.concatenate(parts) for name, parts in one.items()} for one in found]
    union = np.logical_and.reduce(list(flags[0].values()))
    with torch.no_grad():
        clean = (load["best"]()(data.x_test).argmax(1) == data.y_test).float().mean()
    return {
        "best_epoch": summary["best_epoch"],
        "val_robust": summary["selected"]["val_robust"],
        "test_clean": float(clean),
        "test_robust": float(union.mean()),
        "flags_compared": sum(len(one) for one in flags[0].values()),
        "flags_different": int(sum((flags[0][name] != flags[1][name]).sum() for name in flags[0])),
    }


def times(repeats: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds per training step by network and number of processes, all in one run, in turn."""
    kinds = [
        {"network": list(network), "processes": processes, "threads": threads, "bn_parts": parts}
        for network in NETWORKS
        for processes, threads, parts in ((1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 1, 2))
    ]
    samples: list[list[float]] = [[] for _ in kinds]
    for _ in range(rounds):
        for kind, sample in zip(kinds, samples, strict=True):
            sample += _steps_elsewhere(kind, repeats)
            print(json.dumps(kind | {"seconds": sample[-repeats:]}), file=sys.stderr, flush=True)
    return [
        kind | {"seconds": round(statistics.median(sample), 3), "samples": [round(value, 3) for value in sample]}
        for kind, sample in zip(kinds, samples, strict=True)
    ]


def _steps_elsewhere(kind: dict[str, Any], repeats: int) -> list[float]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(kind["processes"])]
    options = ["steps", "--network", *map(str, kind["network"]), "--parts", str(kind["bn_parts"])]
    options += ["--threads", str(kind["threads"]), "--repeats", str(repeats)]
    command = [sys.executable, *(launcher if kind["processes"] > 1 else []), "-m", "benchmarks.devices", *options]
    environment = dict(os.environ, OMP_NUM_THREADS=str(kind["threads"]))
    run = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=3600
    )
    return json.loads(run.stdout.splitlines()[-1])


def steps(network: tuple[int, int], parts: int, threads: int, repeats: int) -> None:
    """Print seconds of ``repeats`` steps of EB-JDAT-JEM++ on random images (3,32,32), after one to warm up."""
    torch.set_num_threads(threads)
    with parallel.joined(torch.device("cpu")):
        run = _trainer(network, parts)
        run._loss = parallel.with_averaged_gradients(run.state.model, run.objective.loss)
        order, order_p = run._order("labelled"), run._order("px")
        seconds = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            run._iteration(run._batch(order, order_p))
            seconds.append(time.perf_counter() - started)
        if parallel.rank() == 0:
            print(json.dumps(seconds[1:]))


def _trainer(network: tuple[int, int], parts: int) -> Trainer:
    cpu = torch.device("cpu")
    x, y = harness.images(10 * BATCH, 32, 0, cpu), torch.arange(10 * BATCH) % 10
    mixture = harness.random_mixture((3, 32, 32), cpu)
    data = Prepared(x, y, x[:BATCH], y[:BATCH], x[:BATCH], y[:BATCH], "random", mixture, 255)
    values: dict[str, Any] = {"buffer_size": 10 * BATCH, "bn_parts": parts, "precision": "float32", "batch_size": BATCH}
    setup = setup_of("cifar10", "ebjdat-jempp", depth=network[0], width=network[1], **values)
    return Trainer(setup, data, device=cpu)


if __name__ == "__main__":
    main()
