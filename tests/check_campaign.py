"""A campaign that is stopped twice and moved twice finds what one uninterrupted finds: minutes, so run by hand.

python -m tests.check_campaign FOLDER [--python BARE] [--profile cifar10-smoke] [--rows 2] [--stages clean ...]

FOLDER receives four copies of this checkout, each with nothing but what packs brought there: one runs to the end,
the others pass one campaign on, stopped by SIGTERM in training and in an attack. BARE is a Python that has torch,
torchvision and NumPy but neither DVC nor MLflow.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from ebjdat import command
from ebjdat.errors import UserError
from ebjdat.provenance import ROOT, file_hash

STAGES = ("clean", "autoattack", "generate", "transfer", "sweep", "eot", "masking")


def main() -> None:
    """Run both and compare every record and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--profile", default="cifar10-smoke")
    parser.add_argument("--study", type=Path, default=Path("studies") / "cifar10.yaml")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--stages", nargs="*", default=list(STAGES))
    arguments = parser.parse_args()
    study = yaml.safe_load(arguments.study.read_text(encoding="utf-8"))
    study = {"stages": arguments.stages, "rows": study["rows"][: arguments.rows]}
    arguments.folder.mkdir(parents=True)
    _run([sys.executable, "-m", "stages.pack", "inputs", str(arguments.folder / "in"), "--profile", arguments.profile])
    whole, *parts = (_copy(arguments, f"copy {letter}", study) for letter in "abcd")
    told = [_campaign(arguments, whole, None)]
    for number, (here, there) in enumerate(zip(parts, [*parts[1:], None], strict=True)):
        told.append(_campaign(arguments, here, (_training, _attacking, None)[number]))
        if there is not None:
            pack = str(arguments.folder / f"results {number}")
            _run([arguments.python, "-m", "stages.pack", "results", pack, "--piece-mb", "1"], here)
            _run([arguments.python, "-m", "stages.pack", "unpack", pack], there)
            shutil.rmtree(here)
    print(f"exit codes: uninterrupted {told[0]}; stopped, stopped, finished {told[1:]}")
    _compare(_found(whole), _found(parts[-1]))


def _copy(arguments: argparse.Namespace, name: str, study: dict[str, object]) -> Path:
    """This checkout's files as git knows them, with unpacked inputs and prepared data."""
    folder = arguments.folder / name
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in filter(None, listed.split("\0")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, folder / file)
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    _run([arguments.python, "-m", "stages.pack", "unpack", str(arguments.folder / "in")], folder)
    return folder


def _campaign(arguments: argparse.Namespace, folder: Path, until: object) -> int:
    """Exit code of the campaign; with ``until``, SIGTERM as soon as that is so."""
    module = ["-m", "stages.loan", "study.yaml", "--profile", arguments.profile]
    process = subprocess.Popen([arguments.python, *module], cwd=folder)
    while process.poll() is None:
        if callable(until) and until(folder):
            process.send_signal(signal.SIGTERM)
            return process.wait()
        time.sleep(0.2)
    if callable(until):
        raise UserError(f"{folder}: the campaign ended before it could be stopped")
    return process.returncode


def _training(folder: Path) -> bool:
    """A model of the campaign has begun and is not done."""
    logs = [path.read_text(encoding="utf-8", errors="replace") for path in (folder / ".campaign").glob("*/log.txt")]
    return any(" it (" in text for text in logs)


def _attacking(folder: Path) -> bool:
    """A slice of an attack is on disk."""
    return any(path.is_file() for path in (folder / ".campaign" / "scratch" / "autoattack").glob("*/*"))


def _found(folder: Path) -> dict[str, str]:
    """Content of each record and hashes of each model, by path below the campaign."""
    shared = folder / ".campaign" / "shared"
    records = {path: path for path in shared.glob("*/results/*/*/*.json") if not path.name.endswith(".side.json")}
    found = {path.relative_to(shared).as_posix(): json.loads(path.read_text())["content"] for path in records}
    models = [path for name in ("best.pt", "last.pt", "buffer.npz") for path in shared.glob(f"*/models/*/*/{name}")]
    return found | {path.relative_to(shared).as_posix(): file_hash(path) for path in models}


def _compare(whole: dict[str, str], moved: dict[str, str]) -> None:
    for name in sorted({*whole, *moved}):
        print(f"{'equal' if whole.get(name) == moved.get(name) else 'DIFFERS'}  {name}  {moved.get(name)}")
    if whole != moved or not whole:
        raise UserError("the campaign that was stopped and moved does not equal the uninterrupted one")


def _run(arguments: list[str], folder: Path = ROOT) -> None:
    subprocess.run(arguments, cwd=folder, check=True)


if __name__ == "__main__":
    command.run(main)
