"""What public bug reports of this field describe, tried here; docs/faults.md lists them with tests elsewhere."""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ebjdat
from ebjdat import files
from ebjdat.config import Setup, load_params, read_yaml, resolve
from ebjdat.data.gaussians import fit_mixture, save_mixture
from ebjdat.data.prepared import load_prepared
from ebjdat.errors import UserError
from ebjdat.evaluation import clean, external
from ebjdat.evaluation.classifier import Classifier, save_classifier
from ebjdat.evaluation.unreliable import remarks
from ebjdat.model.store import new_model, save_model
from ebjdat.protocols import STANDARD
from ebjdat.results import claims, extended, frame, page, paper, published
from ebjdat.results.cells import either, short
from ebjdat.run import Run
from ebjdat.training import loop
from stages import evaluate_model, evaluating
from stages.train import say
from tests import ROOT, tiny, zoo
from tests.small_models import held_out
from tests.small_runs import TINY, short_run, stopped_at
from tests.stub_pipeline import commit, dvc, git
from tests.synthetic import PARAMS, setup_of, write_records

pytestmark = pytest.mark.usefixtures("workspace")


def external_setup(workspace: Path, model: str) -> Setup:
    """A model from elsewhere under the tiny profile, whose data is prepared."""
    params = tiny.write_params(workspace)
    tiny.prepare(params)
    return resolve(params, Run("digits", model, 0))


# 1. Numbers that only look robust


def test_logits_times_1000_are_told_at_the_door_and_beside_every_number_of_an_attack_by_their_gradient(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = external_setup(workspace, "external-scaled")
    evaluate_model.take_in(setup, zoo.spec("times_1000"), transfer=False)
    assert re.search(r"warning: the cross-entropy of \d+ % of 100 test images has no gradient", capsys.readouterr().err)
    task = evaluating.begin("clean", setup)
    task.finish(clean.evaluate({"best": task.model()}, task.cases, batches=task.batches))
    remark = re.search(
        r"standard/pgd-20: ([\d.]+) %.*, (no robustness figure: zero gradient on \d+ % of images, "
        r"([\d.]+) % on rescaled logits)\n",
        capsys.readouterr().out,
    )
    assert remark and float(remark[3]) < float(remark[1]) - 20, "the scale hides what the attack finds without it"
    results = frame.load(load_params(workspace))
    for show in (either, short):
        assert show(results, "external-scaled", "clean/standard/pgd-20").endswith(f", {remark[2]}")
        assert not re.search("[a-z]", show(results, "external-scaled", "clean/standard/clean"))


WARNINGS = {
    "standard/cascade": [
        "it seems that the output is a probability distribution, please be sure that the logits are used! (10 times)",
        "there are 7 points with zero gradient! This might lead to unreliable evaluation (38 times)",
    ],
    "standard/apgd-dlr": ["there are 3 points with zero gradient! This might (2 times)"],
    "released/square": ["it seems to be a randomized defense! Please use version='rand'. (1 times)"],
    "released/fab-t": ["Square Attack has decreased the robust accuracy of 2.00%. (1 times)"],
}
SERIOUS = "no robustness figure: probabilities 10, zero gradient 38"


def warned() -> frame.Results:
    """Records of the selected model with warnings of AutoAttack."""
    records = write_records(setup_of(PARAMS))
    (record,) = (record for record in records if record["stage"] == "autoattack")
    files.write_json(setup_of(PARAMS).run.record("autoattack"), record | {"warnings": WARNINGS})
    return frame.load(PARAMS)


def test_warnings_of_autoattack_stand_with_their_counts_beside_the_numbers_that_they_are_about() -> None:
    results = warned()
    said = {name: results.remark(PARAMS.model, f"autoattack/{name}") for name in
            results.records[PARAMS.model, 0, "autoattack"]["rates"]}  # fmt: skip
    assert {name: text for name, text in said.items() if text} == {
        "standard/autoattack": SERIOUS,
        "standard/apgd-ce": SERIOUS,
        "standard/apgd-ce-t": SERIOUS,
        "standard/apgd-dlr": "AutoAttack warns: zero gradient 2",  # 3 of 80 images
        "standard/union": "AutoAttack warns: zero gradient 2",
        "released/square": "AutoAttack warns: randomised 1",
        "released/fab-t": "no robustness figure: square stronger 1",
        "released/union": "AutoAttack warns: randomised 1",  # it leaves FAB out
        "released/union-with-fab": "no robustness figure: randomised 1, square stronger 1",
    }
    assert results.remark(PARAMS.model, "clean/standard/pgd-20") == ""


def test_a_number_with_a_serious_warning_is_marked_in_tables_on_the_page_and_reproduces_nothing() -> None:
    results = warned()
    (table,) = (one for one in paper.paper_tables(results)["table1"] if one.label == "table1-standard")
    assert table.markdown().count(SERIOUS) == 1 and SERIOUS in paper.latex(table)
    assert f"under AutoAttack, {SERIOUS}" in page.lead(results)
    claim = next(one for one in published.claims() if one.metric_under("released").endswith("released/fab-t"))
    reasons = claims.not_comparable(claim, results, PARAMS.model, "released")
    assert "no robustness figure: square stronger 1" in reasons


def test_pgd_without_gradients_is_marked_on_all_images_and_on_those_of_autoattack() -> None:
    records = write_records(setup_of(PARAMS))
    (record,) = (record for record in records if record["stage"] == "clean")
    record["values"]["gradient/zero-share"] = 0.5
    row = extended.tradeoff(frame.from_records(PARAMS, records), STANDARD).body.loc["EB-JDAT-JEM++ (code form)"]
    assert [head for _, head in row.index if "zero gradient on 50 %" in row.xs(head, level=1).item()] == [
        "PGD-20",
        "PGD-20, same images as AutoAttack",
    ]


BARE: dict[str, Any] = {"values": {}, "warnings": {}, "weights": "a", "n": 10, "settings": {}, "audits": {}}


def test_a_share_of_zero_gradients_of_other_weights_says_nothing() -> None:
    record, other = BARE | {"rates": {"standard/pgd-20": {}}}, {"values": {"gradient/zero-share": 0.5}, "weights": "b"}
    assert remarks(record, other) == remarks(record, None) == {}
    assert remarks(record, other | {"weights": "a"}).keys() == {"standard/pgd-20"}


def test_a_warning_of_square_stands_beside_autoattack_unless_that_is_the_cascades() -> None:
    rates = dict.fromkeys(("standard/square", "standard/union", "standard/autoattack", "standard/apgd-ce"))
    warned = {"standard/square": ["Square Attack has decreased the robust accuracy (1 times)"]}
    record = BARE | {"rates": rates, "warnings": warned}
    said = remarks(record, None)
    assert said.keys() == {"standard/square", "standard/union", "standard/autoattack"}
    assert set(said.values()) == {"no robustness figure: square stronger 1"}
    cascade = record | {"audits": {"standard/cascade": {}}}
    assert remarks(cascade, None).keys() == {"standard/square", "standard/union"}


# 2. Odd classifiers: tests/test_external.py, with the zoo


def test_a_model_whose_normalisation_stayed_in_the_data_loader_shows_its_accuracy_before_hours_pass(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = external_setup(workspace, "external-cnn")
    shares = []
    for name in ("normalised", "normalised_outside"):
        evaluate_model.take_in(setup, zoo.spec(name), transfer=False)
        shown = re.search(r"^([\d.]+) % of 100 test images are classified correctly$", capsys.readouterr().out, re.M)
        assert shown
        shares.append(float(shown[1]))
    assert shares[0] > shares[1] + 10


# 3. Weights that the state does not hold

IN_A_LIST = """
import torch
from torch import nn

class Ensemble(nn.Module):
    def __init__(self):
        super().__init__()
        self.nets = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2)]
        for net in self.nets:
            net.load_state_dict(torch.load("weights.pt", weights_only=True))

    def forward(self, x):
        return sum(net(x) for net in self.nets)
"""


def test_an_ensemble_in_a_list_whose_file_is_replaced_between_two_stages_is_noticed(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(workspace))
    (workspace / "listed.py").write_text(IN_A_LIST)
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.save(layer.state_dict(), "weights.pt")
    first = external.save(Path("one"), "listed:Ensemble", *held_out(40))
    torch.save({name: -tensor for name, tensor in layer.state_dict().items()}, "weights.pt")
    with pytest.raises(UserError, match=r"answers differently .* outside of state_dict \(in a list"):
        external.load("one/best.pt")
    assert external.save(Path("two"), "listed:Ensemble", *held_out(40)) != first


# 4. DVC's links


def write_everything(folder: Path, value: int) -> None:
    """A file by every writer of the package; what they hold depends on the value."""
    files.write_text(folder / "text.txt", f"{value}\n")
    files.write_json(folder / "numbers.json", [value])
    files.write_npz(folder / "arrays.npz", {"a": np.full(9, value)})
    files.write_png(folder / "picture.png", np.full((4, 4), value, np.uint8))
    save_model(folder / "best.pt", new_model(TINY, value))
    torch.manual_seed(value)
    save_classifier(folder / "classifier.pt", Classifier(2))
    save_mixture(folder / "gaussians.npz", fit_mixture(torch.rand(40, 1, 4, 4), torch.arange(40) % 10))


def foreign(cache: Path, least: int) -> list[str]:
    """Objects of a DVC cache, of which there are at least so many, whose content is not what their name says."""
    found = {path: path.parent.name + path.name.removesuffix(".dir") for path in cache.glob("files/md5/*/*")}
    assert len(found) >= least
    return [name for path, name in found.items() if hashlib.md5(path.read_bytes()).hexdigest() != name]


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_outs_linked_to_the_cache_are_replaced_and_the_cache_stays_whole(workspace: Path, link: str) -> None:
    Path(".dvc/config").write_text(f"[core]\n    no_scm = True\n    analytics = false\n[cache]\n    type = {link}\n")
    out = workspace / "out"
    write_everything(out, 1)
    assert (done := dvc(workspace, "add", "out")).returncode == 0, done.stderr
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for path in out.iterdir():
        assert path.is_symlink() if link == "symlink" else path.stat().st_nlink == 2, f"{path} is not linked"
    write_everything(out, 2)
    assert all(path.read_bytes() != before[path.name] for path in out.iterdir())
    assert foreign(Path(".dvc/cache"), 8) == []
    assert (done := dvc(workspace, "add", "out")).returncode == 0, done.stderr
    assert foreign(Path(".dvc/cache"), 16) == []


IN_PLACE = re.compile(r"(?!files\.).*\.write_(text|bytes)|shutil\.(copy\w*|move)|np\.save\w*|.*\.savefig|torch\.save")
KNOWN = {
    ("files.py", "temporary.open"),  # files.atomic
    ("files.py", "archive.open"),  # inside it
    ("model/store.py", "torch.save"),  # aside, then moved into place
    ("evaluation/classifier.py", "torch.save"),  # these go through files.atomic
    ("evaluation/inception.py", "torch.save"),
    ("training/state.py", "torch.save"),
    ("drawing.py", "figure.savefig"),  # into memory
    ("evaluation/transfer.py", "shutil.copytree"),  # into a folder that was removed
    ("tracking.py", "path.write_bytes"),  # below temporary folders
    ("stages/repro.py", "log_of(name).open"),  # below .scratch
}


def test_nothing_else_writes_files() -> None:
    found = set()
    for path in [*(ROOT / "ebjdat").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        place = path.relative_to(ROOT).as_posix().removeprefix("ebjdat/")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name, modes = ast.unparse(node.func), [ast.unparse(one) for one in node.args[:2]]
                writes = name.endswith("open") and any(re.fullmatch("'[rb+]*[wax][wxab+t]*'", mode) for mode in modes)
                found |= {(place, name)} if writes or IN_PLACE.fullmatch(name) else set()
    assert found == KNOWN


# 5. Git


LOCKED = """  {0}:
    cmd: run {0}
    deps:
    - path: data
      hash: md5
      md5: dddddddd
    outs:
    - path: {0}
      hash: md5
      md5: {0}{0}{0}{0}{0}{0}{0}{0}
"""


def lock(*names: str) -> str:
    """A dvc.lock of these stages, which share a dependency."""
    return "schema: '2.0'\nstages:\n" + "".join(map(LOCKED.format, names))


def repository(folder: Path, contents: dict[str, str | bytes]) -> Path:
    """A git repository with the attributes of ours and these files, committed."""
    folder.mkdir()
    (folder / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    commit(folder, "start")
    return folder


def test_two_branches_that_each_add_a_run_lose_no_record_and_leave_a_lock_that_dvc_can_read(tmp_path: Path) -> None:
    folder = repository(tmp_path / "repository", {"dvc.lock": lock("a")})
    for name in ("b", "c"):
        git(folder, "checkout", "--quiet", "-b", name, "main")
        files.write_json(folder / f"results/digits/records/{name}/0/clean.json", {"model": name})
        (folder / "dvc.lock").write_text(lock("a", name))
        commit(folder, name)
    merged = git(folder, "merge", "b", check=False)
    assert merged.returncode == 1 and "Merge conflict in dvc.lock" in merged.stdout
    assert read_yaml(folder / "dvc.lock")["stages"].keys() == {"a", "c"}, "ours, whole: not two stages mixed into one"
    assert {path.parts[-3] for path in folder.glob("results/digits/records/*/0/clean.json")} == {"b", "c"}


def test_a_checkout_with_autocrlf_has_the_bytes_that_dvc_hashed(tmp_path: Path) -> None:
    contents = {"train.py": b"a = 1\nb = 2\n", "table.md": b"| a |\n", "weights.pt": b"PK\r\n\x00\n"}
    repository(tmp_path / "repository", contents)
    git(tmp_path, "-c", "core.autocrlf=true", "clone", "--quiet", "repository", "clone")
    assert {name: (tmp_path / "clone" / name).read_bytes() for name in contents} == contents


# 8. One YAML reader


def test_no_other_reader_of_yaml_is_used() -> None:
    for path in [*(ROOT / "ebjdat").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        assert not re.search(r"^\s*(import yaml|from yaml)", path.read_text(encoding="utf-8"), re.MULTILINE), path
    readers = [path.name for path in (ROOT / "ebjdat").rglob("*.py") if "ruamel" in path.read_text(encoding="utf-8")]
    assert readers == ["config.py"]


# 10. Names, and what goes wrong quietly


def test_images_of_whole_numbers_are_refused_by_the_api() -> None:
    save_model(Path("best.pt"), new_model(TINY, 0))
    model = ebjdat.load("best.pt")
    with pytest.raises(UserError, match=r"in \[0, 1\], got torch.uint8: divide by 255 first"):
        model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(("accuracy", "told"), [(0.095, True), (0.6, False)])
def test_a_training_that_ends_at_chance_is_told(
    accuracy: float, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    selected = {"val_clean": accuracy, "val_robust": 0.0}
    say(setup_of(PARAMS), {"selected": selected, "best_epoch": 1, "epochs": 1, "events": []})
    assert ("about as well as chance" in capsys.readouterr().err) is told


def test_the_time_left_of_a_resumed_training_counts_no_old_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Seen(loop.Progress):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            seen.append(self)

    monkeypatch.setattr(loop, "Progress", Seen)
    stopped_at(short_run("pgd_at", tmp_path), 6)
    short_run("pgd_at", tmp_path).run()
    assert [(one.skipped, one.done, one.total) for one in seen] == [(0, 6, 12), (6, 12, 12)]


# 11. What newcomers trip over


def test_a_model_for_which_no_data_was_prepared_is_told_the_stage_that_makes_them(workspace: Path) -> None:
    setup = resolve(tiny.write_params(workspace), Run("digits", "external-cnn", 0))
    with pytest.raises(UserError, match=r"data/digits/manifest\.json is missing: .*`dvc repro prepare`"):
        evaluate_model.take_in(setup, zoo.spec("cnn"), transfer=False)
    tiny.prepare(load_params())
    assert load_prepared(setup.run.data_dir).x_test.shape[0] == 100


def test_a_wide_residual_network_in_double_precision_answers_in_double_precision() -> None:
    model, x = new_model(TINY, 0).eval(), torch.rand(4, 1, 8, 8)
    single = model(x)
    double = model.double()(x.double())
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert not torch.equal(double, double.float().double()), "digits beyond float32"
