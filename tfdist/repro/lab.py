"""Plays a case: starts its tasks, sees when nobody gets on any more, judges, and ends them.

The process that does so has no TensorFlow in it, so that nothing that hangs there holds it up.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tfdist.cluster.local import LocalCluster
from tfdist.cluster.processes import Surroundings
from tfdist.cluster.run_folder import RunFolder
from tfdist.deadline import Deadline
from tfdist.errors import ClusterError, ConfigError, RunTimeout, TaskFailed
from tfdist.evidence import Evidence
from tfdist.repro import notes
from tfdist.repro.actor import event_file
from tfdist.repro.case import Case, Part
from tfdist.repro.look import look, noted
from tfdist.stall import Signs, StallWatch
from tfdist.verdict import Name, Verdict, judge

EVIDENCE_FILE = "evidence.json"
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}
# As TensorFlow has it, where tfdist has "use_caller": who calls a task that has gone waits for it.
_BARE = {"GRPC_FAIL_FAST": "false"}


@dataclass(frozen=True)
class Played:
    """What came of a case.

    Attributes:
        case: that was played.
        cured: whether with the cure.
        seed: of its random numbers.
        verdict: on it.
        evidence: that the verdict is made of.
        slow: the verdicts before, of moments in which it was only slow.
        seconds: that it took, with the start and the end of all processes.
        told_secs: from the last time that anybody got on to the verdict; None if it has ended.
        folder: with all that its tasks have left.
    """

    case: Case
    cured: bool
    seed: int
    verdict: Verdict
    evidence: Evidence
    slow: tuple[Verdict, ...]
    seconds: float
    told_secs: float | None
    folder: Path

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is one that belongs to the case; of a cured one, that it is fine.

        A cured job may visit an example twice only where a task was lost, and says so.
        """
        if not self.cured:
            return self.verdict.name in self.case.expects
        lost = any(True for _ in _faults(RunFolder(self.folder)))
        fine = (Name.FINE, Name.DUPLICATES) if lost else (Name.FINE,)
        return self.verdict.name in fine and not self.evidence.missing


class _Judged(Exception):
    """Ends a run; it has a verdict."""


def play(
    case: Case,
    *,
    cured: bool,
    seed: int,
    folder: Path | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Played:
    """Plays it once; blocks until all its processes are gone, `deadline_secs` and some at most.

    Args:
        case: to be played.
        cured: whether with the cure.
        seed: of its random numbers.
        folder: for what the tasks leave, made anew; None makes a temporary one.
        told: gets a line for what happens.
    """
    started = time.monotonic()
    path = folder or Path(tempfile.mkdtemp(prefix="tfdist-repro-"))
    path.mkdir(parents=True, exist_ok=True)
    run = RunFolder(path)
    environment = _QUIET if cured else _QUIET | _BARE
    cluster = LocalCluster(case.shape, "processes", Surroundings(environment, run))
    run.create(cluster.tasks, {"case": case.name, "cured": cured, "seed": seed})
    watch = _Watch(case, cured, run, cluster, told)
    try:
        with cluster:
            cluster.run(Part(case, cured, seed, str(path)), watch=watch)
    except _Judged:
        pass
    except (TaskFailed, RunTimeout) as error:
        told(str(error).splitlines()[0])
    if watch.verdict is None:
        watch.judge(0.0, over=True)
    # That was just done.
    assert watch.verdict is not None
    assert watch.evidence is not None
    (path / EVIDENCE_FILE).write_text(watch.evidence.to_json(), "utf-8")
    seconds = time.monotonic() - started
    return Played(
        case,
        cured,
        seed,
        watch.verdict,
        watch.evidence,
        tuple(watch.slow),
        seconds,
        watch.told_secs,
        path,
    )


def forget(played: Played) -> None:
    """Removes the folder of a run."""
    shutil.rmtree(played.folder)


class _Watch:
    """Is called while a run goes on: does the faults that it wants, and judges it at the end."""

    def __init__(
        self,
        case: Case,
        cured: bool,
        run: RunFolder,
        cluster: LocalCluster,
        told: Callable[[str], None],
    ) -> None:
        self._case, self._cured, self._run, self._cluster = case, cured, run, cluster
        self._told = told
        self._trainers = [task.name for task in cluster.trainers]
        self._deadline = Deadline(case.deadline_secs)
        self._stall = StallWatch()
        self._done: set[tuple[str, str, float]] = set()
        self.verdict: Verdict | None = None
        self.evidence: Evidence | None = None
        self.slow: list[Verdict] = []
        self.told_secs: float | None = None

    def __call__(self) -> None:
        self._do_faults()
        for life in self._run.latest():
            if life.ended is not None:
                event_file(self._run.path, f"ended {life.name}").touch()
        standstill = self._stall.look(self._signs())
        if standstill.seconds < self._case.stall_secs and not self._deadline.expired:
            return
        self.judge(standstill.seconds, over=False)
        # It may have got on in the moments that the look has taken.
        if self._stall.look(self._signs()).seconds < standstill.seconds:
            self.verdict = None
            return
        assert self.verdict is not None
        if self.verdict.name.is_slow and not self._deadline.expired:
            self._told(f"only slow: {self.verdict}")
            self.slow.append(self.verdict)
            if self._cured or self.verdict.name not in self._case.expects:
                self.verdict, self._stall = None, StallWatch()
                return
        self.told_secs = self._stall.look(self._signs()).seconds
        raise _Judged

    def judge(self, seconds: float, *, over: bool) -> None:
        """Sets `evidence` and `verdict`."""
        self.evidence = look(
            self._run,
            self._trainers,
            seconds=seconds,
            over=over,
            expected=self._case.examples,
        )
        self.verdict = judge(self.evidence)

    def _signs(self) -> dict[str, Signs]:
        said = noted(self._run)
        return {
            life.name: Signs(
                attempt=life.attempt,
                ended=life.ended is not None,
                progress=str(sum(map(len, said[life.name].lives))) if life.name in said else None,
            )
            for life in self._run.latest()
        }

    def _do_faults(self) -> None:
        for what, task, at in _faults(self._run):
            if (what, task, at) not in self._done:
                self._done.add((what, task, at))
                acts = {
                    "kill": self._cluster.kill,
                    "pause": self._cluster.pause,
                    "resume": self._cluster.resume,
                    "restart": self._cluster.restart,
                }
                if what not in acts:
                    raise ConfigError("fault", what, f"one of {', '.join(acts)}")
                try:
                    acts[what](task)
                except ClusterError as error:
                    self._told(str(error))
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
