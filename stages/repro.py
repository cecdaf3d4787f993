"""Run what is stale, several stages at once, each as `dvc repro --single-item` does.

DVC says what there is, what is stale and what needs what. A stage that fails is told at its place, and what does not
need it goes on. Ctrl-C and SIGTERM reach every stage, which writes its checkpoint. What stages print goes to
.scratch/logs/. Plain `dvc repro` does the same, one stage after the other.

With `--executor slurm` each stage is a job: Slurm's `srun` hands it over, waits, and passes Ctrl-C on; five minutes
before its time is up a stage gets the same. What every job asks for stands in srun's own variables, such as
SLURM_PARTITION, SLURM_GPUS, SLURM_TIMELIMIT; its cores in SLURM_CPUS_PER_TASK (1 unless given). Nodes need this folder
at the same path.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ebjdat import command, files
from ebjdat.config import Params, load_params
from ebjdat.errors import UserError
from ebjdat.progress import duration
from stages import require

require("dvc")

HEAP = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""glibc, for every stage: keep freed memory. Its default gives every tensor above 128 KiB back to the system and
fetches it page by page again, a tenth to a quarter of a stage's time on small images. No number changes."""
MEMORY = 1.5 * 2**30
"""Free bytes asked for per stage that runs at once; on small images a stage takes about half of it."""
ELSEWHERE = "benchmarks/results/repro-{profile}.json"
"""What `make repro` took where its committed times were measured."""
GUESSES = {"train": 100.0, "autoattack": 100.0}
"""Seconds by kind where nothing like it has run anywhere, as on digits."""
WHOLE = "all"
"""Under this name: how long the whole pipeline took where nothing of it had run before."""
QUIET_SECONDS = 30.0
"""Time between two lines of a log; a terminal has one line that is rewritten."""
BUSY_SECONDS = 9.0
"""Time between two lines about another DVC that is waited for."""
SLURM = ("srun", "--disable-status", "--ntasks=1", "--signal=INT@300")
"""What comes before a stage's command where its executor is Slurm."""


def plan(targets: Sequence[str]) -> dict[str, set[str]]:
    """What is stale and what needs something stale, and which of these each waits for.

    Another DVC in this repository is waited for: the stages of a runner that was killed go on to their end.

    Args:
        targets: stages (`clean-baseline@pgd_at-0`, in short `clean@pgd_at-0`), or their kind for all models, and with
            them what they need. Empty: everything.

    Raises:
        UserError: DVC cannot read the pipeline, or a target is no stage.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.rwlock import RWLockFileCorruptedError

    told = -math.inf
    while True:
        try:
            graph, changed = _graph()
            break
        except LockError as error:
            if time.monotonic() - told >= BUSY_SECONDS:
                told = time.monotonic()
                print("waiting:", " ".join(str(error).split()), file=sys.stderr, flush=True)
            time.sleep(1.0)
        except RWLockFileCorruptedError:
            lock = Path(".dvc", "tmp", "rwlock")
            raise UserError(f"{lock} is damaged: a DVC was killed; delete it once no DVC runs here") from None
        except DvcException as error:
            raise UserError(f"DVC cannot say what is stale: {error}") from None
    chosen = set() if targets else set(graph)
    for target in targets:
        named = {name for name in graph if target in (name, kind(name), _short(name))}
        if not named:
            raise UserError(f"{target} is no stage; known: {', '.join(sorted({kind(name) for name in graph}))}")
        chosen |= named.union(*(nx.descendants(graph, name) for name in named))
    stale = changed.union(*(nx.ancestors(graph, name) for name in changed)) & chosen
    return {name: set(graph.successors(name)) & stale for name in graph if name in stale}


def _graph() -> tuple[Any, set[str]]:
    """All stages by name, with edges to what each needs, and those that DVC calls changed."""
    import networkx as nx
    from dvc.repo import Repo

    with Repo() as repo:
        graph = nx.relabel_nodes(repo.index.graph, lambda stage: stage.addressing)
        return graph, set(repo.status()) & set(graph)


def kind(name: str) -> str:
    """``clean`` of ``clean@ebjdat-jempp-0``, of ``clean-baseline@pgd_at-0`` and of ``clean-source@undefended-0``."""
    return name.split("@")[0].removesuffix("-baseline").removesuffix("-source")


class Times:
    """Seconds that each stage of a profile took last, kept in .scratch/times/, and those measured elsewhere."""

    def __init__(self, profile: str) -> None:
        self._path = files.scratch("times", profile, "repro.json")
        self._seconds: dict[str, float] = files.read_json(self._path) if self._path.is_file() else {}
        measured = Path(ELSEWHERE.format(profile=profile))
        rows = files.read_json(measured)["stages"] if measured.is_file() else []
        self._elsewhere = {f"{row['stage']}@{row['model']}-{row['seed']}": row["seconds"] for row in rows}

    def is_new(self, name: str) -> bool:
        """Whether nothing of a stage's kind has run here."""
        return not _alike(name, self._seconds)

    def of(self, name: str) -> float | None:
        """Expected seconds: the last time here, else the mean of its kind, here or elsewhere; None: nobody knows."""
        for seconds in (self._seconds, self._elsewhere):
            if alike := _alike(name, seconds):
                return seconds.get(name, seconds.get(_short(name), sum(alike) / len(alike)))
        return None

    def put(self, name: str, seconds: float) -> None:
        """Keep the time of a stage that succeeded."""
        self._seconds[name] = round(seconds, 1)
        files.write_json(self._path, self._seconds)


def _short(name: str) -> str:
    """``clean@pgd_at-0`` of ``clean-baseline@pgd_at-0``."""
    return "@".join([kind(name), *name.split("@")[1:]])


def _alike(name: str, seconds: Mapping[str, float]) -> list[float]:
    return [value for other, value in seconds.items() if kind(other) == kind(name)]


def expected(stages: Mapping[str, set[str]], times: Times) -> dict[str, float]:
    """Seconds of each stage, guessed where nobody knows."""
    return {name: times.of(name) or GUESSES.get(kind(name), 10.0) for name in stages}


def paths(stages: Mapping[str, set[str]], seconds: Mapping[str, float]) -> dict[str, float]:
    """Expected seconds from the start of each stage to the end of the longest chain of stages that need it."""
    after = {name: [other for other, needs in stages.items() if name in needs] for name in stages}

    @functools.cache
    def path(name: str) -> float:
        return seconds[name] + max(map(path, after[name]), default=0.0)

    return {name: path(name) for name in stages}


def following(waiting: Mapping[str, set[str]], longest: Mapping[str, float], free: int) -> list[str]:
    """What begins next where ``free`` more stages may run: nothing that waits for a stage, longest chains first."""
    ready = [name for name, needs in waiting.items() if not needs]
    return sorted(ready, key=longest.__getitem__, reverse=True)[:free]


def makespan(stages: Mapping[str, set[str]], seconds: Mapping[str, float], jobs: int) -> float:
    """Expected seconds of a plan with at most ``jobs`` stages at once, by the runner's own choice of what is next."""
    waiting, longest = {name: set(needs) for name, needs in stages.items()}, paths(stages, seconds)
    running: list[tuple[float, str]] = []
    now = 0.0
    while waiting or running:
        for name in following(waiting, longest, jobs - len(running)):
            del waiting[name]
            heapq.heappush(running, (now + seconds[name], name))
        now, done = heapq.heappop(running)
        for needs in waiting.values():
            needs.discard(done)
    return now


class Runner:
    """Runs a plan: at most ``jobs`` stages at once, each with an equal share of the cores, longest chains first."""

    def __init__(self, stages: dict[str, set[str]], jobs: int, times: Times, *, slurm: bool = False) -> None:
        self.waiting = {name: set(needs) for name, needs in stages.items()}
        self._longest = paths(stages, expected(stages, times))
        self.running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        self.took: dict[str, float] = {}
        self.failed: list[str] = []
        self.stopped = 0
        self._passed_on = 0
        self._jobs, self._times, self._slurm, self._terminal = jobs, times, slurm, sys.stderr.isatty()
        self._started = self._told = time.monotonic()

    def run(self) -> None:
        """Run until nothing can be started any more."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self._start() or self.running:
                self._pass_on()
                self._tell()
                time.sleep(0.1)
                self._collect()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._print("")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # A stage that is just being started is in no list yet: the loop passes the signal on.
        self.stopped += 1

    def _pass_on(self) -> None:
        """SIGINT to every running DVC and its stage: DVC waits, the stage writes a checkpoint."""
        if self.stopped > self._passed_on:
            self._passed_on = self.stopped
            for process, _ in self.running.values():
                os.killpg(process.pid, signal.SIGINT)

    def _start(self) -> bool:
        """Begin what is next; whether anything could begin."""
        if self.stopped:
            return False
        begun = following(self.waiting, self._longest, self._jobs - len(self.running))
        share = str(max(1, command.processors() // self._jobs))  # of threads, and of the processes of AutoAttack
        if self._slurm:
            share = os.environ.get("SLURM_CPUS_PER_TASK", "1")
        shared = HEAP | {"OMP_NUM_THREADS": share} | os.environ | {"EBJDAT_CORES": share}
        shared["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        for name in begun:
            del self.waiting[name]
            with log_of(name).open("wb") as log:
                through = [*SLURM, f"--cpus-per-task={share}", f"--job-name={name}"] if self._slurm else []
                line = [*through, sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]
                process = subprocess.Popen(line, stdout=log, stderr=log, env=shared, start_new_session=True)
            self.running[name] = process, time.monotonic()
        return bool(begun)

    def _collect(self) -> None:
        for name, (process, started) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            if process.returncode == 0:
                self.took[name] = time.monotonic() - started
                self._times.put(name, self.took[name])
                for needs in self.waiting.values():
                    needs.discard(name)
            else:
                self.failed.append(name)
                last = log_of(name).read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
                word = "was stopped" if self.stopped else "failed"
                told = "\n    ".join([f"{name} {word}:", *last, f"({log_of(name)})"])
                self._print(told + "\n")

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told < (0.5 if self._terminal else QUIET_SECONDS):
            return
        self._told = now
        names = ", ".join(f"{name} {duration(now - started)}" for name, (_, started) in self.running.items())
        left = len(self.waiting) + len(self.running)
        doing = "stopping, stages write their checkpoints" if self.stopped else "running"
        line = f"{len(self.took)} done, {left} left, {duration(now - self._started)}; {doing}: {names}"
        self._print(line[: shutil.get_terminal_size().columns - 1] if self._terminal else f"{line}\n")

    def _print(self, text: str) -> None:
        print(("\r\x1b[K" if self._terminal else "") + text, end="", file=sys.stderr, flush=True)


def log_of(name: str) -> Path:
    """Where a stage's output goes."""
    path = files.scratch("logs", f"{name}.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def jobs_for(stages: int, params: Params) -> int:
    """How many stages run at once: one per core on a CPU, as far as memory goes; one where a stage has all devices."""
    import psutil

    gpu = params.device == "cuda" or (params.device == "auto" and shutil.which("nvidia-smi"))
    if gpu or params.devices not in ("auto", 1):
        return 1
    return max(1, min(command.processors(), int(psutil.virtual_memory().available / MEMORY), stages))


def repro(targets: Sequence[str] = (), jobs: int | None = None, *, dry_run: bool = False, slurm: bool = False) -> None:
    """Run what is stale among ``targets`` and their needs; exits with 1 where a stage failed, 130 where stopped."""
    if slurm and not shutil.which(SLURM[0]):
        raise UserError("--executor slurm: srun is not here; run it where Slurm's commands are, such as a login node")
    params, began = load_params(), time.monotonic()
    if sys.stderr.isatty():
        print("asking DVC what is stale", file=sys.stderr, flush=True)
    stages, times = plan(targets), Times(params.profile)
    if not stages:
        print("nothing is stale")
        return
    jobs = jobs or (len(stages) if slurm else jobs_for(len(stages), params))
    new = sum(map(times.is_new, stages))
    unknown = f", {new} of them for the first time here" if new else ""
    known = any(times.of(name) for name in stages)
    about = f": about {duration(makespan(stages, expected(stages, times), jobs))}" if known else ""
    print(f"{len(stages)} stages, {jobs} at once{unknown}{about}", flush=True)
    if dry_run:
        print("\n".join(stages))
        return
    runner = Runner(stages, jobs, times, slurm=slurm)
    runner.run()
    if not targets and new == len(runner.took) == len(stages):
        times.put(WHOLE, time.monotonic() - began)
    longest = sorted(runner.took.items(), key=lambda item: item[1], reverse=True)[:5]
    print(
        f"{len(runner.took)} of {len(stages)} stages done in {duration(time.monotonic() - began)}"
        + (f", {len(runner.failed)} failed ({', '.join(runner.failed)})" if runner.failed else "")
        + (f", {len(runner.waiting)} not begun" if runner.waiting else "")
        + ("; longest: " if longest else "")
        + ", ".join(f"{name} {duration(seconds)}" for name, seconds in longest)
    )
    if runner.stopped or runner.failed:
        sys.exit(command.INTERRUPTED if runner.stopped else 1)


def read_choices(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The command line, and what it says to :func:`repro` about how stages run."""
    parser.add_argument("--jobs", type=int, help="stages at once; default: one per core, one with a GPU, all on Slurm")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where stages run")
    parser.add_argument("--dry-run", action="store_true", help="print what would run")
    arguments = parser.parse_args()
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"--jobs: expected at least 1, got {arguments.jobs}")
    how = {"jobs": arguments.jobs, "dry_run": arguments.dry_run, "slurm": arguments.executor == "slurm"}
    return arguments, how


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help="stages, such as `clean` or `train@ebjdat-jempp-0`; default: all")
    arguments, how = read_choices(parser)
    repro(arguments.targets, **how)


if __name__ == "__main__":
    command.run(main)
