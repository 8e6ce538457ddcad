"""Plays a case: starts its tasks, watches their progress, diagnoses a stall, and ends the tasks.

This process does not import TensorFlow, so that it cannot hang with the job.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tfdist.cluster.local import LocalCluster
from tfdist.cluster.processes import Surroundings
from tfdist.cluster.shape import Shape
from tfdist.deadline import Deadline
from tfdist.diagnosis.collect import evidence_of, view_job
from tfdist.diagnosis.evidence import Evidence
from tfdist.diagnosis.kernel import is_busy
from tfdist.diagnosis.rules import diagnose
from tfdist.diagnosis.stall import Signs, StallMonitor
from tfdist.diagnosis.verdict import Name, Verdict
from tfdist.errors import ClusterError, ConfigError
from tfdist.repro.case import Case, Part, event_file
from tfdist.runs import events as notes
from tfdist.runs.events import noted
from tfdist.runs.folder import RunFolder

EVIDENCE_FILE = "evidence.json"
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}
# With "false", a call to a task that is gone waits. The default is "use_caller".
_BARE = {"GRPC_FAIL_FAST": "false"}
# A fixed job must end, however long that takes on a busy machine.
_FIXED_PATIENCE = 3
# How many times its deadline a job gets that makes progress on a machine with other load.
_BUSY_PATIENCE = 5


@dataclass(frozen=True)
class Played:
    """One run of a case and its verdict.

    Attributes:
        case: the case.
        fixed: True if it was played with the fix.
        seed: of its random numbers.
        verdict: the last verdict.
        evidence: what the verdict was made from.
        slow: earlier verdicts, of moments when the job was only slow.
        seconds: duration of the run, with the start and the end of all processes.
        diagnosed_secs: from the start of the run to the verdict, or to the end of the job.
        reported_after_secs: from the last progress to the verdict; None if the job ended.
        folder: everything that the tasks left.
    """

    case: Case
    fixed: bool
    seed: int
    verdict: Verdict
    evidence: Evidence
    slow: tuple[Verdict, ...]
    seconds: float
    diagnosed_secs: float
    reported_after_secs: float | None
    folder: Path

    @property
    def hangs(self) -> bool:
        """True if the job hung and was ended by the lab."""
        return self.reported_after_secs is not None and not self.verdict.name.is_slow

    @property
    def as_expected(self) -> bool:
        """True if the verdict belongs to the case; that of a fixed job must be FINE.

        A fixed job that lost a task may also have read examples twice.
        """
        if not self.fixed:
            return self.verdict.name in self.case.expects
        lost = any(True for _ in _faults(RunFolder(self.folder)))
        fine = (Name.FINE, Name.DUPLICATES) if lost else (Name.FINE,)
        return self.verdict.name in fine and not self.evidence.missing


class _Diagnosed(Exception):
    """Ends a run that has its verdict."""


class Stage(Protocol):
    """Where the tasks of a case run, and the faults that can happen to them there."""

    def cluster(self, shape: Shape, surroundings: Surroundings) -> LocalCluster:
        """Makes the cluster; each task is a process."""

    def do(self, cluster: LocalCluster, what: str, task: str) -> None:
        """Carries out a fault that a task asked for."""

    def look(self) -> None:
        """Called in each round of the watch."""


class OneMachine:
    """This machine; the faults kill, pause, resume and restart a task."""

    def cluster(self, shape: Shape, surroundings: Surroundings) -> LocalCluster:
        """Makes a cluster on loopback."""
        return LocalCluster(shape, "processes", surroundings, grace=0)  # nothing to save

    def do(self, cluster: LocalCluster, what: str, task: str) -> None:
        """Carries out the fault; raises ConfigError if it is none of the four."""
        acts = {
            "kill": cluster.kill,
            "pause": cluster.pause,
            "resume": cluster.resume,
            "restart": cluster.restart,
        }
        if what not in acts:
            raise ConfigError("fault", what, f"must be one of {', '.join(acts)}")
        acts[what](task)

    def look(self) -> None:
        """Does nothing."""


class Lab:
    """Plays cases; several threads may call it at the same time.

    Args:
        log: called with one line for each event of a run.
        stage: where the tasks run; this machine by default.
    """

    def __init__(
        self, log: Callable[[str], None] = lambda line: None, stage: Stage | None = None
    ) -> None:
        self.log, self._stage = log, stage or OneMachine()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends all runs soon; the calls that wait for them raise KeyboardInterrupt."""
        self._stopped.set()

    def play(self, case: Case, *, fixed: bool, seed: int, folder: Path) -> Played:
        """Plays a case once; blocks until its processes are gone, soon after `deadline_secs`.

        On a machine with other load, a job that makes progress gets five times as long.

        Args:
            case: the case.
            fixed: True to play it with the fix.
            seed: of its random numbers.
            folder: for everything that the tasks leave; new or empty.
        """
        started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        run = RunFolder(folder)
        environment = _QUIET if fixed else _QUIET | _BARE
        cluster = self._stage.cluster(case.shape, Surroundings(environment, run))
        what = f"{case.name}{' --fixed' if fixed else ''} --seed {seed}"
        run.create(cluster.tasks, cluster.trainers, script=what)
        watch = _Watch(case, fixed, run, cluster, self._stage, self.log, self._stopped)
        over = True
        try:
            with cluster:
                cluster.run(Part(case, fixed, seed, str(folder)), watch=watch)
        except _Diagnosed:
            over = False
        except ClusterError as error:
            self.log(str(error).splitlines()[0])
        if over:  # it may have ended while it was diagnosed
            watch.diagnose_end()
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
            reported_after_secs=watch.reported_after_secs,
            folder=folder,
        )


class _Watch:
    """Watches a run: carries out the faults that its tasks ask for, and diagnoses a stall."""

    def __init__(
        self,
        case: Case,
        fixed: bool,
        run: RunFolder,
        cluster: LocalCluster,
        stage: Stage,
        log: Callable[[str], None],
        stopped: threading.Event,
    ) -> None:
        self._stopped = stopped
        stall_secs = case.stall_secs * (_FIXED_PATIENCE if fixed else 1)
        self._monitor = StallMonitor(stall_secs, self._signs, self._diagnose, patience=math.inf)
        self._case, self._fixed, self._run, self._cluster = case, fixed, run, cluster
        self._stage, self._log = stage, log
        self._trainers = [task.name for task in cluster.trainers]
        self._deadline = Deadline(case.deadline_secs)
        self._busy_deadline = Deadline(_BUSY_PATIENCE * case.deadline_secs)
        self._done: set[tuple[str, str, float]] = set()
        self.diagnosed: tuple[Evidence, Verdict] | None = None
        self.diagnosed_at = 0.0
        self.slow: list[Verdict] = []
        self.reported_after_secs: float | None = None

    def __call__(self) -> None:
        if self._stopped.is_set():
            raise KeyboardInterrupt
        self._do_faults()
        self._stage.look()
        for record in self._run.latest():
            if record.ended is not None:
                event_file(self._run.path, f"ended {record.name}").touch()
        is_overdue = self._deadline.expired and (self._busy_deadline.expired or not is_busy())
        found = self._monitor.check(patient=not is_overdue)
        if found is None:
            if is_overdue:
                self._diagnose_overdue()
                raise _Diagnosed
            return
        if found.gets_time:
            self._log(f"only slow: {found.verdict}")
            self.slow.append(found.verdict)
            if self._fixed or found.verdict.name not in self._case.expects:
                return
        self.diagnosed, self.reported_after_secs = (
            (found.details, found.verdict),
            found.stall.seconds,
        )
        self.diagnosed_at = time.monotonic()
        raise _Diagnosed

    def diagnose_end(self) -> None:
        """Diagnoses a job that has ended."""
        verdict, evidence = self._diagnose(0.0, over=True)
        self.diagnosed, self.reported_after_secs = (evidence, verdict), None
        self.diagnosed_at = time.monotonic()

    def _diagnose(self, seconds: float, *, over: bool = False) -> tuple[Verdict, Evidence]:
        evidence = collect_evidence(
            self._run, self._trainers, seconds=seconds, over=over, expected=self._case.examples
        )
        return diagnose(evidence), evidence

    def _diagnose_overdue(self) -> None:
        """Diagnoses a job that is past its deadline but still makes progress."""
        seconds = self._monitor.look().seconds
        _, evidence = self._diagnose(seconds)
        living = tuple(task.name for task in evidence.tasks if task.trains and task.alive)
        reason = f"past its deadline of {self._case.deadline_secs:g} s, but still making progress"
        self.diagnosed = evidence, Verdict(Name.SLOW, living, (reason,))
        self.diagnosed_at, self.reported_after_secs = time.monotonic(), seconds

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
                self._log(f"{what} {task}")
                event_file(self._run.path, f"{what} {task}").touch()


def _faults(run: RunFolder) -> list[tuple[str, str, float]]:
    """The faults that the tasks of a run have asked for, in the order of time."""
    found = [
        (note.values["what"], note.values["task"], note.at)
        for one in noted(run).values()
        for note in one.all(notes.FAULT)
    ]
    return sorted(found, key=lambda fault: fault[2])


def collect_evidence(
    run: RunFolder, trainers: Sequence[str], *, seconds: float, over: bool, expected: int | None
) -> Evidence:
    """The evidence of a run of the lab; blocks for some seconds unless the run is over.

    Args:
        run: that goes on, or is over.
        trainers: names of the tasks that train.
        seconds: since the last progress.
        over: whether the run is over.
        expected: number of examples to read.
    """
    # Imported here: numpy starts threads, and a process with threads cannot be isolated.
    from tfdist.data.ledger import Ledger

    job = replace(view_job(run, run.about.tasks, sampled=True), runs=not over)
    ledger, said = Ledger(), noted(run)
    for note in (note for one in said.values() for note in one.all(notes.STEP)):
        ledger.add(note.values["read"])
    audit = ledger.audit(expected) if expected is not None else None
    steps = [
        about["global_step"] for one in said.values() if "global_step" in (about := one.about())
    ]
    saved = [note for one in said.values() for note in one.all(notes.SAVED)]
    return replace(
        evidence_of(job, trainers, seconds=seconds),
        expected=expected,
        missing=audit.missing if audit else (),
        duplicates=audit.duplicates if audit else (),
        step=max(steps, default=None),
        saved_step=max(saved, key=lambda note: note.at).values["step"] if saved else None,
    )
