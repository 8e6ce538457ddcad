"""Plays a case: starts its tasks, sees when nobody gets on any more, diagnoses, and ends them.

The process that does so has no TensorFlow in it, so that nothing that hangs there holds it up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tfdist.cluster.local import LocalCluster
from tfdist.cluster.processes import Surroundings
from tfdist.cluster.shape import Shape
from tfdist.deadline import Deadline
from tfdist.diagnosis.evidence import Evidence
from tfdist.diagnosis.rules import diagnose
from tfdist.diagnosis.stall_clock import Signs, StallWatch
from tfdist.diagnosis.verdict import Name, Verdict
from tfdist.errors import ClusterError, ConfigError
from tfdist.repro.actor import event_file
from tfdist.repro.case import Case, Part
from tfdist.repro.look import look
from tfdist.runs import events as notes
from tfdist.runs.events import noted
from tfdist.runs.folder import RunFolder

EVIDENCE_FILE = "evidence.json"
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}
# As TensorFlow has it, where tfdist has "use_caller": who calls a task that has gone waits for it.
_BARE = {"GRPC_FAIL_FAST": "false"}
# A fixed job has to end; on a busy machine that may take its time.
_CURED_PATIENCE = 3


@dataclass(frozen=True)
class Played:
    """What came of a case.

    Attributes:
        case: that was played.
        fixed: whether with the fix.
        seed: of its random numbers.
        verdict: on it.
        evidence: that the verdict is made of.
        slow: the verdicts before, of moments in which it was only slow.
        seconds: that it took, with the start and the end of all processes.
        diagnosed_secs: from its begin to the verdict, or to its end.
        told_secs: from the last time that anybody got on to the verdict; None if it has ended.
        folder: with all that its tasks have left.
    """

    case: Case
    fixed: bool
    seed: int
    verdict: Verdict
    evidence: Evidence
    slow: tuple[Verdict, ...]
    seconds: float
    diagnosed_secs: float
    told_secs: float | None
    folder: Path

    @property
    def hangs(self) -> bool:
        """Whether it stood still for good, and had to be ended."""
        return self.told_secs is not None and not self.verdict.name.is_slow

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is one that belongs to the case; of a fixed one, that it is fine.

        A fixed job may read an example twice only where a task was lost, and says so.
        """
        if not self.fixed:
            return self.verdict.name in self.case.expects
        lost = any(True for _ in _faults(RunFolder(self.folder)))
        fine = (Name.FINE, Name.DUPLICATES) if lost else (Name.FINE,)
        return self.verdict.name in fine and not self.evidence.missing


class _Judged(Exception):
    """Ends a run; it has a verdict."""


class Stage(Protocol):
    """Where the tasks of a case live, and what can happen to them there."""

    def cluster(self, shape: Shape, surroundings: Surroundings) -> LocalCluster:
        """The tasks, each in a process of its own."""

    def do(self, cluster: LocalCluster, what: str, task: str) -> None:
        """What a task has asked for: a fault, or its end."""

    def look(self) -> None:
        """Is called each moment."""


class OneMachine:
    """This one: tasks are killed, paused, resumed and restarted."""

    def cluster(self, shape: Shape, surroundings: Surroundings) -> LocalCluster:
        """On loopback."""
        return LocalCluster(shape, "processes", surroundings, grace=0)  # nothing to save

    def do(self, cluster: LocalCluster, what: str, task: str) -> None:
        """Raises ConfigError if it is none of these."""
        acts = {
            "kill": cluster.kill,
            "pause": cluster.pause,
            "resume": cluster.resume,
            "restart": cluster.restart,
        }
        if what not in acts:
            raise ConfigError("fault", what, f"one of {', '.join(acts)}")
        acts[what](task)

    def look(self) -> None:
        """Nothing happens by itself."""


class Plays:
    """Plays cases, perhaps several at the same time, in threads.

    Args:
        told: gets a line for what happens.
        stage: where.
    """

    def __init__(
        self, told: Callable[[str], None] = lambda line: None, stage: Stage | None = None
    ) -> None:
        self._told, self._stage = told, stage or OneMachine()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends what goes on, in a moment; whoever waits for it gets KeyboardInterrupt."""
        self._stopped.set()

    def __call__(self, case: Case, *, fixed: bool, seed: int, folder: Path) -> Played:
        """Plays it once; blocks until its processes are gone, `deadline_secs` and some at most.

        Args:
            case: to be played.
            fixed: whether with the fix.
            seed: of its random numbers.
            folder: for what the tasks leave; a new one, or empty.
        """
        started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        run = RunFolder(folder)
        environment = _QUIET if fixed else _QUIET | _BARE
        cluster = self._stage.cluster(case.shape, Surroundings(environment, run))
        about = {"case": case.name, "fixed": fixed, "seed": seed, "monotonic": started}
        run.create(cluster.tasks, cluster.trainers, about)
        watch = _Watch(case, fixed, run, cluster, self._stage, self._told, self._stopped)
        over = True
        try:
            with cluster:
                cluster.run(Part(case, fixed, seed, str(folder)), watch=watch)
        except _Judged:
            over = False
        except ClusterError as error:
            self._told(str(error).splitlines()[0])
        if over:  # also where it was diagnosed, and has ended while that was done
            watch.told_secs = None
            watch.diagnose(0.0, over=True)
        assert watch.diagnosed is not None
        evidence, verdict = watch.diagnosed
        (folder / EVIDENCE_FILE).write_text(evidence.to_json(), "utf-8")
        return Played(
            case,
            fixed,
            seed,
            verdict,
            evidence,
            tuple(watch.slow),
            seconds=time.monotonic() - started,
            diagnosed_secs=watch.diagnosed_at - started,
            told_secs=watch.told_secs,
            folder=folder,
        )


class _Watch:
    """Is called while a run goes on: does the faults that it wants, and diagnoses it at the end."""

    def __init__(
        self,
        case: Case,
        fixed: bool,
        run: RunFolder,
        cluster: LocalCluster,
        stage: Stage,
        told: Callable[[str], None],
        stopped: threading.Event,
    ) -> None:
        self._stopped = stopped
        self._stall_secs = case.stall_secs * (_CURED_PATIENCE if fixed else 1)
        self._case, self._fixed, self._run, self._cluster = case, fixed, run, cluster
        self._stage, self._told = stage, told
        self._trainers = [task.name for task in cluster.trainers]
        self._deadline = Deadline(case.deadline_secs)
        self._stall = StallWatch()
        self._done: set[tuple[str, str, float]] = set()
        self.diagnosed: tuple[Evidence, Verdict] | None = None
        self.diagnosed_at = 0.0
        self.slow: list[Verdict] = []
        self.told_secs: float | None = None

    def __call__(self) -> None:
        if self._stopped.is_set():
            raise KeyboardInterrupt
        self._do_faults()
        self._stage.look()
        for record in self._run.latest():
            if record.ended is not None:
                event_file(self._run.path, f"ended {record.name}").touch()
        stall = self._stall.look(self._signs())
        if stall.seconds < self._stall_secs:
            if self._deadline.expired:
                self._diagnose_overdue(stall.seconds)
                raise _Judged
            return
        verdict = self.diagnose(stall.seconds, over=False)
        # It may have got on in the moments that the look has taken.
        if self._stall.look(self._signs()).seconds < stall.seconds:
            self.diagnosed = None
            return
        if verdict.name.is_slow and not self._deadline.expired:
            self._told(f"only slow: {verdict}")
            self.slow.append(verdict)
            if self._fixed or verdict.name not in self._case.expects:
                self.diagnosed, self._stall = None, StallWatch()
                return
        self.told_secs = self._stall.look(self._signs()).seconds
        raise _Judged

    def diagnose(self, seconds: float, *, over: bool) -> Verdict:
        """Sets `diagnosed`, and when."""
        evidence = self._look(seconds, over)
        self.diagnosed, self.diagnosed_at = (evidence, diagnose(evidence)), time.monotonic()
        return self.diagnosed[1]

    def _diagnose_overdue(self, seconds: float) -> None:
        """It gets on, and has not ended in its time: it hangs in nothing."""
        evidence = self._look(seconds, over=False)
        living = tuple(task.name for task in evidence.tasks if task.trains and task.alive)
        told = f"has not ended after {self._deadline.elapsed:.0f} s, and gets on"
        self.diagnosed = evidence, Verdict(Name.SLOW, living, (told,))
        self.diagnosed_at, self.told_secs = time.monotonic(), seconds

    def _look(self, seconds: float, over: bool) -> Evidence:
        return look(
            self._run, self._trainers, seconds=seconds, over=over, expected=self._case.examples
        )

    def _signs(self) -> dict[str, Signs]:
        said = noted(self._run)
        return {
            record.name: Signs(
                attempt=record.attempt,
                ended=record.ended is not None,
                progress=str(sum(map(len, said[record.name].attempts)))
                if record.name in said
                else None,
            )
            for record in self._run.latest()
        }

    def _do_faults(self) -> None:
        for what, task, at in _faults(self._run):
            if (what, task, at) not in self._done:
                self._done.add((what, task, at))
                self._stage.do(self._cluster, what, task)
                self._told(f"{what} {task}")
                event_file(self._run.path, f"{what} {task}").touch()


def _faults(run: RunFolder) -> list[tuple[str, str, float]]:
    """Those that the tasks of a run have asked for, in the order of time."""
    found = [
        (note.values["what"], note.values["task"], note.at)
        for one in noted(run).values()
        for note in one.all(notes.FAULT)
    ]
    return sorted(found, key=lambda fault: fault[2])
