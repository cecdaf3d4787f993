"""The tables in docs/gpu.md and docs/faults.md, filled from ``benchmarks/results``; no digit in them is typed.

python -m benchmarks.pages
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import cost, harness, precision, step
from ebjdat import command, files
from ebjdat.config import load_params
from ebjdat.results.cells import Table, grid
from ebjdat.results.tables import fill_places

PAGES = (harness.ROOT / "docs" / "gpu.md", harness.ROOT / "docs" / "faults.md")
MEASURES = ("validation clean", "validation robust", "clean", "pgd20")


def tables() -> dict[str, Table]:
    """Every table of the pages, by label; one without its measurement says so."""
    found = [policy(), effect(), speed(), evaluation(), growth(), prediction()]
    found += [devices_accuracy(), devices_time(), diverging()]
    return {table.label: table for table in found}


def _table(label: str, caption: str, head: str, columns: Iterable[str], rows: Mapping[str, Sequence[str]]) -> Table:
    return Table(label, label, caption, grid(head, columns, rows))


def _read(name: str) -> dict[str, Any] | None:
    path = harness.RESULTS / name
    return files.read_json(path) if path.is_file() else None


def _by_precision() -> dict[str, list[dict[str, Any]]]:
    """Runs of the seeds that every precision has."""
    runs = (_read("precision.json") or {"runs": []})["runs"]
    groups = {name: {run["seed"]: run for run in runs if run["precision"] == name} for name in precision.PRECISIONS}
    shared = set.intersection(*(set(group) for group in groups.values()))
    return {name: [group[seed] for seed in sorted(shared)] for name, group in groups.items()}


def effect() -> Table:
    """Digits in float32 and bfloat16."""
    groups = _by_precision()
    seeds = [run["seed"] for run in groups["float32"]]
    measured = (*MEASURES, "cpu_seconds")
    rows = {name: [_spread([run[key] for run in runs]) for key in measured] for name, runs in groups.items()}
    caption = (
        f"Digits, EB-JDAT-JEM++, seeds {', '.join(map(str, seeds)) or 'none yet'}; mean and standard deviation over "
        "seeds, per cent; evaluated in float32 on all test images. Time is CPU time of one training, one thread."
    )
    labels = ("validation: clean", "validation: robust", "test: clean", "test: PGD-20", "CPU seconds")
    return _table("effect", caption, "precision", labels, rows)


def _spread(values: list[float]) -> str:
    if not values:
        return "not run"
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def difference(key: str) -> str:
    """bfloat16 minus float32 in points, with the spread of the paired differences."""
    groups = _by_precision()
    pairs = zip(groups["bfloat16"], groups["float32"], strict=True)
    values = [rough[key] - exact[key] for rough, exact in pairs]
    if len(values) < 2:
        return "not measured"
    return f"{statistics.mean(values):+.1f} ± {statistics.stdev(values):.1f}"


def profiles_in(precision: str) -> str:
    """The profiles that train EB-JDAT-JEM++ in this precision."""
    names = sorted(path.stem for path in (harness.ROOT / "params").glob("*.yaml"))
    found = [name for name in names if load_params(harness.ROOT, name).training("ebjdat-jempp").precision == precision]
    return ", ".join(found) or "none"


def policy() -> Table:
    """Hardware, default, why, effect."""
    measured = f"PGD-20 {difference('pgd20')}, clean {difference('clean')} points"
    none = "the reference"
    rows = {
        "GPU, Ampere or newer: training": (
            f"bfloat16 in {profiles_in('bfloat16')}",
            "tensor cores",
            "not measured: no GPU at hand",
        ),
        "CPU with AVX512-BF16 or AMX: training": (
            f"bfloat16 in {profiles_in('bfloat16')}",
            "convolutions run in hardware",
            measured,
        ),
        "any CPU: training of digits": (
            "float32",
            "images too small to gain; runs alike on CPUs without bfloat16",
            none,
        ),
        "without native bfloat16": (
            f"float32 by auto, in {profiles_in('auto')}",
            "PyTorch emulates it, slower than float32",
            none,
        ),
        "any: evaluation, attacks, generation": (
            "float32, TF32 off",
            "attacks compare logits that differ little",
            none,
        ),
    }
    columns = ("default", "why", "measured effect, bfloat16 minus float32")
    return _table("policy", "Differences are paired by seed, on digits.", "hardware", columns, rows)


def speed() -> Table:
    """The iteration as released, lean, and with the engine."""
    rows = dict[str, Sequence[str]]()
    caption = "No measurement is recorded."
    for path in sorted(harness.RESULTS.glob("step-*.json")):
        result = files.read_json(path)
        for mode, row in result["modes"].items():
            label = f"WRN-{result['network']}, {result['variant']}, {result['batch']}: {step.LABELS[mode]}"
            rows[label] = (
                f"{row['seconds']:.2f}",
                *(
                    f"{row[key]:.2f}"
                    for key in ("ratio_released", "ratio_lean", "cpu_ratio_released", "cpu_ratio_lean")
                ),
                f"{row['peak_memory_mb']:.0f}",
            )
        caption = (
            f"{result['device']}, {result['threads']} threads, medians; images of {result['size']}x{result['size']}. "
            "CPU: ratios of CPU time, which a busy machine disturbs less than wall-clock time."
        )
    labels = ("s per iteration", "times (a)", "times (b)", "CPU: times (a)", "CPU: times (b)", "peak MiB")
    return _table("speed", caption, "network, variant, batch: mode", labels, rows)


def evaluation() -> Table:
    """AutoAttack by our stage and by the package called plainly."""
    found, columns = _read("autoattack.json"), ("package alone, s", "ours, s", "ratio", "images with other flags")
    caption, rows = "Not measured.", {}
    if found is not None:
        caption = (
            f"{found['model']} on {found['profile']}, {found['images']} test images in slices of {found['slice']}, "
            f"cascade of version standard, float32, {found['machine']['cores']} cores, {found['package']}. Once."
        )
        times = (f"{found['plain_s']:.0f}", f"{found['ours_s']:.0f}", f"{found['ratio']:.2f}")
        flags = f"{len(found['differing'])} of {found['images']}"
        rows = {"AutoAttack": (*times, flags)}
    return _table("evaluation", caption, "", columns, rows)


def growth() -> Table:
    """CPU time of an iteration against width, chain length and image size."""
    result = _read("cost.json")
    columns = ("CPU s per iteration", "GFLOP", "GFLOP/s")
    if result is None:
        return _table("growth", "No measurement is recorded.", "changed", columns, {})
    rows = {}
    for name, series in result["series"].items():
        for row in series:
            seconds, flops = row["cpu_seconds"], row["flops"] / 1e9
            rows[f"{name} {row[name]}"] = (f"{seconds:.3f}", f"{flops:.1f}", f"{flops / seconds:.0f}")
    base = ", ".join(f"{name} {value}" for name, value in result["base"].items())
    caption = (
        f"EB-JDAT-JEM++ in bfloat16 on {result['device']}, {result['threads']} thread, medians. "
        f"One value at a time differs from: {base}. Steps: those of the chain."
    )
    return _table("growth", caption, "changed", columns, rows)


def prediction() -> Table:
    """Hours of profile cifar10 by GPU."""
    result = _read("cost.json")
    if result is None:
        return _table("prediction", "No prediction is recorded.", "variant", cost.GPUS, {})
    found: Mapping[str, Any] = result["prediction"]
    rows = {
        f"{row['variant']}, {row['epochs']} epochs, {row['memory_gb']:.0f} GB": [
            f"{fast:.0f} to {slow:.0f}" for slow, fast in (row["hours"][name] for name in cost.GPUS)
        ]
        for row in found["variants"]
    }
    low, high = found["shares"]
    attack = found["autoattack"]
    rows[f"AutoAttack, {attack['images']:,} images"] = [
        f"{fast:.0f} to {slow:.0f}" for slow, fast in (attack["hours"][name] for name in cost.GPUS)
    ]
    caption = (
        "Predicted, not measured: hours of one training of profile cifar10, selection included, if a GPU reaches "
        f"{high:.0%} or {low:.0%} of its dense bfloat16 peak; of AutoAttack's cascade on one model, of its float32 "
        f"peak, if {cost.RIGHT:.0%} of the images are right and {cost.LEFT:.0%} after APGD-CE. Memory: weights, "
        "optimiser, data, buffer, and twice what backwards keeps."
    )
    return _table("prediction", caption, "training: epochs, memory", cost.GPUS, rows)


def devices_accuracy() -> Table:
    """Models trained by one process and by two."""
    found = _read("devices-accuracy.json") or {"runs": []}
    rows = {
        f"seed {run['seed']}, {run['devices']} {'process' if run['devices'] == 1 else 'processes'}": (
            *(f"{100 * run[key]:.1f}" for key in ("val_robust", "test_clean", "test_robust")),
            f"{run['flags_different']} of {run['flags_compared']}",
        )
        for run in found["runs"]
    }
    columns = ("validation robust (%)", "test clean (%)", "test robust (%)", "flags that differ")
    return _table("devices-accuracy", _machine(found), "training", columns, rows)


def devices_time() -> Table:
    """A training step by number of processes."""
    found = _read("devices-time.json") or {"runs": [], "batch_size": ""}
    rows = {}
    for run in found["runs"]:
        norm = "alone" if run["processes"] == 1 else "gathered" if run["bn_parts"] == 1 else "each its part"
        depth, width = run["network"]
        times = f"{run['seconds']:.2f}", f"{min(run['samples']):.2f} to {max(run['samples']):.2f}"
        rows[f"WRN-{depth}-{width}, {run['processes']} x {run['threads']}, {norm}"] = times
    head = f"network, processes x threads, BatchNorm; batch {found['batch_size']}"
    return _table("devices-time", _machine(found), head, ("s per step", "lowest to highest"), rows)


def _machine(found: Mapping[str, Any]) -> str:
    if not found["runs"]:
        return "Not measured."
    machine = found["machine"]
    return f"{machine['cores']} cores ({machine.get('device') or machine['processor']}), torch {machine['torch']}."


def diverging() -> Table:
    """Runs that diverge for real, with and without the supervisor."""
    result, rows = files.read_json(harness.RESULTS / "divergence.json"), {}
    for name in ("with", "without"):
        runs = result[name]
        accuracies = [run.get("val_clean", 0.0) for run in runs]
        rows[name] = (
            f"{sum(run['healthy'] for run in runs)} of {len(runs)}",
            str(sum(accuracy > 0.5 for accuracy in accuracies)),
            f"{100 * statistics.median(accuracies):.0f}",
            f"{sum(run['rollbacks'] for run in runs) / len(runs):.1f}",
        )
    caption = (
        f"{result['model']} on {result['profile']}, {result['epochs']} epochs at {result['factor']:g} times the "
        f"recipe's rate, seeds 0 to {len(result['with']) - 1}. "
        "A run that was given up, or ended in a value that is not finite, counts as accuracy 0."
    )
    columns = ("healthy at the end", "above 50 % validation accuracy", "median accuracy (%)", "rollbacks a run")
    return _table("divergence", caption, "supervisor", columns, rows)


def filled(page: Path) -> str:
    """A page as the results say it should read."""
    texts = {label: table.markdown() for label, table in tables().items()}
    return fill_places(page.read_text(encoding="utf-8"), texts)


def main() -> None:
    """Fill the pages."""
    for page in PAGES:
        files.write_text(page, filled(page))


if __name__ == "__main__":
    command.run(main)
