"""Studies: rows over params.yaml, workspaces of their own, continued where they stopped."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from ebjdat import files, provenance
from ebjdat.campaign import run, workspace
from ebjdat.campaign.run import Campaign, check_done, visible_gpus
from ebjdat.campaign.study import read_study
from ebjdat.campaign.workspace import pending, prepare_workspace, take_in
from ebjdat.config import load_params
from ebjdat.errors import Unfinished, UserError
from ebjdat.provenance import ROOT
from ebjdat.subject import data_digest

STUDY = """
stages: [clean, generate]
rows:
  - {seed: 1, model: pgd_at}
  - {seed: 1, method: base, variant: sadajem}
  - {seed: 2, variants.jempp.w_energy: 0.5}
"""
STAGE = """
import json, pathlib, sys, yaml
name = {name!r}
wanted = json.loads(pathlib.Path({wanted!r}).read_text())
folder = pathlib.Path(wanted[name][0])
folder.parent.mkdir(parents=True, exist_ok=True)
folder.write_text(json.dumps({{"identity": wanted[name][1], "seed": yaml.safe_load(open("params.yaml"))["seed"]}}))
with open({ran!r}, "a") as log:
    log.write(name + "\\n")
sys.exit(int(pathlib.Path({code!r}).read_text()) if name == "generate" else 0)
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / "data" / "digits").mkdir(parents=True)
    data = load_params().profiles["digits"].data
    counts = {"train": data.train, "val": data.validation, "test": data.test}
    files.write_json(
        Path("data/digits/manifest.json"), {"digest": "d", "split_seed": data.split_seed, "counts": counts}
    )
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def test_rows_are_parameters_over_params_yaml(study: Path) -> None:
    baseline, base, weighted = read_study(study)
    assert baseline.commands == [["stages.baseline", "--model", "pgd_at"], ["stages.clean", "--model", "pgd_at"]]
    assert base.commands == [["stages.train"], ["stages.clean"], ["stages.generate"]]
    assert base.subject.run_name == "base-sadajem-1"
    assert weighted.params.variants["jempp"].w_energy == 0.5
    assert baseline.group == base.group != weighted.group


def test_a_row_that_needs_surrogates_trains_them_and_its_own_model_once(study: Path, tmp_path: Path) -> None:
    study.write_text("stages: [transfer]\nrows: [{method: ebjdat, variant: jempp}, {model: pgd_at}]")
    ours, baseline = read_study(study)
    shared = [["stages.baseline", "--model", "undefended"]]
    shared += [["stages.surrogate", "--variant", variant] for variant in ("jempp", "sadajem")]
    others = [["stages.baseline", "--model", "pgd_at"], *shared]
    assert pending(ours, prepare_workspace(ours, tmp_path / "runs")) == [["stages.train"], *others, ["stages.transfer"]]
    own, last = ["stages.baseline", "--model", "pgd_at"], ["stages.transfer", "--model", "pgd_at"]
    assert pending(baseline, prepare_workspace(baseline, tmp_path / "runs")) == [own, *shared, last]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [clean]\nrows: [{sed: 1}]", "row 1: sed is no key of params.yaml"),
        ("stages: [clean]\nrows: [{seed: x}]", "row 1: seed: expected a number"),
        ("stages: [cleam]\nrows: []", "unknown stage 'cleam'"),
        ("stages: [clean]\nrows: [{model: madry}]", "unknown baseline 'madry'"),
        ("rows: []", "expected the keys `stages` and `rows`"),
        ("stages: [clean]\nrows: [3]", "expected a mapping"),
        ("stages: [clean]\nrows: [{1: 2}]", "expected a mapping of parameter keys"),
        ("stages:\nrows: []", "stages: expected a list"),
        ("stages: [clean]\nrows: [{profiles.digits.data.split_seed: 7}]", "all rows of a profile share data/digits"),
        (
            "stages: [clean]\nrows: [{profiles.digits.data: {dataset: digits, folder: null, split_seed: 7, train: 999, "
            "validation: 200, test: 397}}]",
            "all rows of a profile share data/digits",
        ),
    ],
)
def test_a_malformed_study_is_refused_before_anything_runs(study: Path, text: str, message: str) -> None:
    study.write_text(text)
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        read_study(study)


def test_models_are_shared_between_rows_of_one_group_only(study: Path, tmp_path: Path) -> None:
    folders = [prepare_workspace(row, tmp_path / "runs") for row in read_study(study)]
    models = [(folder / "models").resolve() for folder in folders]
    assert models[0] == models[1] != models[2]
    assert (folders[0] / "stages").resolve() == (tmp_path / "stages").resolve()


def test_a_campaign_runs_what_is_left_and_continues_after_a_failure(study: Path, tmp_path: Path) -> None:
    row = read_study(study)[1]
    stages = tmp_path / "stages"
    stages.mkdir()
    paths = {"train": row.subject.model_dir / "summary.json"}
    paths |= {stage: row.subject.results_dir / f"{stage}.json" for stage in ("clean", "generate")}
    wanted = {name: (str(path), row.subject.identity(row.params, name, "d")) for name, path in paths.items()}
    (tmp_path / "wanted.json").write_text(json.dumps(wanted))
    reference = tmp_path / "models" / "digits" / "reference"
    reference.mkdir(parents=True)
    (reference / "manifest.json").write_text('{"data": "d", "features": {"kind": "classifier"}}')
    code, ran = tmp_path / "code", tmp_path / "ran"
    for name in paths:
        text = STAGE.format(name=name, wanted=str(tmp_path / "wanted.json"), ran=str(ran), code=str(code))
        (stages / f"{name}.py").write_text(text)
    code.write_text("1")
    wanted["generate"] = (wanted["generate"][0], "not this one")
    (tmp_path / "wanted.json").write_text(json.dumps(wanted))
    campaign = Campaign(tmp_path / "runs")
    assert campaign.run([row])[row.name].startswith("failed: stages.generate (exit code 1")
    code.write_text("0")
    wanted["generate"] = (wanted["generate"][0], row.subject.identity(row.params, "generate", "d"))
    (tmp_path / "wanted.json").write_text(json.dumps(wanted))
    assert campaign.run([row]) == {row.name: "done"}
    assert ran.read_text().split() == ["train", "clean", "generate", "generate"]
    assert Campaign(tmp_path / "runs", minutes=0).run([row]) == {row.name: "done"}
    assert pending(row, tmp_path / "runs" / row.name) == []


def test_a_row_is_trained_before_what_only_its_transfer_needs(study: Path, tmp_path: Path) -> None:
    study.write_text("stages: [clean, generate, transfer]\nrows: [{variant: jempp}]")
    (row,) = read_study(study, stages=["clean", "generate", "transfer"])
    ran = [command[0].removeprefix("stages.") for command in pending(row, prepare_workspace(row, tmp_path / "runs"))]
    assert ran[:4] == ["train", "clean", "reference", "generate"]
    assert ran[-1] == "transfer" and set(ran[4:-1]) <= {"baseline", "surrogate"}


def test_the_command_chooses_profile_and_stages_and_a_key_may_follow_the_profile(study: Path) -> None:
    study.write_text('stages: [clean]\nrows: [{"profiles.${profile}.training.pgd_at.train_eps": 4/255, model: pgd_at}]')
    (row,) = read_study(study, profile="cifar10-smoke", stages=[])
    assert row.params.profile == "cifar10-smoke" and row.params.current.training.pgd_at.train_eps == 4 / 255
    assert row.commands == [["stages.baseline", "--model", "pgd_at"]]


def test_a_copied_campaign_points_at_the_checkout_that_it_was_copied_to(study: Path, tmp_path: Path) -> None:
    row = read_study(study)[0]
    prepare_workspace(row, tmp_path / "here" / ".campaign")
    links = {
        path.name: path.readlink()
        for path in (tmp_path / "here" / ".campaign" / row.name).iterdir()
        if path.is_symlink()
    }
    assert links and not any(link.is_absolute() for link in links.values())


def test_a_stopped_command_counts_as_stopped_and_its_time_is_noted(study: Path, tmp_path: Path) -> None:
    row = read_study(study)[0]
    (tmp_path / "stages").mkdir()
    waiting = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(143))\nprint('on', flush=True)\ntime.sleep(60)"
    )
    (tmp_path / "stages" / "baseline.py").write_text(waiting)
    campaign, log = Campaign(tmp_path / "runs"), tmp_path / "runs" / row.name / "log.txt"

    def stop_once_it_runs() -> None:
        while not (log.is_file() and "on" in log.read_text()):
            time.sleep(0.05)
        campaign.stop()

    stopping = threading.Thread(target=stop_once_it_runs)
    stopping.start()
    assert campaign.run([row]) == {row.name: "stopped"}
    stopping.join()
    noted = json.loads((tmp_path / "runs" / "times.jsonl").read_text())
    assert noted["command"] == ["stages.baseline", "--model", "pgd_at"] and noted["code"] in (143, -15)


def test_only_rows_over_plain_parameters_are_taken_in(study: Path, tmp_path: Path) -> None:
    rows = read_study(study, stages=["clean"])
    study.write_text("stages: [clean]\nrows: [{model: pgd_at}]")
    plain = read_study(study)[0]
    for row in (plain, rows[2]):
        folder = prepare_workspace(row, tmp_path / "runs") / row.subject.results_dir
        folder.mkdir(parents=True)
        (folder / "clean.json").touch()
    files.write_text(Path("results/digits/pgd_at/report.html"), "page")
    files.write_text(Path("results/digits/pgd_at/old.json"), "{}")
    unfinished = [["stages.clean"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "pending", lambda row, folder: unfinished)
        assert take_in([plain, rows[2]], tmp_path / "runs") == []
        unfinished.clear()
        assert take_in([plain, rows[2]], tmp_path / "runs") == ["results/digits/pgd_at"]
    assert {path.name for path in Path("results/digits/pgd_at").iterdir()} == {"clean.json", "report.html"}
    assert not Path("results/digits/ebjdat-jempp").exists()


def test_an_evaluation_of_other_weights_is_run_again(study: Path, tmp_path: Path) -> None:
    row = read_study(study, stages=["clean"])[2]
    folder = prepare_workspace(row, tmp_path / "runs")
    data = data_digest(row.subject.profile)
    weights = folder / row.subject.model_dir / "best.pt"
    files.write_text(weights, "weights")
    summary = {"identity": row.subject.identity(row.params, "train", data)}
    files.write_json(folder / row.subject.model_dir / "summary.json", summary)
    record = {"identity": row.subject.identity(row.params, "clean", data), "model": provenance.file_hash(weights)}
    files.write_json(folder / row.subject.results_dir / "clean.json", record)
    assert pending(row, folder) == []
    files.write_text(weights, "other weights")
    assert pending(row, folder) == [["stages.clean", *row.arguments]]


def test_no_command_starts_after_the_time_is_up(study: Path, tmp_path: Path) -> None:
    row = read_study(study)[2]
    assert Campaign(tmp_path / "runs", minutes=0).run([row]) == {row.name: "stopped"}


def test_jobs_at_a_time_have_a_gpu_each(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    (tmp_path / "stages").mkdir()
    seen = "import os, time\nprint('gpu', os.environ['CUDA_VISIBLE_DEVICES'])\ntime.sleep(0.5)\nraise SystemExit(1)"
    for stage in ("baseline", "train"):
        (tmp_path / "stages" / f"{stage}.py").write_text(seen)
    study.write_text("stages: [clean]\nrows: [{seed: 1}, {seed: 2}]")
    rows = read_study(study)
    Campaign(tmp_path / "runs", jobs=2).run(rows)
    assert sorted((tmp_path / "runs" / row.name / "log.txt").read_text() for row in rows) == ["gpu 2\n", "gpu 5\n"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []


def test_a_study_that_is_no_text_and_no_job_at_all_are_refused(study: Path, tmp_path: Path) -> None:
    study.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as a study"):
        read_study(study)
    with pytest.raises(UserError, match="--jobs 0: expected at least 1"):
        Campaign(tmp_path / "runs", jobs=0)
    with pytest.raises(UserError, match="--minutes -5: expected 0 or more"):
        Campaign(tmp_path / "runs", minutes=-5)


def test_rows_that_were_stopped_are_unfinished_and_rows_that_failed_are_an_error() -> None:
    check_done({"a": "done"})
    with pytest.raises(Unfinished, match="1 of 2 rows are not done"):
        check_done({"a": "done", "b": "stopped"})
    with pytest.raises(UserError, match="1 of 2 rows failed") as failed:
        check_done({"a": "stopped", "b": "failed: stages.clean (exit code 1)"})
    assert (failed.value.exit_code, Unfinished.exit_code) == (2, 5)


def test_data_prepared_with_other_settings_are_refused_before_anything_runs(study: Path, tmp_path: Path) -> None:
    row = read_study(study)[0]
    path = Path("data/digits/manifest.json")
    files.write_json(path, files.read_json(path) | {"split_seed": 7})
    with pytest.raises(UserError, match="prepared with other settings"):
        Campaign(tmp_path / "runs").run([row])


def test_a_reference_of_other_features_is_made_again(study: Path, tmp_path: Path) -> None:
    row = read_study(study, stages=["generate"])[1]
    folder = prepare_workspace(row, tmp_path / "runs")
    manifest = folder / "models/digits/reference/manifest.json"
    for kind, made in (("classifier", False), ("inception", True)):
        files.write_json(manifest, {"data": "d", "features": {"kind": kind}})
        assert (["stages.reference"] in pending(row, folder)) == made


def test_damaged_files_of_a_row_fail_that_row_alone(study: Path, tmp_path: Path) -> None:
    bad, good = read_study(study, stages=[])[1:]
    summary = prepare_workspace(bad, tmp_path / "runs") / bad.subject.model_dir / "summary.json"
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "train.py").write_text("raise SystemExit(3)")
    for content in ("{}", '{"identi'):
        files.write_text(summary, content)
        states = Campaign(tmp_path / "runs").run([bad, good])
        assert states[bad.name].startswith(("failed: KeyError", "failed: UserError"))
        assert states[good.name].startswith("failed: stages.train (exit code 3"), "it was run"


def test_surrogates_of_older_recipes_are_not_taken_in(study: Path, tmp_path: Path) -> None:
    study.write_text("stages: []\nrows: [{model: trades}]")
    (row,) = read_study(study)
    folder = prepare_workspace(row, tmp_path / "runs")
    data = data_digest("digits")
    files.write_json(
        folder / row.subject.model_dir / "summary.json", {"identity": row.subject.identity(row.params, "train", data)}
    )
    surrogate = next(one for one in row.subject.surrogates(row.params) if one.name == "pgd_at")
    files.write_json(folder / surrogate.surrogate_dir / "summary.json", {"identity": "of an older recipe"})
    files.write_text(surrogate.surrogate_dir / "best.pt", "weights of today's recipe")
    assert take_in([row], tmp_path / "runs") == [str(row.subject.model_dir)]
    assert (surrogate.surrogate_dir / "best.pt").read_text() == "weights of today's recipe"
    today = {"identity": surrogate.identity(row.params, "train", data)}
    files.write_json(folder / surrogate.surrogate_dir / "summary.json", today)
    assert str(surrogate.surrogate_dir) in take_in([row], tmp_path / "runs")


def test_a_copy_that_fails_leaves_what_was_there(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study.write_text("stages: []\nrows: [{model: trades}]")
    (row,) = read_study(study)
    folder = prepare_workspace(row, tmp_path / "runs")
    identity = row.subject.identity(row.params, "train", data_digest("digits"))
    files.write_json(folder / row.subject.model_dir / "summary.json", {"identity": identity})
    files.write_text(row.subject.model_dir / "best.pt", "here already")

    def full(source: Path, target: Path) -> None:
        target.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workspace.shutil, "copytree", full)
    with pytest.raises(UserError, match=r"stays as it was.*No space left"):
        take_in([row], tmp_path / "runs")
    assert [path.name for path in row.subject.model_dir.parent.iterdir()] == ["trades"]
    assert (row.subject.model_dir / "best.pt").read_text() == "here already"


def test_a_replacement_killed_between_its_renames_is_made_good(study: Path, tmp_path: Path) -> None:
    study.write_text("stages: []\nrows: [{model: trades}]")
    (row,) = read_study(study)
    folder = prepare_workspace(row, tmp_path / "runs")
    identity = row.subject.identity(row.params, "train", data_digest("digits"))
    files.write_json(folder / row.subject.model_dir / "summary.json", {"identity": identity})
    files.write_text(row.subject.model_dir.with_name(".trades.old") / "report.html", "page")
    files.write_text(row.subject.model_dir.with_name(".trades.new") / "half", "")
    assert take_in([row], tmp_path / "runs") == [str(row.subject.model_dir)]
    assert {path.name for path in row.subject.model_dir.iterdir()} == {"report.html", "summary.json"}
    assert [path.name for path in row.subject.model_dir.parent.iterdir()] == ["trades"]


def test_a_command_that_outlives_its_grace_takes_its_children_along(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "GRACE", 0.2)
    row = read_study(study)[0]
    (tmp_path / "stages").mkdir()
    child = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    stage = f"import signal, subprocess, sys\nsignal.signal(15, signal.SIG_IGN)\ncode = {child!r}\n"
    stage += "started = subprocess.Popen([sys.executable, '-c', code])\nprint(started.pid, flush=True)\nstarted.wait()"
    (tmp_path / "stages" / "baseline.py").write_text(stage)
    running, log = Campaign(tmp_path / "runs"), tmp_path / "runs" / row.name / "log.txt"

    def stop_once_it_runs() -> None:
        while not (log.is_file() and "on" in log.read_text()):
            time.sleep(0.05)
        running.stop()

    stopping = threading.Thread(target=stop_once_it_runs)
    stopping.start()
    assert running.run([row]) == {row.name: "stopped"}
    stopping.join()
    status = Path(f"/proc/{log.read_text().split()[0]}/status")
    deadline = time.monotonic() + 10
    while status.is_file() and "(zombie)" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not status.is_file() or "(zombie)" in status.read_text()
