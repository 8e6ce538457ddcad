"""The verdict on a job: what is wrong, which tasks cause it, and the reasons."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace


class Name(str, enum.Enum):
    """The kinds of verdicts; docs/hang.md explains each."""

    # The job hangs.
    INPUT_STALLED = "INPUT_STALLED"
    STRANDED_AT_BARRIER = "STRANDED_AT_BARRIER"
    PEER_DEAD = "PEER_DEAD"
    PEER_STOPPED = "PEER_STOPPED"
    PEER_UNREACHABLE = "PEER_UNREACHABLE"
    DEAD_DEPENDENCY = "DEAD_DEPENDENCY"
    NOT_INITIALIZED = "NOT_INITIALIZED"
    THREADS_EXHAUSTED = "THREADS_EXHAUSTED"
    DEADLOCK = "DEADLOCK"
    STUCK_IN_CALL = "STUCK_IN_CALL"
    UNKNOWN = "UNKNOWN"
    # The job is slow.
    SLOW = "SLOW"
    SLOW_START = "SLOW_START"
    SLOW_EXIT = "SLOW_EXIT"
    # The job has ended.
    TASK_FAILED = "TASK_FAILED"
    SILENT_TRUNCATION = "SILENT_TRUNCATION"
    DUPLICATES = "DUPLICATES"
    SAVED_TOO_EARLY = "SAVED_TOO_EARLY"
    FINE = "FINE"

    @property
    def is_slow(self) -> bool:
        """Whether the job seems slow and probably continues by itself."""
        return self in (Name.SLOW, Name.SLOW_START, Name.SLOW_EXIT)

    @property
    def is_wrong(self) -> bool:
        """Whether the job needs a repair."""
        return not self.is_slow and self is not Name.FINE

    @property
    def advice(self) -> str:
        """What to do, in one line."""
        return _ADVICE[self]


_ADVICE = {
    Name.INPUT_STALLED: "repair the input, or put a timeout around it; "
    "Split.release() lets another trainer read the split",
    Name.STRANDED_AT_BARRIER: "give every trainer the same number of steps, with endless_batches "
    "and Epoch; or call resign() before a trainer leaves a barrier for good",
    Name.PEER_DEAD: "read the log of the lost task; tfdist run --restart starts it again, and with "
    "a SplitQueue the other trainers take over its work",
    Name.PEER_STOPPED: "resume the process with kill -CONT PID; with a SplitQueue the other "
    "trainers take over its work when its lease ends",
    Name.PEER_UNREACHABLE: "repair the network between these machines, then restart the job",
    Name.DEAD_DEPENDENCY: "give each session device_filters, as tfdist.train.session does, and "
    "place each iterator on its own trainer",
    Name.NOT_INITIALIZED: "make each session with tfdist.train.session, and place the variables "
    "with tfdist.train.device_setter",
    Name.THREADS_EXHAUSTED: "set inter_op_parallelism_threads to the number of workers + 1, or "
    "run each server in a process of its own",
    Name.DEADLOCK: "place what the trainers share on a ps; never block in a function that a "
    "ClusterCoordinator runs",
    Name.STUCK_IN_CALL: "repair what the call waits for, or put a timeout around it",
    Name.UNKNOWN: "read the native stacks of all tasks: tfdist stacks --native",
    Name.SLOW: "look again later: a task that is at the same line then hangs there; if the step "
    "is meant to take so long, note progress in it or raise the timeout",
    Name.SLOW_START: "wait; tfdist.train.session checks more often than TensorFlow whether the "
    "chief has initialized",
    Name.SLOW_EXIT: "wait",
    Name.TASK_FAILED: "read the error of the task",
    Name.SILENT_TRUNCATION: "use endless_batches, with which no error means the end of the input",
    Name.DUPLICATES: "distribute the input with a SplitQueue instead of by worker number",
    Name.SAVED_TOO_EARLY: "save in the action of an Epoch, which runs when all trainers are done",
    Name.FINE: "nothing",
}


class Confidence(str, enum.Enum):
    """How reliable a verdict is."""

    CERTAIN = "certain"
    LIKELY = "likely"
    GUESS = "a guess"


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a job.

    Attributes:
        name: the kind of verdict.
        culprits: names of the tasks that cause it.
        because: what was seen, one sentence each.
        confidence: how reliable it is.
        would_help: what would raise the confidence; "" if nothing would.
        fix: what to do, if that is not the advice for every verdict of this name.
    """

    name: Name
    culprits: tuple[str, ...]
    because: tuple[str, ...]
    confidence: Confidence = Confidence.CERTAIN
    would_help: str = ""
    fix: str = ""

    def overdue(self, seconds: float, timeout: float) -> Verdict:
        """The verdict on a job that seemed only slow, and is ended because that took too long.

        Args:
            seconds: since the last progress.
            timeout: after which a job that hangs would have been ended.
        """
        waited = (
            f"such a call may still return, so tfdist waited {seconds:.0f} s instead of "
            f"{timeout:g} s before it ended the job"
        )
        return replace(
            self,
            name=Name.STUCK_IN_CALL,
            because=(*self.because, waited),
            would_help="",
            fix="put a timeout around the call; if it is meant to take so long, note progress in "
            "it with tfdist.Progress, or raise the timeout",
        )

    @property
    def advice(self) -> str:
        """What to do, in one line."""
        return self.fix or self.name.advice

    @property
    def tasks(self) -> str:
        """The culprits: "cause: worker:1"; if none is to blame, "tasks: worker:0, worker:1"."""
        is_cause = self.name.is_wrong and self.name is not Name.UNKNOWN
        label = "cause" if is_cause else "tasks" if len(self.culprits) > 1 else "task"
        return f"{label}: {', '.join(self.culprits)}" if self.culprits else ""

    @property
    def heading(self) -> str:
        """Its name, the culprits and the confidence."""
        tasks = f", {self.tasks}" if self.culprits else ""
        return f"{self.name.value}{tasks} ({self.confidence.value})"

    def lines(self) -> Iterator[str]:
        """The verdict, its reasons and what to do, a line each."""
        yield f"verdict: {self.heading}"
        for reason in self.because:
            yield f"  {reason}"
        if self.would_help:
            yield f"to be more certain: {self.would_help}"
        yield f"what to do: {self.advice} (docs/hang.md)"

    def __str__(self) -> str:
        """The verdict and its reasons in one line."""
        return f"{self.heading}: {'; '.join(self.because)}"
