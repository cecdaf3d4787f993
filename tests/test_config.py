"""Which parameters belong to which run, and to which of its records; where its files lie."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ebjdat import files
from ebjdat.config import Params, check_model, load_params, parse_params, read_yaml, resolve
from ebjdat.errors import UserError
from ebjdat.protocols import REVISIONS
from ebjdat.record import STAGES
from ebjdat.run import BASELINES, Run, reference_dir
from stages.arguments import parser_of, setup_of
from tests import ROOT

RAW = {"params.yaml": read_yaml(ROOT / "params.yaml"), "digits": read_yaml(ROOT / "params/digits.yaml")}
ALL = set(REVISIONS)
EVALUATIONS = ALL - {"train"}


def params_with(file: str = "params.yaml", key: str = "", value: Any = None) -> Params:
    """The repository's parameters of digits, with one value of a file replaced or added."""
    raw = copy.deepcopy(RAW)
    if key:
        *path, last = key.split(".")
        node = raw[file]
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return parse_params(raw["params.yaml"], lambda name: raw["digits"])


def stale(file: str, key: str, value: Any, model: str) -> set[str]:
    """Stages whose recorded parameters a change moves."""
    run = Run("digits", model, 0)
    before, after = resolve(params_with(), run), resolve(params_with(file, key, value), run)
    return {stage for stage in REVISIONS if before.recorded(stage) != after.recorded(stage)}


def test_every_run_has_paths_of_its_own() -> None:
    run = Run("digits", "base-sadajem", 3)
    assert (run.method, run.variant, run.is_external) == ("base", "sadajem", False)
    assert run.model_dir == Path("models/digits/base-sadajem/3")
    assert run.record("eot") == Path("results/digits/records/base-sadajem/3/eot.json")
    assert run.arrays("clean") == Path("results/digits/arrays/base-sadajem/3/clean")
    assert run.crafted() == Path("results/digits/crafted/3/base-sadajem")
    assert (Run("digits", "pgd_at", 0).method, Run("digits", "pgd_at", 0).variant) == ("pgd_at", None)
    assert Run("digits", "external-my-net", 0).is_external
    assert reference_dir("digits") == Path("models/digits/reference")


def test_the_files_of_a_run_lie_where_dvc_expects_them() -> None:
    pipeline = read_yaml(ROOT / "dvc.yaml")["stages"]
    run = Run("${profile}", "${item.model}", "${item.seed}")  # type: ignore[arg-type]
    outs = {name: [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]]
            for name, stage in pipeline.items()}  # fmt: skip
    assert outs["train"] == [run.model_dir.as_posix()] and outs["craft"] == [run.crafted().as_posix()]
    assert outs["prepare"] == [run.data_dir.as_posix()]
    for stage in STAGES:
        arrays = [run.arrays(stage).as_posix()] if stage in ("clean", "autoattack", "generate") else []
        assert outs[stage] == [run.record(stage).as_posix(), *arrays]


def test_the_control_is_ebjdat_without_its_energy_term_on_the_same_schedule() -> None:
    params = params_with()
    recipe, full = params.recipe("control-jempp"), params.recipe("ebjdat-jempp")
    assert recipe is not None and full is not None
    assert (recipe.reading, recipe.w_energy) == ("none", 0.0)
    assert recipe.model_copy(update={"reading": full.reading, "w_energy": full.w_energy}) == full
    assert params.training("control-jempp") == params.training("ebjdat-jempp")


def test_the_base_method_has_its_own_chain_and_no_adversarial_terms() -> None:
    params = params_with()
    recipe = params.recipe("base-jem")
    assert recipe is not None and recipe.steps == params.variants["jem"].base_steps
    assert (recipe.w_energy, recipe.w_adversarial, recipe.w_px, recipe.w_clean) == (0.0, 0.0, 1.0, 1.0)
    sadajem = params.recipe("base-sadajem"), params.recipe("ebjdat-sadajem")
    assert [found.px_noise for found in sadajem if found is not None] == [0.0, 0.03]


def test_a_baseline_may_have_settings_of_its_own_under_a_name_of_its_own() -> None:
    params = params_with("digits", "training.pgd_at-long", {"epochs": 40, "norm": "none"})
    long, plain = params.training("pgd_at-long"), params.training("pgd_at")
    assert (long.epochs, long.norm, long.lr) == (40, "none", plain.lr)
    assert (plain.epochs, plain.norm) == (10, "batch")
    run = Run("digits", "pgd_at-long", 0)
    assert (run.method, run.variant) == ("pgd_at", None)
    check_model(params, "pgd_at-long")
    with pytest.raises(UserError, match=r"unknown model 'pgd_at-short' \(did you mean pgd_at-long"):
        check_model(params, "pgd_at-short")


def test_a_variant_like_another_takes_over_its_recipe_and_how_it_trains() -> None:
    params = params_with("digits", "training.ebjdat-jempp.epochs", 3)
    one, other = params.variants["jempp"], params.variants["jempp_energy"]
    assert one.model_copy(update=other.model_dump(include={"label", "like", "reading", "w_energy"})) == other
    assert params.training("ebjdat-jempp_energy").epochs == 3 != params.training("ebjdat-sadajem").epochs
    own = params_with("digits", "training.jempp_energy.lr", 0.25)
    assert own.training("ebjdat-jempp_energy").lr == 0.25 != own.training("ebjdat-jempp").lr


def test_the_study_on_digits_trains_as_digits_do() -> None:
    digits, study = (load_params(ROOT, profile) for profile in ("digits", "digits-study"))
    assert (study.current.data, study.current.network) == (digits.current.data, digits.current.network)
    for model in ("ebjdat-jempp", "ebjdat-jem", "pgd_at", "trades", "dhat"):
        assert study.training(model) == digits.training(model)


@pytest.mark.parametrize(
    ("file", "key", "value", "expected"),
    [
        ("params.yaml", "variants.jempp.steps", 7, ALL),
        ("params.yaml", "variants.jem.steps", 7, set()),
        ("params.yaml", "variants.jempp.base_steps", 7, set()),
        ("params.yaml", "variants.jempp.gap", "mean", set()),
        ("params.yaml", "variants.jempp.base_px_noise", 0.5, set()),
        ("params.yaml", "variants.jempp.label", "other", set()),
        ("params.yaml", "surrogates", ["pgd_at"], {"transfer", "masking"}),
        ("params.yaml", "seeds", [0, 1], set()),
        ("params.yaml", "device", "cpu", set()),
        ("params.yaml", "devices", 2, set()),
        ("params.yaml", "deterministic", True, set()),
        ("digits", "network.width", 2, ALL),
        ("digits", "data.split_seed", 5, ALL),
        ("digits", "data.folder", "/elsewhere", set()),
        ("digits", "data.stratified", False, ALL),
        ("digits", "training.defaults.bn_parts", 2, ALL),
        ("digits", "training.defaults.norm", "none", {"transfer", "masking"}),  # its surrogates
        ("digits", "training.ebjdat-jempp.epochs", 3, ALL),
        ("digits", "training.base-jempp.epochs", 3, set()),
        ("digits", "training.trades.epochs", 3, set()),
        ("digits", "evaluation.radius", 0.1, EVALUATIONS - {"generate"}),
        ("digits", "evaluation.batch_size", 10, EVALUATIONS - {"generate"}),
        ("digits", "evaluation.sweep.images", 10, {"sweep", "masking"}),
        ("digits", "evaluation.generation.samples", 10, {"generate"}),
        ("digits", "evaluation.generation.chain_steps", 10, {"clean", "generate", "masking"}),
    ],
)
def test_a_parameter_makes_stale_exactly_what_it_can_change(
    file: str, key: str, value: Any, expected: set[str]
) -> None:
    assert stale(file, key, value, "ebjdat-jempp") == expected


def test_the_plain_variant_does_not_depend_on_the_adversarial_recipe() -> None:
    assert stale("params.yaml", "variants.jempp.attack_steps", 3, "base-jempp") == set()
    assert stale("params.yaml", "variants.jempp.base_steps", 3, "base-jempp") == ALL


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_depends_on_no_variant(name: str) -> None:
    assert stale("params.yaml", "variants.jempp.steps", 7, name) == set()
    assert stale("digits", "training.ebjdat-jempp.epochs", 7, name) == set()
    assert stale("digits", "evaluation.generation.chain_steps", 7, name) == {"generate"}
    assert stale("digits", f"training.{name}.epochs", 7, name) == ALL


def test_an_external_model_is_known_by_no_recipe_and_no_training() -> None:
    for key in ("training.defaults.epochs", "network.width"):
        assert stale("digits", key, 2, "external-cnn") == {"transfer", "masking"}, "its surrogates"
    assert stale("digits", "evaluation.radius", 0.1, "external-cnn") >= {"clean", "autoattack"}


def test_recorded_parameters_are_plain_json_and_unknown_stages_are_refused(tmp_path: Path) -> None:
    setup = resolve(params_with(), Run("digits", "ebjdat-jempp", 0))
    files.write_json(tmp_path / "recorded.json", setup.recorded("masking"))
    assert files.read_json(tmp_path / "recorded.json") == setup.recorded("masking")
    with pytest.raises(UserError, match="unknown stage 'cleen'"):
        setup.recorded("cleen")


def test_a_stage_asks_for_the_current_model_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def run(*words: str) -> Run:
        return setup_of(parser_of(None).parse_args(words))[1].run

    assert run() == params_with().runs()[0]
    assert run("--model", "trades", "--seed", "4") == Run("digits", "trades", 4)
    with pytest.raises(UserError, match=r"unknown model 'pgd' \(did you mean pgd_at\?\); known: ebjdat-jem, "):
        run("--model", "pgd")


def test_parameters_need_no_torch_no_mlflow_and_no_pandas() -> None:
    modules = "ebjdat.record, ebjdat.tracking, stages.repro, stages.study"
    check = f"import sys, {modules}; print({{'torch', 'mlflow', 'pandas', 'dvc'}} & {{*sys.modules}})"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT)
    assert (run.stdout, run.stderr) == ("set()\n", "")
