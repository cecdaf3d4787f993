"""Which parameters belong to which run, and to which of its records; where its files lie."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ebjdat import command, files
from ebjdat.config import Params, check_model, load_params, parse_params, read_yaml, resolve
from ebjdat.errors import UserError
from ebjdat.protocols import REVISIONS
from ebjdat.record import STAGES
from ebjdat.run import BASELINES, Run, reference_dir
from stages.arguments import parser_of, setup_of
from tests import ROOT
from tests.small_runs import run_stage

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


def test_the_name_of_a_model_is_its_method_and_variant() -> None:
    run = Run("digits", "base-sadajem", 3)
    assert (run.method, run.variant, run.is_external) == ("base", "sadajem", False)
    assert (Run("digits", "pgd_at", 0).method, Run("digits", "pgd_at", 0).variant) == ("pgd_at", None)
    assert Run("digits", "external-my-net", 0).is_external


def test_the_files_of_a_run_lie_where_dvc_expects_them() -> None:
    pipeline = read_yaml(ROOT / "dvc.yaml")["stages"]
    run = Run("${profile}", "${item.model}", "${item.seed}")  # type: ignore[arg-type]
    outs = {name: [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]]
            for name, stage in pipeline.items()}  # fmt: skip
    assert outs["train"] == [run.model_dir.as_posix()] and outs["craft"] == [run.crafted().as_posix()]
    assert outs["prepare"] == [run.data_dir.as_posix()]
    assert outs["reference"][0] == reference_dir("${profile}").as_posix()
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
    ("model", "file", "key", "value", "expected"),
    [
        ("ebjdat-jempp", "params.yaml", "variants.jempp.steps", 7, ALL),
        ("ebjdat-jempp", "params.yaml", "variants.jem.steps", 7, set()),
        ("ebjdat-jempp", "params.yaml", "variants.jempp.base_steps", 7, set()),
        ("ebjdat-jempp", "params.yaml", "variants.jempp.gap", "mean", set()),
        ("ebjdat-jempp", "params.yaml", "variants.jempp.base_px_noise", 0.5, set()),
        ("ebjdat-jempp", "params.yaml", "variants.jempp.label", "other", set()),
        ("ebjdat-jempp", "params.yaml", "surrogates", ["pgd_at"], {"transfer", "masking"}),
        ("ebjdat-jempp", "params.yaml", "seeds", [0, 1], set()),
        ("ebjdat-jempp", "params.yaml", "device", "cpu", set()),
        ("ebjdat-jempp", "params.yaml", "devices", 2, set()),
        ("ebjdat-jempp", "params.yaml", "deterministic", True, set()),
        ("ebjdat-jempp", "digits", "network.width", 2, ALL),
        ("ebjdat-jempp", "digits", "data.split_seed", 5, ALL),
        ("ebjdat-jempp", "digits", "data.folder", "/elsewhere", set()),
        ("ebjdat-jempp", "digits", "data.stratified", False, ALL),
        ("ebjdat-jempp", "digits", "training.defaults.bn_parts", 2, ALL),
        ("ebjdat-jempp", "digits", "training.defaults.norm", "none", {"transfer", "masking"}),  # its surrogates
        ("ebjdat-jempp", "digits", "training.ebjdat-jempp.epochs", 3, ALL),
        ("ebjdat-jempp", "digits", "training.base-jempp.epochs", 3, set()),
        ("ebjdat-jempp", "digits", "training.trades.epochs", 3, set()),
        ("ebjdat-jempp", "digits", "evaluation.radius", 0.1, EVALUATIONS - {"generate"}),
        ("ebjdat-jempp", "digits", "evaluation.batch_size", 10, EVALUATIONS - {"generate"}),
        ("ebjdat-jempp", "digits", "evaluation.sweep.images", 10, {"sweep", "masking"}),
        ("ebjdat-jempp", "digits", "evaluation.generation.samples", 10, {"generate"}),
        ("ebjdat-jempp", "digits", "evaluation.generation.chain_steps", 10, {"clean", "generate", "masking"}),
        ("base-jempp", "params.yaml", "variants.jempp.attack_steps", 3, set()),
        ("base-jempp", "params.yaml", "variants.jempp.base_steps", 3, ALL),
        *((name, "params.yaml", "variants.jempp.steps", 7, set()) for name in BASELINES),
        *((name, "digits", "training.ebjdat-jempp.epochs", 7, set()) for name in BASELINES),
        *((name, "digits", "evaluation.generation.chain_steps", 7, {"generate"}) for name in BASELINES),
        *((name, "digits", f"training.{name}.epochs", 7, ALL) for name in BASELINES),
        ("external-cnn", "digits", "training.defaults.epochs", 2, {"transfer", "masking"}),
        ("external-cnn", "digits", "network.width", 2, {"transfer", "masking"}),
        ("external-cnn", "digits", "evaluation.radius", 0.1, EVALUATIONS - {"generate"}),
    ],
)
def test_a_parameter_makes_stale_exactly_what_it_can_change(
    model: str, file: str, key: str, value: Any, expected: set[str]
) -> None:
    """Stages whose recorded parameters the change moves."""
    run = Run("digits", model, 0)
    before, after = resolve(params_with(), run), resolve(params_with(file, key, value), run)
    assert {stage for stage in REVISIONS if before.recorded(stage) != after.recorded(stage)} == expected


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


# Faults: one line with the full key, before any heavy work


FILES = {"params.yaml": "", "digits": "params/digits.yaml: "}


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("params.yaml", "variant", "jempp2", "variant: unknown variant 'jempp2' (did you mean jempp?); known: jem, "),
        ("params.yaml", "profile", None, "profile: expected the name of a profile, got null"),
        ("params.yaml", "method", "none", "method: unknown value 'none'; known: ebjdat, base, control"),
        ("params.yaml", "seeds", ["x"], "seeds[0]: expected a number or a fraction"),
        ("params.yaml", "seeds", [0, 1.5], "seeds[1]: expected a whole number, got 1.5"),
        ("params.yaml", "seeds", [-1], "seeds[0]: expected greater than or equal to 0, got -1"),
        ("params.yaml", "seeds", [None], "seeds[0]: expected a whole number, got null"),
        ("params.yaml", "seeds", [True], "seeds[0]: expected a number, got True"),
        ("params.yaml", "seeds", 3, "seeds: expected a list, got 3"),
        ("params.yaml", "seeds", [1, 1], "seeds: one of 1, 1 is named twice"),
        ("params.yaml", "baselines", ["pgd"], "baselines: unknown baseline 'pgd' (did you mean pgd_at?); known: "),
        ("params.yaml", "surrogates", ["trade"], "surrogates: unknown model 'trade' (did you mean trades?); known: "),
        ("params.yaml", "device", "gpu", "device: unknown value 'gpu'"),
        ("params.yaml", "variants.jem.steps", 0, "variants.jem.steps: expected greater than or equal to 1, got 0"),
        ("params.yaml", "variants.jem.reading", "pgd", "variants.jem.reading: unknown value 'pgd'; known: energy, "),
        ("params.yaml", "variants.jem.project", "yes please", "variants.jem.project: expected true or false"),
        ("params.yaml", "variants.jem", None, "variants.jem: expected a section with keys, got null"),
        ("params.yaml", "variants.new", {"like": "jemp"}, "variants.new.like: expected one of jem, jempp, sadajem, "),
        ("digits", "data.dataset", "cifar100", "data.dataset: unknown value 'cifar100' (did you mean cifar10?)"),
        ("digits", "network.depth", 11, "network.depth: expected 6 n + 4"),
        ("digits", "training.defaults.lr", "nan", "training.defaults.lr: expected a finite number"),
        ("digits", "training.defaults.milestones", 3, "training.defaults.milestones: expected a list, got 3"),
        ("digits", "training.defaults.milestones", [4, -1], "training.defaults.milestones[1]: expected "),
        ("digits", "training.dhat.debiasing.mask", "helpers", "training.dhat.debiasing.mask: unknown value 'helpers'"),
        ("digits", "training.jempp.epochs", 0, "training.jempp.epochs: expected greater than or equal to 1, got 0"),
        ("digits", "evaluation.clean.images", 398, "evaluation.clean.images: 398 images asked for, but data.test has"),
        ("params.yaml", "sedes", 1, "sedes: unknown key (did you mean seeds?)"),
        ("params.yaml", "variants.jem.w_enregy", 1, "variants.jem.w_enregy: unknown key (did you mean w_energy?)"),
        ("digits", "evaluation.radus", 1, "evaluation.radus: unknown key (did you mean radius?)"),
        ("digits", "training.jemp.lr", 1, "training.jemp: unknown key (did you mean jempp?)"),
        (
            "digits",
            "training.jempp.weight_deca",
            1,
            "training.jempp.weight_deca: unknown key (did you mean weight_decay?)",
        ),
        (
            "digits",
            "training.dhat.debiasing.omga",
            1,
            "training.dhat.debiasing.omga: unknown key (did you mean omega?)",
        ),
    ],
)
def test_a_wrong_value_or_key_is_told_with_full_key_range_or_names(
    file: str, key: str, value: Any, message: str
) -> None:
    with pytest.raises(UserError) as error:
        params_with(file, key, value)
    assert str(error.value).startswith(FILES[file] + message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [8, "8", 2.0])
@pytest.mark.parametrize("key", ["evaluation.radius", "training.defaults.train_eps"])
def test_a_radius_of_8_is_refused_with_the_hint_to_write_8_255(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"{key}: .*a radius is in pixel units of \[0, 1\]: write 8/255, not 8"):
        params_with("digits", key, value)


def write(folder: Path, **texts: str) -> None:
    """The repository's parameters in a folder, with text added at the end of files."""
    (folder / "params").mkdir()
    for path in (ROOT / "params.yaml", *(ROOT / "params").glob("*.yaml")):
        text = path.read_text(encoding="utf-8") + texts.get(path.stem, "")
        (folder / path.relative_to(ROOT)).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1e3", 1000.0), ("010", 10.0), ("1_000", 1000.0), ("1/4", 0.25), ("1", 1.0)],
)
def test_numbers_are_read_as_people_and_dvc_write_them(text: str, value: float) -> None:
    raw = YAML(typ="safe", pure=True).load(f"value: {text}")["value"]
    params = params_with("params.yaml", "variants.jem.step_size", raw)
    assert params.variants["jem"].step_size == value
    if value >= 1:
        whole = params_with("digits", "training.defaults.epochs", raw)
        assert whole.training("pgd_at").epochs == value, "a float that is integral is a whole number"


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, params="seeds: [1]\n")
    with pytest.raises(UserError, match=r'params\.yaml is not valid YAML: .*duplicate key "seeds".* line \d+'):
        load_params(tmp_path)


def test_another_profiles_broken_file_is_told_only_when_it_is_selected(tmp_path: Path) -> None:
    write(tmp_path, **{"cifar10-cpu": "oops: 1\n"})
    assert load_params(tmp_path).profile == "digits"
    with pytest.raises(UserError, match=r"params/cifar10-cpu\.yaml: oops: unknown key"):
        load_params(tmp_path, "cifar10-cpu")
    with pytest.raises(UserError, match=r"profile: unknown profile 'digit' \(did you mean digits\?\); known: "):
        load_params(tmp_path, "digit")


@pytest.mark.parametrize("name", ["../x", "digits/../../x", "/tmp/x"])
def test_a_profile_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="profile: unknown profile"):
        load_params(ROOT, name)


COMMANDS = ("prepare", "reference", "train", "clean", "autoattack", "craft", "transfer", "sweep", "eot", "generate",
          "masking", "log", "tables", "repro")  # fmt: skip


@pytest.mark.parametrize("stage", COMMANDS)
def test_every_stage_refuses_a_bad_parameter_before_it_looks_for_anything_else(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # without data and models: whoever opened one first would say so
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    write(tmp_path, digits="oops: 1\n")
    with pytest.raises(SystemExit) as ended:
        command.run(lambda: run_stage(stage))
    assert ended.value.code == UserError.exit_code == 2
    assert capsys.readouterr().err.startswith("error: params/digits.yaml: oops: unknown key; known: data, network")
    assert {path.name for path in tmp_path.iterdir()} == {"params.yaml", "params"}
