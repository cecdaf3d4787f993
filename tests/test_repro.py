"""The runner over DVC's graph, and studies, on stages that only leave files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ebjdat import files
from ebjdat.config import read_yaml, resolve
from stages import study
from stages.repro import Times, kind, makespan, paths, plan
from tests import stub_pipeline, tiny
from tests.stage_deps import ROOT
from tests.stub_pipeline import events, python, ran, stale
from tests.synthetic import write_records

KEPT = ("prepare", "train-baseline", "clean-baseline")
TRAIN = [f"train-baseline@{name}-0" for name in ("pgd_at", "trades", "undefended")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    stub_pipeline.make(folder, KEPT)
    return folder


def edit_training(folder: Path) -> None:
    """All trainings become stale, in a way that no run cache knows."""
    ran(folder)
    with (folder / "stages/train.py").open("a") as file:
        file.write("# edited\n")


def test_independent_stages_run_at_once_and_what_is_up_to_date_costs_nothing(checkout: Path) -> None:
    done = python(checkout, "stages.repro", "--jobs", "2", "train", STUB_SECONDS="5")
    assert done.returncode == 0, done.stderr
    assert "4 stages, 2 at once, 4 of them for the first time here\n" in done.stdout
    assert "4 of 4 stages done in " in done.stdout and "; longest: train-baseline@" in done.stdout
    times = {(what, name): float(when) for what, name, when, _ in events(checkout)}
    begun, ended = (sorted(times[what, name] for name in TRAIN) for what in ("begin", "end"))
    assert times["end", "prepare"] < begun[0] < begun[1] < ended[0] < begun[2], "two at once, after what they need"
    assert python(checkout, "stages.repro", "train").stdout == "nothing is stale\n"
    assert not stale(checkout) & set(TRAIN), "DVC agrees"
    edit_training(checkout)
    shown = python(checkout, "stages.repro", "--dry-run", "train").stdout
    assert shown.startswith("3 stages, ") and "never" not in shown and ran(checkout) == []


def test_a_stage_that_fails_is_told_with_its_last_lines_and_what_does_not_need_it_goes_on(checkout: Path) -> None:
    edit_training(checkout)
    done = python(checkout, "stages.repro", STUB_STOPS_AT="train-baseline@trades-0")
    assert done.returncode == 1
    assert "train-baseline@trades-0 failed:\n" in done.stderr and "stub: told to stop" in done.stderr
    assert "1 failed (train-baseline@trades-0), 1 not begun" in done.stdout, "what needs it is left"
    assert {"clean-baseline@pgd_at-0", "clean-baseline@undefended-0"} <= set(ran(checkout))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_reach_the_stages_which_write_a_checkpoint(checkout: Path, number: signal.Signals) -> None:
    edit_training(checkout)
    line = [sys.executable, "-m", "stages.repro", "--jobs", "2", "train"]
    environment = stub_pipeline.environment_of(STUB_SECONDS="100")
    process = subprocess.Popen(line, cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True)
    while len(events(checkout)) < (2 if (checkout / "data/digits").is_dir() else 1):
        time.sleep(0.2)
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "was stopped:\n" in told
    did = [event[0] for event in events(checkout)]
    assert did.count("checkpoint") == did.count("begin") > 0 and "end" not in did


def test_on_slurm_each_stage_is_a_job_with_its_own_share_of_cores(checkout: Path, tmp_path: Path) -> None:
    edit_training(checkout)
    srun = tmp_path / "srun"
    srun.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\nshift 5\nexec "$@"\n')
    srun.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = python(checkout, "stages.repro", "--executor", "slurm", "train", PATH=path, SLURM_CPUS_PER_TASK="3")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert all({"--disable-status", "--cpus-per-task=3"} <= set(line) for line in lines), "gets Ctrl-C, and its cores"
    asked = {line[4] for line in lines}
    assert (
        asked >= {f"--job-name={name}" for name in TRAIN}
        and f"{len(asked)} stages, {len(asked)} at once" in done.stdout
    )
    assert {threads for what, name, _, threads in events(checkout) if name in TRAIN} == {"3"}
    refused = python(checkout, "stages.repro", "--executor", "slurm", PATH="/nowhere")
    assert refused.returncode == 2 and "srun is not here" in refused.stderr


def test_stages_that_go_on_after_their_runner_was_killed_are_waited_for(checkout: Path) -> None:
    orphan = subprocess.Popen(["sleep", "100"])
    held = {"pid": orphan.pid, "cmd": "dvc repro --single-item prepare"}
    files.write_json(checkout / ".dvc/tmp/rwlock", {"write": {str(checkout / "data/digits"): held}, "read": {}})
    line = [sys.executable, "-m", "stages.repro", "--dry-run"]
    process = subprocess.Popen(
        line, cwd=checkout, env=stub_pipeline.environment_of(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert re.match(r"waiting: .*data/digits' is busy.*\(PID \d+\): dvc repro", process.stderr.readline())
    assert process.poll() is None
    orphan.kill()
    orphan.wait()
    process.communicate(timeout=120)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cleen"], "error: cleen is no stage; known: clean, prepare, train\n"),
        (["--jobs", "0"], "error: --jobs: expected at least 1, got 0\n"),
    ],
)
def test_what_it_cannot_run_is_told_in_one_line(checkout: Path, arguments: list[str], message: str) -> None:
    done = python(checkout, "stages.repro", *arguments)
    assert (done.returncode, done.stderr) == (2, message)


def test_a_lock_of_dvc_that_a_kill_left_damaged_is_named(checkout: Path) -> None:
    """github.com/treeverse/dvc/issues/7615."""
    edit_training(checkout)
    lock = checkout / ".dvc/tmp/rwlock"
    lock.write_bytes(b"")
    done = python(checkout, "stages.repro")
    lock.unlink()
    told = "error: .dvc/tmp/rwlock is damaged: a DVC was killed; delete it once no DVC runs here\n"
    assert (done.returncode, done.stderr) == (2, told)


def test_expected_times_are_the_last_ones_or_those_of_the_same_kind_here_or_where_the_committed_ones_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBJDAT_SCRATCH", str(tmp_path))
    Times("digits").put("clean@ebjdat-jempp-0", 10.0)
    Times("digits").put("clean-baseline@pgd_at-0", 20.0)
    times = Times("digits")
    assert [times.of(name) for name in ("clean@ebjdat-jempp-0", "clean@base-jem-3")] == [10, 15]
    rows = files.read_json(ROOT / "benchmarks/results/repro-digits.json")["stages"]
    elsewhere = [row["seconds"] for row in rows if row["stage"] == "eot"]
    assert times.of("eot@base-jem-3") == sum(elsewhere) / len(elsewhere)
    assert [times.is_new(name) for name in ("clean@base-jem-3", "eot@base-jem-3")] == [False, True]
    assert times.of("tables") is None and Times("unheard-of").of("clean@ebjdat-jempp-0") is None


def test_what_the_longest_chain_waits_for_begins_first() -> None:
    stages = {"eot@b": set[str](), "train@a": set[str](), "autoattack@a": {"train@a"}}
    seconds = {"train@a": 5.0, "autoattack@a": 90.0, "eot@b": 60.0}
    assert paths(stages, seconds) == {"eot@b": 60.0, "train@a": 95.0, "autoattack@a": 90.0}
    assert [makespan(stages, seconds, jobs) for jobs in (1, 2)] == [155.0, 95.0]


def test_three_seeds_take_little_longer_than_the_longest_chain_or_an_even_share_of_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the seconds of one machine, so that a new measurement does not decide a test."""
    took = {"autoattack": 152, "train": 65, "eot": 39, "craft": 29, "clean": 18, "generate": 17, "sweep": 17}
    stub_pipeline.make(tmp_path, stub_pipeline.pipeline())
    text = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("seeds: [0]", "seeds: [0, 1, 2]"), encoding="utf-8")
    stages = _planned(tmp_path, monkeypatch)
    seconds = {name: float(took.get(kind(name), 5)) for name in stages}
    assert len(stages) > 80
    for cores in (2, 4, 8, 16):
        best = max(*paths(stages, seconds).values(), sum(seconds.values()) / cores)
        assert makespan(stages, seconds, cores) < 1.15 * best, f"{cores} cores"


def _planned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    with monkeypatch.context() as inside:
        inside.chdir(folder)
        return plan([])


def test_a_study_runs_its_rows_and_leaves_params_yaml_as_it_was(tmp_path: Path) -> None:
    stub_pipeline.make(tmp_path, (*KEPT, "recipes", "train"))
    before = (tmp_path / "params.yaml").read_bytes()
    rows = [{"seeds": [4, 5], "baselines": ["pgd_at"]}, {"seeds": [4], "baselines": ["trades"]}, {"sede": 1}]
    files.write_json(tmp_path / "study.yaml", {"stages": ["train"], "rows": rows})
    done = python(tmp_path, "stages.study", "study.yaml")
    assert done.returncode == 2 and "{'sede': 1} does not fit params.yaml" in done.stderr
    baselines = {f"train-baseline@{name}" for name in ("pgd_at-4", "pgd_at-5", "trades-4")}
    assert {name for name in ran(tmp_path) if name.startswith("train")} == {
        "train@ebjdat-jempp-4",
        "train@ebjdat-jempp-5",
        *baselines,
    }, "nothing of other models"
    assert (tmp_path / "params.yaml").read_bytes() == before
    files.write_json(tmp_path / "study.yaml", {"stages": ["train"], "rows": rows[:2]})
    again = python(tmp_path, "stages.study", "study.yaml")
    assert again.returncode == 0 and again.stdout.count("nothing is stale") == 2 and ran(tmp_path) == []


def test_a_study_runs_only_models_whose_records_are_missing_or_of_another_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tiny.write_params(tmp_path, baselines=["pgd_at"], sources=["undefended"])
    monkeypatch.chdir(tmp_path)
    setup = resolve(params, params.runs()[0])
    path, ours = setup.run.record("clean"), f"{setup.run.model}-{setup.run.seed}"
    assert study.missing(["clean"]) == [f"clean@{ours}", "clean@pgd_at-0", "clean@undefended-0"]
    for run in params.runs():
        write_records(resolve(params, run), 0.5, ["clean"])
    assert study.missing(["clean"]) == [] and study.missing(["clean", "generate"]) == [f"generate@{ours}"]
    assert study.missing(["autoattack"]) == [f"autoattack@{ours}", "autoattack@pgd_at-0"]
    assert study.missing(["train"]) == [f"train@{ours}", "train@pgd_at-0", "train@undefended-0"]
    written = files.read_json(path)
    for changed in (
        {"revisions": written["revisions"] | {"clean": 0}},
        {"revisions": written["revisions"] | {"released": 0}},
        {"params": written["params"] | {"network": {"depth": 16, "width": 1}}},
    ):
        files.write_json(path, written | changed)
        assert study.missing(["clean"]) == [f"clean@{ours}"]


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_row_of_a_study_is_a_valid_choice_of_parameters(path: Path) -> None:
    from ebjdat.config import parse_params, read_profile

    raw = read_yaml(ROOT / "params.yaml")
    for stages, row in study.read_study(path):
        assert set(row) <= set(raw) and stages
        assert parse_params(raw | row, lambda name: read_profile(ROOT, name)).runs()
