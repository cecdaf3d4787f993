"""Where a row runs, what it still needs, and how its files come back to the checkout.

Each row gets a workspace of its own with its own params.yaml, in which the ordinary stage commands run one after the
other; rows that differ in method, variant or baseline only share models, so that transfer finds its surrogates. A
command whose result is there with today's identity is not run again, so a campaign that was stopped continues.

Everything lies below one folder, checkpoints and unfinished attacks included, and nothing in it names another place by
an absolute path: copied beside the same code on another machine, it goes on there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import yaml

from ebjdat import files, provenance
from ebjdat.campaign.study import SHARED_KEYS, Row
from ebjdat.errors import UserError
from ebjdat.subject import Subject, data_digest

REFERENCE = "stages.reference"


def prepare_workspace(row: Row, root: Path) -> Path:
    """A folder in which the row's stage commands run; made again, it is the same folder."""
    folder = root / row.name
    shared = root / "shared" / row.group
    for name in ("models", "results"):
        (shared / name).mkdir(parents=True, exist_ok=True)
        _link(folder / name, shared / name)
    Path("data").mkdir(exist_ok=True)
    for name in ("ebjdat", "stages", "data"):
        _link(folder / name, Path.cwd() / name)
    reference = _reference_dir(row)
    if reference.is_dir() and not (shared / reference).is_dir():
        _link(shared / reference, Path.cwd() / reference)
    files.write_text(folder / "params.yaml", yaml.safe_dump(row.raw, sort_keys=False))
    return folder


def _link(path: Path, target: Path) -> None:
    """A relative link: it stays right where campaign and checkout are copied together."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = Path(os.path.relpath(target.resolve(), path.parent.resolve()))
    if path.is_symlink() and path.readlink() != wanted:
        path.unlink()
    if not path.is_symlink():
        path.symlink_to(wanted, target_is_directory=True)


def _reference_dir(row: Row) -> Path:
    return Path("models") / row.params.profile / "reference"


def pending(row: Row, folder: Path) -> list[list[str]]:
    """The commands whose result is not there yet with today's identity, or is about other weights than are there.

    The model comes first and what only some stage needs right before that stage, so that a campaign
    that is stopped early has spent its time on the row itself.
    """
    data = data_digest(row.subject.profile)
    left, retrained = [], False
    for command in row.commands:
        stage = command[0].removeprefix("stages.")
        training = command[0] == row.subject.training_module
        name = "train" if training else stage
        path = row.subject.model_dir / "summary.json" if training else row.subject.results_dir / f"{stage}.json"
        done = _done(folder / path, "identity", row.subject.identity(row.params, name, data))
        if done and not training:
            done = not retrained and _is_about(folder / path, folder / row.subject.model_dir / "best.pt")
        if done:
            continue
        retrained |= training
        if stage == "transfer":
            left += _surrogates_left(row, folder, data)
        if stage == "generate" and not _has_reference(row, folder, data):
            left.append([REFERENCE])
        left.append(command)
    return left


def _has_reference(row: Row, folder: Path, data: str) -> bool:
    """Whether the real images were measured on this data by the features that the row asks for."""
    path = folder / _reference_dir(row) / "manifest.json"
    features = row.params.current.evaluation.generation.features
    return _done(path, "data", data) and bool(files.read_json(path)["features"]["kind"] == features)


def _is_about(record: Path, weights: Path) -> bool:
    """Whether a record names these weights; one whose weights did not travel with it is believed."""
    return not weights.is_file() or bool(files.read_json(record)["model"] == provenance.file_hash(weights))


def _surrogates_left(row: Row, folder: Path, data: str) -> list[list[str]]:
    return [command for surrogate, command in row.surrogates if not _is_trained(surrogate, row, folder, data)]


def _is_trained(surrogate: Subject, row: Row, folder: Path, data: str) -> bool:
    path = folder / surrogate.surrogate_dir / "summary.json"
    return _done(path, "identity", surrogate.identity(row.params, "train", data))


def _done(path: Path, key: str, value: str) -> bool:
    return path.is_file() and files.read_json(path)[key] == value


def has_data(row: Row, folder: Path) -> bool:
    """Whether the data of the row's profile are prepared.

    Raises:
        UserError: they are, with other settings than those of params.yaml.
    """
    path = Path("data") / row.params.profile / "manifest.json"
    if not (folder / path).is_file():
        return False
    settings, manifest = row.params.current.data, files.read_json(folder / path)
    counts = {"train": settings.train, "val": settings.validation, "test": settings.test}
    if (manifest.get("split_seed"), manifest.get("counts")) != (settings.split_seed, counts):
        raise UserError(f"{path}: prepared with other settings than params.yaml has; run `dvc repro prepare` first")
    return True


def take_in(rows: list[Row], root: Path) -> list[str]:
    """Copy models and results of rows over plain parameters to this checkout, where ``dvc commit`` looks for them.

    Only rows that are done with today's identities. Rows that change anything but profile, method, variant and
    baseline stay in the campaign: DVC's outputs are those of params.yaml. What is there already is replaced, save
    report pages, which are in git.

    Returns:
        The folders that were copied.
    """
    taken: list[str] = []
    for row in rows:
        if set(row.overrides) - {"profile", *SHARED_KEYS} or pending(row, root / row.name):
            continue
        shared, data = root / "shared" / row.group, data_digest(row.params.profile)
        wanted = [row.subject.model_dir, row.subject.results_dir]
        wanted += [_reference_dir(row)] if _has_reference(row, shared, data) else []
        wanted += [
            one.surrogate_dir for one in row.subject.surrogates(row.params) if _is_trained(one, row, shared, data)
        ]
        for folder in wanted:
            if (shared / folder).is_dir() and not (shared / folder).is_symlink() and str(folder) not in taken:
                _replace(shared / folder, folder)
                taken.append(str(folder))
    return taken


def _replace(source: Path, folder: Path) -> None:
    """Make ``folder`` a copy of ``source``; its report page stays.

    Raises:
        UserError: the copy could not be made; then ``folder`` is as it was.
    """
    fresh, old = (folder.with_name(f".{folder.name}.{name}") for name in ("new", "old"))
    page = folder / "report.html"
    if old.is_dir() and not folder.exists():  # an earlier call was killed between its two renames
        old.rename(folder)
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    try:
        shutil.copytree(source, fresh)
        if page.is_file():
            shutil.copy2(page, fresh)
        if folder.is_dir():
            folder.rename(old)
        fresh.rename(folder)
    except OSError as error:
        if old.is_dir():
            old.rename(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        raise UserError(f"{folder} stays as it was: {source} could not be copied ({error})") from None
    shutil.rmtree(old, ignore_errors=True)
