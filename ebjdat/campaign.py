"""Many runs of the same stages over other parameters: seeds, readings, whole tables of a budget.

A study is a YAML file: the evaluation stages to run and a list of rows, most valuable first. A row
is a mapping of parameter keys to values over params.yaml, where ``${profile}`` in a key stands for
the row's profile; the key ``model`` names a baseline instead of the current model. Each row gets a
workspace of its own with its own params.yaml, in which the ordinary stage commands run one after the
other; rows that differ in method, variant or baseline only share models, so that transfer finds its
surrogates. A command whose result is there with today's identity is not run again, so a campaign that
was stopped continues.

Everything lies below one folder, checkpoints and unfinished attacks included, and nothing in it names
another place by an absolute path: copied beside the same code on another machine, it goes on there.
"""

from __future__ import annotations

import copy
import json
import math
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ebjdat import files, provenance
from ebjdat.config import BASELINES, Params, parse_params
from ebjdat.errors import Unfinished, UserError
from ebjdat.progress import duration
from ebjdat.subject import EVALUATIONS, Subject, data_digest

SHARED_KEYS = ("method", "variant", "model")
NO_BASELINE = ("generate",)
REFERENCE = "stages.reference"
STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM, 130)
GRACE = 60.0
"""Seconds that a command may take to write its checkpoint before it is killed."""


@dataclass(frozen=True)
class Row:
    """One model of a study: its parameters, its name, and the stages that it still needs."""

    name: str
    overrides: dict[str, Any]
    raw: dict[str, Any]
    params: Params
    subject: Subject
    group: str
    stages: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """What evaluation stages are told about the model."""
        return ["--model", self.subject.name] if self.subject.is_baseline else []

    @property
    def commands(self) -> list[list[str]]:
        """The stage modules with their arguments, in order."""
        train = [self.subject.training_module, *self.arguments]
        return [train, *[[f"stages.{stage}", *self.arguments] for stage in self.stages]]

    @property
    def surrogates(self) -> list[tuple[Subject, list[str]]]:
        """Other models that the row's stages need, with the command that trains each."""
        if "transfer" not in self.stages:
            return []
        others = [one for one in self.subject.surrogates(self.params) if one != self.subject or not one.is_baseline]
        baseline, variant = ["stages.baseline", "--model"], ["stages.surrogate", "--variant"]
        return [(one, [*baseline, one.name] if one.variant is None else [*variant, one.variant]) for one in others]


def read_study(
    path: Path,
    params_file: Path = Path("params.yaml"),
    *,
    profile: str | None = None,
    stages: Sequence[str] | None = None,
) -> list[Row]:
    """The rows of a study over today's params.yaml.

    Args:
        path: the study.
        params_file: what its rows are mappings over.
        profile: of rows that name none; None: the one of ``params_file``.
        stages: instead of the study's; empty: train only.

    Raises:
        UserError: the file is missing or malformed, or a row names an unknown key, value or stage.
    """
    try:
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
        base = yaml.safe_load(params_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a study ({' '.join(str(error).split())})") from None
    if not isinstance(study, dict) or set(study) != {"stages", "rows"} or not isinstance(study["rows"], list):
        raise UserError(f"{path}: expected the keys `stages` and `rows`")
    if not isinstance(study["stages"], list):
        raise UserError(f"{path}: stages: expected a list such as [clean, autoattack], got {study['stages']!r}")
    wanted = study["stages"] if stages is None else list(stages)
    unknown = [stage for stage in wanted if stage not in EVALUATIONS]
    if unknown:
        raise UserError(f"{path}: unknown stage {unknown[0]!r}; known: {', '.join(EVALUATIONS)}")
    if profile is not None:
        base["profile"] = profile
    return [_row(f"{path}, row {i + 1}", row, base, wanted) for i, row in enumerate(study["rows"])]


def _row(where: str, overrides: Any, base: dict[str, Any], stages: list[str]) -> Row:
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
        raise UserError(f"{where}: expected a mapping of parameter keys to values, got {overrides!r}")
    raw = copy.deepcopy(base)
    profile = str(overrides.get("profile", raw.get("profile")))
    overrides = {key.replace("${profile}", profile): value for key, value in overrides.items()}
    for key, value in overrides.items():
        if ".data." in key:
            raise UserError(f"{where}: {key}: all rows of a profile share data/{profile}; set it in params.yaml")
        if key != "model":
            _set(raw, key, value, where)
    try:
        params = parse_params(raw)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    model = overrides.get("model")
    if model is not None and model not in BASELINES:
        raise UserError(f"{where}: unknown baseline {model!r}; known: {', '.join(BASELINES)}")
    subject = Subject.current(params) if model is None else Subject.baseline(params, model)
    others = {key: value for key, value in overrides.items() if key not in SHARED_KEYS}
    group = provenance.digest({"profile": params.profile, **others}, 8)
    wanted = tuple(stage for stage in stages if model is None or stage not in NO_BASELINE)
    return Row(f"{subject.run_name}-{group}", overrides, raw, params, subject, group, wanted)


def _set(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    *path, last = key.split(".")
    node: Any = raw
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        raise UserError(f"{where}: {key} is no key of params.yaml")
    node[last] = value


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
    reference = _reference(row)
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


def _reference(row: Row) -> Path:
    return Path("models") / row.params.profile / "reference"


def environment_of(root: Path) -> dict[str, str]:
    """What every command of a campaign is told: where store and unfinished work lie, and how long it has to end."""
    return dict(
        os.environ,
        DVC_ROOT=str(files.main_checkout()),
        EBJDAT_SCRATCH=str(root.resolve() / "scratch"),
        TORCH_ELASTIC_SHUTDOWN_TIMEOUT=str(int(GRACE) - 10),  # torchrun ends its processes before it is killed itself
    )


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
    path = folder / _reference(row) / "manifest.json"
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


def _makes(row: Row, command: list[str]) -> str | None:
    """Name of the model or reference that a command makes; rows of one group share it."""
    if command[0] == REFERENCE:
        return "reference"
    if command[0] == "stages.surrogate":
        return f"ebjdat-{command[-1]}"
    return (
        command[-1] if command[0] == "stages.baseline" else row.subject.name if command[0] == "stages.train" else None
    )


def _done(path: Path, key: str, value: str) -> bool:
    return path.is_file() and files.read_json(path)[key] == value


def _has_data(row: Row, folder: Path) -> bool:
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


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them; empty without NVIDIA's driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    told = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=False)
    return [str(index) for index, line in enumerate(told.stdout.splitlines()) if line.startswith("GPU ")]


class Campaign:
    """Runs the rows of a study until all are done or the time is up.

    Args:
        root: folder of the workspaces.
        minutes: no new command starts after that, and running ones get SIGTERM, which makes
            training write a checkpoint; None: no limit.
        jobs: rows at a time, at least one; with more than one, each command gets one thread, and one GPU where there
            are any, which it may share when there are fewer GPUs than jobs.

    Raises:
        UserError: fewer jobs than one, or minutes below 0.
    """

    def __init__(self, root: Path, *, minutes: float | None = None, jobs: int = 1) -> None:
        if jobs < 1:
            raise UserError(f"--jobs {jobs}: expected at least 1")
        if minutes is not None and not 0 <= minutes < math.inf:
            raise UserError(f"--minutes {minutes:g}: expected 0 or more")
        self.root, self.jobs = root, jobs
        self._making: dict[tuple[str, str], threading.Lock] = {}
        self._noting = threading.Lock()
        gpus = visible_gpus() if jobs > 1 else []
        self._gpus: queue.SimpleQueue[str] | None = None
        if gpus:
            self._gpus = queue.SimpleQueue()
            for job in range(jobs):
                self._gpus.put(gpus[job % len(gpus)])
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes

    def run(self, rows: list[Row]) -> dict[str, str]:
        """State of each row: done, stopped or failed (with the command).

        Ctrl-C and SIGTERM count as the end of the time.
        """
        for row in rows:  # before any thread: rows of one group share folders
            self._prepare(row, prepare_workspace(row, self.root))
        with ThreadPoolExecutor(self.jobs) as pool:
            return dict(zip([row.name for row in rows], pool.map(self._state, rows), strict=True))

    def _state(self, row: Row) -> str:
        """Run a row; whatever is wrong with its files or the disk is its own failure, and no other row's."""
        try:
            return self._row(row)
        except (UserError, OSError, KeyError, TypeError, ValueError) as error:
            return f"failed: {type(error).__name__}: {error}"

    def _prepare(self, row: Row, folder: Path) -> None:
        """Prepare the data of the row's profile where the checkout has none."""
        if _has_data(row, folder):
            return
        code = self._command(["stages.prepare"], folder)
        if code:
            raise UserError(f"data/{row.params.profile} could not be prepared, see {folder / 'log.txt'}")

    def _row(self, row: Row) -> str:
        folder = self.root / row.name
        if not _has_data(row, folder):
            return "stopped"
        for command in pending(row, folder):
            if self._over():
                return "stopped"
            started = time.monotonic()
            code = self._once(row, command, folder)
            told = f"{row.name}: {' '.join(command)} {duration(time.monotonic() - started)}"
            if code is None or (self._over() and code in STOPPED):
                print(f"{told}, stopped before its end", flush=True)
                return "stopped"
            print(f"{told}{'' if code == 0 else f', failed with exit code {code}'}", flush=True)
            if code:
                return f"failed: {' '.join(command)} (exit code {code}, see {folder / 'log.txt'})"
        return "done"

    def _once(self, row: Row, command: list[str], folder: Path) -> int | None:
        """Run a command, unless it makes what another row has made meanwhile."""
        name = _makes(row, command)
        if name is None:
            return self._command(command, folder)
        with self._making.setdefault((row.group, name), threading.Lock()):
            return self._command(command, folder) if command in pending(row, folder) else 0

    def stop(self, *_: object) -> None:
        """End the time now; a signal handler."""
        self.deadline = time.monotonic()

    def _command(self, command: list[str], folder: Path) -> int | None:
        """Exit code; None where the time was up before it could start."""
        if self._over():
            return None
        environment = environment_of(self.root)
        if self.jobs > 1:
            environment["OMP_NUM_THREADS"] = "1"
        if self._gpus is None:
            return self._run_to_end(command, folder, environment)
        gpu = self._gpus.get()
        try:
            return self._run_to_end(command, folder, environment | {"CUDA_VISIBLE_DEVICES": gpu})
        finally:
            self._gpus.put(gpu)

    def _run_to_end(self, command: list[str], folder: Path, environment: dict[str, str]) -> int:
        started = time.time()
        with (folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the campaign alone, which passes it on once
            )
            code = self._wait(process)
        self._note(folder, command, started, code)
        return code

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        while not self._over():
            try:
                return process.wait(0.5)
            except subprocess.TimeoutExpired:
                continue
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and its children; the checkpoint before counts
            process.wait()
            return -signal.SIGTERM

    def _over(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _note(self, folder: Path, command: list[str], started: float, code: int) -> None:
        """One line per command in ``times.jsonl``: training has no side file of its own."""
        line = {
            "row": folder.name,
            "command": command,
            "seconds": round(time.time() - started, 1),
            "code": code,
            "host": socket.gethostname(),
            "jobs": self.jobs,
        }
        with self._noting, (self.root / "times.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def check_done(states: Mapping[str, str]) -> None:
    """Raise unless every row is done.

    Raises:
        UserError: a row failed.
        Unfinished: rows were stopped, none failed.
    """
    failed = sum(state.startswith("failed") for state in states.values())
    left = sum(state != "done" for state in states.values())
    if failed:
        raise UserError(f"{failed} of {len(states)} rows failed: mend the cause and run the same command again")
    if left:
        raise Unfinished(f"{left} of {len(states)} rows are not done; run the same command again to continue")


def log_records(rows: list[Row], root: Path) -> None:
    """Log the records of finished rows to MLflow, so that the next ``dvc repro`` takes them in.

    Raises:
        UserError: records of some rows could not be logged; those of the others were.
    """
    failed = []
    for row in rows:
        folder = root / row.name
        if (folder / row.subject.results_dir).is_dir():
            told = subprocess.run([sys.executable, "-m", "stages.record"], cwd=folder, env=environment_of(root))
            if told.returncode:
                failed.append(row.name)
    if failed:
        raise UserError(f"records of {', '.join(failed)} were not logged; run the same command again")


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
        wanted += [_reference(row)] if _has_reference(row, shared, data) else []
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
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    try:
        shutil.copytree(source, fresh)
        if page.is_file():
            shutil.copy2(page, fresh)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise UserError(f"{folder} stays as it was: {source} could not be copied ({error})") from None
    if folder.is_dir():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
