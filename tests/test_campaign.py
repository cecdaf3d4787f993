"""Studies: rows over params.yaml, workspaces of their own, continued where they stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ebjdat.campaign import Campaign, pending, prepare_workspace, read_study
from ebjdat.errors import UserError
from ebjdat.provenance import ROOT

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
    (tmp_path / "data" / "digits" / "manifest.json").write_text('{"digest": "d"}')
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


def test_a_row_that_needs_surrogates_trains_them_first_and_its_own_model_once(study: Path, tmp_path: Path) -> None:
    study.write_text("stages: [transfer]\nrows: [{method: ebjdat, variant: jempp}, {model: pgd_at}]")
    ours, baseline = read_study(study)
    shared = [["stages.baseline", "--model", "undefended"]]
    shared += [["stages.surrogate", "--variant", variant] for variant in ("jempp", "sadajem")]
    first = [["stages.baseline", "--model", "pgd_at"], *shared]
    assert pending(ours, prepare_workspace(ours, tmp_path / "runs")) == [*first, ["stages.train"], ["stages.transfer"]]
    own = [["stages.baseline", "--model", "pgd_at"], ["stages.transfer", "--model", "pgd_at"]]
    assert pending(baseline, prepare_workspace(baseline, tmp_path / "runs")) == [*shared, *own]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [clean]\nrows: [{sed: 1}]", "row 1: sed is no key of params.yaml"),
        ("stages: [clean]\nrows: [{seed: x}]", "row 1: seed: expected a number"),
        ("stages: [cleam]\nrows: []", "unknown stage 'cleam'"),
        ("stages: [clean]\nrows: [{model: madry}]", "unknown baseline 'madry'"),
        ("rows: []", "expected the keys `stages` and `rows`"),
        ("stages: [clean]\nrows: [3]", "expected a mapping"),
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
    assert pending(row, tmp_path / "runs" / row.name) == []


def test_no_command_starts_after_the_time_is_up(study: Path, tmp_path: Path) -> None:
    row = read_study(study)[2]
    assert Campaign(tmp_path / "runs", minutes=0).run([row]) == {row.name: "stopped"}
