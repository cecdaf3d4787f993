"""A campaign: the rows of a study, most valuable first, until all are done or the time is up."""

from __future__ import annotations

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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ebjdat import files
from ebjdat.campaign.study import Row
from ebjdat.campaign.workspace import REFERENCE, has_data, pending, prepare_workspace
from ebjdat.errors import Unfinished, UserError
from ebjdat.progress import duration

STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM, 130)
GRACE = 60.0
"""Seconds that a command may take to write its checkpoint before it is killed."""


def environment_of(root: Path) -> dict[str, str]:
    """What every command of a campaign is told: where store and unfinished work lie, and how long it has to end."""
    return dict(
        os.environ,
        DVC_ROOT=str(files.main_checkout()),
        EBJDAT_SCRATCH=str(root.resolve() / "scratch"),
        TORCH_ELASTIC_SHUTDOWN_TIMEOUT=str(int(GRACE) - 10),  # torchrun ends its processes before it is killed itself
    )


def _makes(row: Row, command: list[str]) -> str | None:
    """Name of the model or reference that a command makes; rows of one group share it."""
    if command[0] == REFERENCE:
        return "reference"
    if command[0] == "stages.surrogate":
        return f"ebjdat-{command[-1]}"
    return (
        command[-1] if command[0] == "stages.baseline" else row.subject.name if command[0] == "stages.train" else None
    )


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
        if has_data(row, folder):
            return
        code = self._command(["stages.prepare"], folder)
        if code:
            raise UserError(f"data/{row.params.profile} could not be prepared, see {folder / 'log.txt'}")

    def _row(self, row: Row) -> str:
        folder = self.root / row.name
        if not has_data(row, folder):
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
            os.killpg(process.pid, signal.SIGKILL)  # its children too, save torchrun's, which it ends itself by then
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
