"""Which parameters belong to which record."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ebjdat import files
from ebjdat.config import BASELINES, Params
from ebjdat.errors import UserError
from ebjdat.provenance import ROOT
from ebjdat.subject import EVALUATIONS, SURROGATES, HashOf, Subject, data_digest
from stages.arguments import from_arguments
from tests.synthetic import code, params_of_repository


def changed(value: Any, path: str, new: object) -> Any:
    """A nested dataclass or dict with one value replaced."""
    name, _, rest = path.partition(".")
    inner = value[name] if isinstance(value, dict) else getattr(value, name)
    inner = changed(inner, rest, new) if rest else new
    return {**value, name: inner} if isinstance(value, dict) else dataclasses.replace(value, **{name: inner})


def edited(module: str) -> HashOf:
    """Code hashes after an edit of one module."""
    return lambda name: code(name) + "x" * (name == module)


def identities(params: Params, subject: Subject) -> dict[str, str]:
    return {stage: subject.identity(params, stage, "data", code) for stage in ("train", *EVALUATIONS)}


def stale(path: str, new: object, subject: Subject | None = None, **choice: object) -> set[str]:
    """Stages whose identity a change of one parameter moves."""
    params = params_of_repository(**choice)
    subject = subject or Subject.current(params)
    before, after = identities(params, subject), identities(changed(params, path, new), subject)
    return {stage for stage in before if before[stage] != after[stage]}


ALL = {"train", *EVALUATIONS}


def test_models_have_names_and_folders() -> None:
    params = params_of_repository(variant="sadajem", method="base", seed=3)
    subject = Subject.current(params)
    assert (subject.name, subject.run_name, subject.training_module) == (
        "base-sadajem",
        "base-sadajem-3",
        "stages.train",
    )
    assert subject.model_dir == Path("models/digits/base-sadajem")
    baseline = Subject.baseline(params, "pgd_at")
    assert (baseline.name, baseline.run_name, baseline.training_module) == ("pgd_at", "pgd_at-3", "stages.baseline")
    with pytest.raises(UserError, match="pgd_at, trades, undefended"):
        Subject.baseline(params, "pgd")


def test_the_control_is_ebjdat_without_its_energy_term_on_the_same_schedule() -> None:
    params = params_of_repository(method="control")
    subject, ours = Subject.current(params), Subject(params.profile, "ebjdat", params.variant, 0)
    recipe, full = subject.recipe(params), ours.recipe(params)
    assert recipe is not None and full is not None
    assert (recipe.reading, recipe.w_energy) == ("none", 0.0)
    assert dataclasses.replace(recipe, reading=full.reading, w_energy=full.w_energy) == full
    assert subject.schedule(params) is ours.schedule(params)


def test_the_base_method_has_its_own_chain_and_no_adversarial_terms() -> None:
    params = params_of_repository(method="base", variant="jem")
    recipe = Subject.current(params).recipe(params)
    assert recipe is not None
    assert recipe.steps == params.variants["jem"].base_steps
    assert (recipe.w_energy, recipe.w_adversarial, recipe.w_px, recipe.w_clean) == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("path", "new", "expected"),
    [
        ("variants.jempp.steps", 7, ALL),
        ("variants.jem.steps", 7, set()),
        ("variants.sadajem.steps", 7, {"transfer", "masking"}),  # a surrogate
        ("variants.jempp.base_steps", 7, set()),
        ("variants.jempp.gap", "mean", set()),
        ("profiles.digits.network.width", 2, ALL),
        ("profiles.digits.data.split_seed", 5, ALL),
        ("profiles.digits.data.folder", "/elsewhere", set()),
        ("profiles.digits.training.ebjdat.jempp.epochs", 3, ALL),
        ("profiles.digits.training.base.jempp.epochs", 3, set()),
        ("profiles.digits.training.pgd_at.epochs", 3, {"transfer", "masking"}),
        ("profiles.digits.training.trades.epochs", 3, set()),
        ("profiles.digits.evaluation.radius", 0.1, ALL - {"train", "generate"}),
        ("profiles.digits.evaluation.sweep.images", 10, {"sweep", "masking"}),
        ("profiles.digits.evaluation.transfer.surrogates", ("jempp",), {"transfer", "masking"}),
        ("profiles.digits.evaluation.generation.samples", 10, {"generate"}),
        ("profiles.digits.evaluation.generation.chain_steps", 10, {"clean", "generate", "masking"}),
        ("profiles.digits.evaluation.batch_size", 10, ALL - {"train", "generate"}),
        ("profiles.digits.training.shared.bn_parts", 2, ALL),
        ("device", "cpu", set()),
        ("devices", 2, set()),
    ],
)
def test_a_parameter_makes_stale_exactly_what_it_can_change(path: str, new: object, expected: set[str]) -> None:
    assert stale(path, new) == expected


def test_the_plain_variant_does_not_depend_on_the_adversarial_recipe() -> None:
    assert stale("variants.jempp.attack_steps", 3, method="base") == {"transfer", "masking"}, "of a surrogate only"
    assert stale("variants.jem.attack_steps", 3, method="base", variant="jem") == set()
    assert stale("variants.jempp.base_steps", 3, method="base") == ALL
    assert stale("variants.jempp.gap", "mean", method="ebjdat") == set()


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_depends_on_no_variant_but_the_surrogates(name: str) -> None:
    subject = Subject.baseline(params_of_repository(), name)
    for variant in ("jem", "jempp"):
        surrogate = {"transfer", "masking"} if variant == "jempp" else set()
        assert stale(f"variants.{variant}.steps", 7, subject) == surrogate
        assert stale(f"profiles.digits.training.ebjdat.{variant}.epochs", 7, subject) == surrogate
    assert stale("profiles.digits.evaluation.generation.chain_steps", 7, subject) == {"generate"}
    assert stale(f"profiles.digits.training.{name}.epochs", 7, subject) >= {"train", "clean"}


def test_seed_data_and_code_are_part_of_the_identity() -> None:
    params = params_of_repository()
    subject = Subject.current(params)
    known = subject.identity(params, "clean", "data", code)
    assert dataclasses.replace(subject, seed=1).identity(params, "clean", "data", code) != known
    assert subject.identity(params, "clean", "other data", code) != known
    for module in ("stages.train", "stages.clean"):
        assert subject.identity(params, "clean", "data", edited(module)) != known


def test_an_edit_of_the_baselines_code_makes_transfer_stale_and_nothing_else_but_masking() -> None:
    params = params_of_repository()
    subject = Subject.current(params)
    moved = {
        stage
        for stage in EVALUATIONS
        if subject.identity(params, stage, "data", code)
        != subject.identity(params, stage, "data", edited("stages.baseline"))
    }
    assert moved == {"transfer", "masking"}
    assert set(SURROGATES) < set(BASELINES)


def test_surrogates_of_ebjdat_lie_apart_and_each_model_meets_one_that_is_not_itself() -> None:
    params = params_of_repository()
    for subject in (Subject.current(params), Subject.baseline(params, "pgd_at")):
        found = subject.surrogates(params)
        assert [one.name for one in found] == ["pgd_at", "undefended", "ebjdat-jempp", "ebjdat-sadajem"]
        assert any(one.method == "ebjdat" and one != subject for one in found)
        assert all(one.seed == subject.seed for one in found)
    assert found[-1].surrogate_dir == Path("models/digits/surrogates/ebjdat-sadajem")
    assert found[0].surrogate_dir == found[0].model_dir


def test_resolved_parameters_are_plain_json_and_unknown_stages_are_refused(tmp_path: Path) -> None:
    params = params_of_repository()
    resolved = Subject.current(params).resolved(params, "masking")
    files.write_json(tmp_path / "resolved.json", resolved)
    assert files.read_json(tmp_path / "resolved.json") == resolved
    with pytest.raises(UserError, match="unknown stage 'cleen'"):
        Subject.current(params).resolved(params, "cleen")


def test_missing_or_foreign_manifests_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        data_digest("digits")
    files.write_json("data/digits/manifest.json", ["no digest"])
    with pytest.raises(UserError, match="names no digest"):
        data_digest("digits")


def test_a_stage_asks_for_the_current_model_or_a_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params, subject = from_arguments(None, [])
    assert subject == Subject.current(params)
    assert from_arguments(None, ["--model", "trades"])[1].name == "trades"
    with pytest.raises(SystemExit):
        from_arguments(None, ["--model", "pgd"])
    with pytest.raises(UserError, match=r"external\.json is missing: .*evaluate_model"):
        from_arguments(None, ["--model", "external-nobody"])


def test_an_external_model_is_known_by_its_fingerprint_and_by_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = params_of_repository()
    files.write_json("models/digits/external-cnn/external.json", {"fingerprint": "abc"})
    subject = Subject.external(params, "external-cnn")
    assert (subject.name, subject.fingerprint, subject.is_external, subject.is_baseline) == (
        "external-cnn",
        "abc",
        True,
        True,
    )
    assert stale("profiles.digits.training.undefended.epochs", 3, subject) <= {"transfer", "masking"}
    assert stale("profiles.digits.evaluation.radius", 0.1, subject) >= {"clean", "autoattack"}
    other = dataclasses.replace(subject, fingerprint="abd")
    assert other.identity(params, "clean", "data", code) != subject.identity(params, "clean", "data", code)
    assert subject.modules("clean") == ("stages.clean",)
    files.write_json("models/digits/external-cnn/external.json", [])
    with pytest.raises(UserError, match="names no fingerprint"):
        Subject.external(params, "external-cnn")


def test_identity_and_tables_need_no_torch_and_no_mlflow() -> None:
    source = "import sys, ebjdat.subject, ebjdat.reporting.claims, ebjdat.reporting.plots, stages.record, stages.tables"
    check = f"{source}; print({{'torch', 'mlflow', 'sklearn'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT)
    assert (run.stdout, run.stderr) == ("set()\n", "")
