"""The tables in docs/precision.md, filled from ``benchmarks/results``; no digit in them is typed.

python -m benchmarks.pages
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import cost, harness, precision, step
from ebjdat import command, files
from ebjdat.reporting.layout import Column, Entry, Row, Table
from ebjdat.reporting.readme import fill

PAGE = Path(__file__).parents[1] / "docs" / "precision.md"
MEASURES = ("validation clean", "validation robust", "clean", "pgd20")


def tables() -> dict[str, Table]:
    """Every table of the page, by label; one without its measurement says so."""
    found = [policy(), effect(), speed(), evaluation(), growth(), prediction()]
    return {table.label: table for table in found}


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
    rows = tuple(
        Row(name, tuple(_spread([run[key] for run in runs]) for key in (*MEASURES, "cpu_seconds")))
        for name, runs in groups.items()
    )
    caption = (
        f"Digits, EB-JDAT-JEM++, seeds {', '.join(map(str, seeds)) or 'none yet'}; mean and standard deviation over "
        "seeds, per cent; evaluated in float32 on all test images. Time is CPU time of one training, one thread."
    )
    labels = ("validation: clean", "validation: robust", "test: clean", "test: PGD-20", "CPU seconds")
    return Table("effect", "Effect of bfloat16", caption, "precision", tuple(map(Column, labels)), rows)


def _spread(values: list[float]) -> Entry:
    if not values:
        return Entry("not run")
    spread = f"± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return Entry(f"{statistics.mean(values):.1f}", spread)


def difference(key: str) -> str:
    """bfloat16 minus float32 in points, with the spread of the paired differences."""
    groups = _by_precision()
    pairs = zip(groups["bfloat16"], groups["float32"], strict=True)
    values = [rough[key] - exact[key] for rough, exact in pairs]
    if len(values) < 2:
        return "not measured"
    return f"{statistics.mean(values):+.1f} ± {statistics.stdev(values):.1f}"


def policy() -> Table:
    """Hardware, default, why, effect."""
    measured = Entry(f"PGD-20 {difference('pgd20')}, clean {difference('clean')} points")
    none = Entry("the reference")
    rows = (
        Row(
            "GPU, Ampere or newer: training",
            (
                Entry("bfloat16 in the profiles of CIFAR-10"),
                Entry("tensor cores"),
                Entry("not measured: no GPU at hand"),
            ),
        ),
        Row(
            "CPU with AVX512-BF16 or AMX: training",
            (Entry("bfloat16 in cifar10-smoke and cifar10-cpu"), Entry("convolutions run in hardware"), measured),
        ),
        Row(
            "any CPU: training of digits",
            (Entry("float32"), Entry("images too small to gain; runs alike on CPUs without bfloat16"), none),
        ),
        Row(
            "without native bfloat16",
            (Entry("float32 by `precision: auto`"), Entry("PyTorch emulates it, slower than float32"), none),
        ),
        Row(
            "any: evaluation, attacks, generation",
            (Entry("float32, TF32 off"), Entry("attacks compare logits that differ little"), none),
        ),
    )
    columns = tuple(map(Column, ("default", "why", "measured effect, bfloat16 minus float32")))
    return Table(
        "policy", "Precision by hardware", "Differences are paired by seed, on digits.", "hardware", columns, rows
    )


def speed() -> Table:
    """The iteration as released, lean, and with the engine."""
    rows = []
    caption = "No measurement is recorded."
    for path in sorted(harness.RESULTS.glob("step-*.json")):
        result = files.read_json(path)
        for mode, row in result["modes"].items():
            memory = "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:.0f}"
            cells = (
                f"{row['seconds']:.2f}",
                _ratio(row["ratio_released"]),
                _ratio(row["ratio_lean"]),
                _ratio(row["cpu_ratio_released"]),
                _ratio(row["cpu_ratio_lean"]),
                memory,
            )
            label = f"WRN-{result['network']}, {result['variant']}, {result['batch']}: {step.LABELS[mode]}"
            rows.append(Row(label, tuple(map(Entry, cells)), rule=mode == next(iter(result["modes"]))))
        caption = (
            f"{result['device']}, {result['threads']} threads, medians; images of {result['size']}x{result['size']}. "
            "CPU: ratios of CPU time, which a busy machine disturbs less than wall-clock time."
        )
    labels = ("s per iteration", "times (a)", "times (b)", "CPU: times (a)", "CPU: times (b)", "peak MiB")
    columns = tuple(map(Column, labels))
    return Table("speed", "One training iteration", caption, "network, variant, batch: mode", columns, tuple(rows))


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def evaluation() -> Table:
    """AutoAttack by our stage and by the package called plainly."""
    found, columns = _read("autoattack.json"), ("package alone, s", "ours, s", "ratio", "images with other flags")
    caption, rows = "Not measured.", ()
    if found is not None:
        caption = (
            f"{found['model']} on {found['profile']}, {found['images']} test images in slices of {found['slice']}, "
            f"cascade of version standard, float32, {found['machine']['cores']} cores, {found['package']}. Once."
        )
        times = (f"{found['plain_s']:.0f}", f"{found['ours_s']:.0f}", f"{found['ratio']:.2f}")
        flags = f"{len(found['differing'])} of {found['images']}"
        rows = (Row("AutoAttack", tuple(map(Entry, (*times, flags)))),)
    return Table("evaluation", "Evaluation", caption, "", tuple(map(Column, columns)), rows)


def growth() -> Table:
    """CPU time of an iteration against width, chain length and image size."""
    result = _read("cost.json")
    columns = tuple(map(Column, ("CPU s per iteration", "GFLOP", "GFLOP/s")))
    if result is None:
        return Table("growth", "How cost grows", "No measurement is recorded.", "changed", columns, ())
    rows = []
    for name, series in result["series"].items():
        for place, row in enumerate(series):
            seconds, flops = row["cpu_seconds"], row["flops"] / 1e9
            cells = (f"{seconds:.3f}", f"{flops:.1f}", f"{flops / seconds:.0f}")
            rows.append(Row(f"{name} {row[name]}", tuple(map(Entry, cells)), rule=place == 0))
    base = ", ".join(f"{name} {value}" for name, value in result["base"].items())
    caption = (
        f"EB-JDAT-JEM++ in bfloat16 on {result['device']}, {result['threads']} thread, medians. "
        f"One value at a time differs from: {base}. Steps: those of the chain."
    )
    return Table("growth", "How cost grows", caption, "changed", columns, tuple(rows))


def prediction() -> Table:
    """Hours of profile cifar10 by GPU."""
    result = _read("cost.json")
    columns = tuple(Column(name) for name in cost.GPUS)
    if result is None:
        return Table("prediction", "Predicted", "No prediction is recorded.", "variant", columns, ())
    found: Mapping[str, Any] = result["prediction"]
    rows = tuple(
        Row(
            f"{row['variant']}, {row['epochs']} epochs, {row['memory_gb']:.0f} GB",
            tuple(Entry(f"{fast:.0f} to {slow:.0f}") for slow, fast in (row["hours"][name] for name in cost.GPUS)),
        )
        for row in found["variants"]
    )
    low, high = found["shares"]
    caption = (
        "Predicted, not measured: hours of one training of profile cifar10 (WRN-28-10) if a GPU reaches "
        f"{high:.0%} or {low:.0%} of its dense bfloat16 peak, selection included. Memory: weights, optimiser, data, "
        "buffer and what backwards keep, twice over for gradients and workspace."
    )
    return Table("prediction", "Predicted hours", caption, "variant, epochs, memory", columns, rows)


def filled() -> str:
    """The page as the results say it should read."""
    return fill(PAGE.read_text(encoding="utf-8"), tables())


def main() -> None:
    """Fill the page."""
    files.write_text(PAGE, filled())


if __name__ == "__main__":
    command.run(main)
