"""What each result costs: measured by `make repro`, counted from the records, or predicted; and what to expect.

    python -m benchmarks.reproduction measure     # after make repro: its times, memory and disk, and then the pages
    python -m benchmarks.reproduction page        # the marked places of README.md and docs/reproduction.md

Measured times go to ``benchmarks/results/repro-<profile>.json``; every row says whether it is measured or predicted.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, cpu_name
from ebjdat import command, files
from ebjdat.config import Params, load_params
from ebjdat.data.source import CHANNELS
from ebjdat.errors import UserError
from ebjdat.model.wideresnet import Architecture, WideResNet
from ebjdat.protocols import as_fraction
from ebjdat.record import times_path
from ebjdat.results import frame, summary
from ebjdat.results.findings import Question, findings
from ebjdat.results.names import display_name
from ebjdat.run import Run
from stages.repro import WHOLE

PAGES = ("README.md", "docs/reproduction.md", "docs/method.md")
PLACE = re.compile(r"(<!-- cost: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
GPU, PEAK, SHARES = "H200", 989e12, (0.10, 0.40)
"""Dense bfloat16 peak in FLOP/s by the vendor's data sheet, and assumed shares of it."""
GIB = 2**30


def measure(params: Params) -> None:
    """Write what the stages of the current parameters took, from the scratch folder and the sizes of folders.

    Stages that were measured before and did not run here keep their times: a study is measured in pieces.

    Raises:
        UserError: no stage has run here.
    """
    root = times_path(Run(params.profile, params.model, 0), "train").parents[2]
    rows = []
    for path in sorted(root.glob("*/*/*.json")):
        found = files.read_json(path)
        rows.append(found | {"model": path.parts[-3], "seed": int(path.parts[-2]), "stage": path.stem})
    if not rows:
        raise UserError(f"{root} has no times: run make repro first")
    columns = ("model", "seed", "stage", "seconds", "cpu_seconds")
    earlier = (_read(f"repro-{params.profile}.json") or {"stages": []})["stages"]
    here = {(row["model"], row["seed"], row["stage"]) for row in rows}
    rows += [row for row in earlier if (row["model"], row["seed"], row["stage"]) not in here]
    rows.sort(key=lambda row: (row["model"], row["seed"], row["stage"]))
    found = {
        "profile": params.profile,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "wall_seconds": round(files.read_json(root / "repro.json").get(WHOLE, 0)),  # 0: never run as a whole
        "peak_memory": max(row["peak_memory"] for row in rows if "peak_memory" in row),
        "disk": sum(map(_size, (Path("data"), Path("models"), Path("results"), Path(".dvc/cache")))),
        "packages": _size(Path(".venv")),
        "stages": [{name: row[name] for name in columns} for row in rows],
    }
    files.write_json(RESULTS / f"repro-{params.profile}.json", found)


def _size(folder: Path) -> int:
    """Bytes on disk; a file with several names counts once."""
    seen = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            status = path.stat()
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    return files.read_json(path) if path.is_file() else None


def places(root: Path = Path()) -> dict[str, str]:
    """Markdown by the label of its place."""
    digits = frame.load(load_params(root, "digits"), root)
    study, fashion = (frame.load(load_params(root, name), root) for name in ("digits-study", "fashion"))
    # Its records are from before the training adversary's step was corrected.
    older = load_params(root, "cifar10-cpu").model_copy(update={"variant": "jempp_step04"})
    small = frame.load(older, root)
    return {
        "readme": f"{summary.wrapped(_machine(_read('repro-digits.json')))}\n",
        "claims": _table(
            ("claim", "command", "expected", "held", "time", "memory", "disk"), _claims(digits, study, small)
        ),
        "networks": _table(
            ("profile", "network", "parameters", "training images", "epochs", "train radius"), _networks(root)
        ),
        "compute": f"{summary.wrapped(_compute([digits, study, fashion, small]))}\n",
        "dhat": f"{summary.wrapped(_dhat())}\n",
    }


def _machine(found: dict[str, Any] | None) -> str:
    if found is None:
        return "`make repro` has not been timed yet."
    cpu = found["cpu"].replace("(R)", "")
    return (
        f"Measured: {math.ceil(found['wall_seconds'] / 60)} minutes on {found['cores']} cores ({cpu}), "
        f"{found['peak_memory'] / GIB:.1f} GiB per process, {size(found['disk'])} of disk beside "
        f"{found['packages'] / GIB:.0f} GiB of packages."
    )


def size(n: int) -> str:
    """Bytes for people."""
    return f"{n / GIB:.1f} GiB" if n >= GIB else f"{n / 2**20:.0f} MiB"


Row = tuple[str, ...]


def _claims(digits: frame.Results, study: frame.Results, small: frame.Results) -> Iterable[Row]:
    """One row per claim: what to run, what to expect, and what it costs."""
    model = f"ebjdat-{digits.params.variant}"
    ours, measured = display_name(digits.params, model), _read("repro-digits.json")
    memory = "not measured" if measured is None else f"{measured['peak_memory'] / GIB:.1f} GiB"
    minutes = "not measured" if measured is None else f"{math.ceil(measured['wall_seconds'] / 60)} min"
    disk = "not measured" if measured is None else size(measured["disk"])
    studied = _read("repro-digits-study.json")
    study_memory = "not measured" if studied is None else f"{studied['peak_memory'] / GIB:.1f} GiB"
    where = f" on {studied['cpu']}" if studied else ""
    cost = f"{_hours(_spent('repro-digits-study.json'))}{where}, all studies of digits", study_memory, "not measured"
    yield f"digits, one seed: {ours} is robust", "`make repro`", _range(digits), "", minutes, memory, disk
    line = "`python -m stages.study studies/digits-headline.yaml`"
    asked = {
        "more robust than the plain variant": ("AutoAttack", "base", {"higher"}),
        "the energy term adds robustness": ("AutoAttack", "control", {"higher"}),
        "as robust as PGD-AT": ("AutoAttack", "pgd_at", {"higher", "equal"}),
        "narrows the energy gap of the control": ("E(x_adv) - E(x)", "control", {"lower"}),
    }
    for form in (model, f"{model}_energy"):
        name = display_name(study.params, form)
        for claim, (quantity, rival, held) in asked.items():
            yield f"digits-study, {name}: {claim}", line, *_found(study, Question(form, quantity, rival), held), *cost
    hours = _hours(_spent("repro-cifar10-cpu.json"))
    command_line = "`python -m stages.study studies/cifar10-cpu.yaml`"
    yield (
        "cifar10-cpu, one seed",
        command_line,
        _range(small),
        "",
        f"{hours} (revision 4ddffea)",
        "not recorded",
        "not recorded",
    )
    for profile, variant, claim in (
        ("cifar10-small", "jempp", "the same questions on all of CIFAR-10"),
        ("cifar10", "jempp_eps4", "the published numbers"),
    ):
        line = f"`dvc exp run -S profile={profile} -S variant={variant} -S device=cuda`"
        yield f"{profile}: {claim}", line, "not run", "", _predicted(profile), *_predicted_memory(profile)


def _range(results: frame.Results) -> str:
    return summary.check(results).removeprefix("You should see ").partition(" for ")[0]


def _found(results: frame.Results, question: Question, held: Collection[str]) -> tuple[str, str]:
    """What came out, and whether it is one of the verdicts under which the claim held."""
    found = findings(results).get(question)
    if found is None:
        return "not run", ""
    verdict = found.verdict.partition(",")[0]
    answer = verdict if verdict == "undecided" else "yes" if verdict in held else "no"
    return f"{question.quantity} {found.numbers} {found.unit}: {found.verdict}", answer


def _spent(name: str) -> float:
    """CPU seconds of all measured stages of a profile; seconds where they were not measured."""
    return sum(row.get("cpu_seconds", row["seconds"]) for row in (_read(name) or {"stages": []})["stages"])


def _hours(seconds: float | None) -> str:
    return "not measured" if not seconds else f"{seconds / 3600:.1f} core-hours"


def _predicted(profile: str) -> str:
    flops: Mapping[str, float] = (_read("cifar10-cpu.json") or {}).get("planned_flops", {})
    if profile not in flops:
        return "not predicted"
    fast, slow = (flops[profile] / PEAK / share / 3600 for share in reversed(SHARES))
    return f"predicted: {fast:.2g} to {slow:.2g} h for one training on one {GPU}"


def _predicted_memory(profile: str) -> tuple[str, str]:
    rows = (_read("cost.json") or {"prediction": {"variants": [], "profile": ""}})["prediction"]
    found = [row["memory_gb"] for row in rows["variants"] if row["variant"] == "jempp" and rows["profile"] == profile]
    return (f"predicted: {found[0]:.0f} GB of the GPU" if found else "not predicted"), "not predicted"


def _networks(root: Path) -> Iterable[Row]:
    """Parameters of each profile's network, with the normalisation of JEM++."""
    for path in sorted((root / "params").glob("*.yaml")):
        params = load_params(root, path.stem)
        profile, training = params.current, params.training(f"ebjdat-{params.variant}")
        network = profile.network
        channels = CHANNELS[profile.data.dataset]
        built = WideResNet(
            Architecture(depth=network.depth, width=network.width, channels=channels, classes=10, norm="batch")
        )
        count = sum(weight.numel() for weight in built.parameters())
        yield (
            path.stem,
            f"WRN-{network.depth}-{network.width}",
            f"{count:,}",
            f"{profile.data.train:,}",
            str(training.epochs),
            as_fraction(training.train_eps),
        )


def _compute(runs: Iterable[frame.Results]) -> str:
    """Total compute behind the records in git."""
    runs = [found for found in runs if found.records]
    counts = ", ".join(
        f"{len({key[:2] for key in found.records})} trainings with {len(found.records)} records of {found.profile}"
        for found in runs
    )
    spent = ", ".join(f"{found.profile} {_hours(_spent(f'repro-{found.profile}.json'))}" for found in runs)
    return f"In git: {counts}. Measured: {spent}."


def _dhat() -> str:
    """CPU time of a training of DHAT, helper included, against that of PGD-AT on the same day."""
    times: dict[str, list[float]] = {}
    for row in (_read("repro-digits-study.json") or {"stages": []})["stages"]:
        if row["stage"] == "train":
            times.setdefault(row["model"], []).append(row["cpu_seconds"])
    if not {"dhat", "pgd_at-19"} <= times.keys():
        return "The cost was not measured."
    ours, theirs = statistics.median(times["dhat"]), statistics.median(times["pgd_at-19"]) * 10 / 19
    return (
        f"Measured on digits: {ours:.0f} CPU seconds for ten epochs and the helper, {ours / theirs:.1f} times PGD-AT's "
        f"{theirs:.0f} (medians of {len(times['dhat'])} seeds; PGD-AT: 10/19 of a run of 19 epochs)."
    )


def _table(heads: Row, rows: Iterable[Row]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill(text: str, found: Mapping[str, str]) -> str:
    """A page with its marked places filled."""
    return PLACE.sub(lambda match: f"{match[1]}{found[match[2]]}{match[3]}", text)


def main() -> None:
    """Measure, or fill the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "page"))
    if parser.parse_args().what == "measure":
        measure(load_params())
    found = places()
    for name in PAGES:
        files.write_text(Path(name), fill(Path(name).read_text(encoding="utf-8"), found))


if __name__ == "__main__":
    command.run(main)
