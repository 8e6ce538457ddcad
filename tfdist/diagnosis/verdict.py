"""What is said of a job that stands still or is over: a name, who is the cause, and the reasons."""

from __future__ import annotations

import enum
from dataclasses import dataclass

# How often a job that is only slow is waited for once more, each time twice as long.
PATIENCE = 3


class Name(str, enum.Enum):
    """What a verdict says."""

    # It hangs.
    INPUT_STALLED = "INPUT_STALLED"
    STRANDED_AT_BARRIER = "STRANDED_AT_BARRIER"
    PEER_DEAD = "PEER_DEAD"
    PEER_STOPPED = "PEER_STOPPED"
    PEER_UNREACHABLE = "PEER_UNREACHABLE"
    DEAD_DEPENDENCY = "DEAD_DEPENDENCY"
    NOT_INITIALIZED = "NOT_INITIALIZED"
    THREADS_EXHAUSTED = "THREADS_EXHAUSTED"
    DEADLOCK = "DEADLOCK"
    UNKNOWN = "UNKNOWN"
    # It is slow.
    SLOW = "SLOW"
    SLOW_START = "SLOW_START"
    SLOW_EXIT = "SLOW_EXIT"
    # It is over.
    TASK_FAILED = "TASK_FAILED"
    SILENT_TRUNCATION = "SILENT_TRUNCATION"
    DUPLICATES = "DUPLICATES"
    SAVED_TOO_EARLY = "SAVED_TOO_EARLY"
    FINE = "FINE"

    @property
    def is_slow(self) -> bool:
        """Whether the job will get on by itself."""
        return self in (Name.SLOW, Name.SLOW_START, Name.SLOW_EXIT)

    @property
    def is_wrong(self) -> bool:
        """Whether somebody has to do something about it."""
        return not self.is_slow and self is not Name.FINE

    @property
    def advice(self) -> str:
        """What helps, in a line."""
        return _ADVICE[self]


_ADVICE = {
    Name.INPUT_STALLED: "a deadline around the input; SplitQueue.release lets another one read",
    Name.STRANDED_AT_BARRIER: "padded batches, and an end that all agree on, by Epoch; or resign()",
    Name.PEER_DEAD: "tfdist run --restart, and a SplitQueue, so that others do what it left",
    Name.PEER_STOPPED: "wake it; with the leases of a SplitQueue others take over meanwhile",
    Name.PEER_UNREACHABLE: "the network in between; then tfdist run --restart, or a new session",
    Name.DEAD_DEPENDENCY: "device_filters for each session, and iterators on their own trainer",
    Name.NOT_INITIALIZED: "tfdist.train.session; tfdist.train.device_setter for the variables",
    Name.THREADS_EXHAUSTED: "inter_op_parallelism_threads of the workers + 1, or processes",
    Name.DEADLOCK: "place what is shared on a ps by name; never block in a scheduled function",
    Name.UNKNOWN: "tfdist stacks --native",
    Name.SLOW: "patience, or notes of tfdist.Progress",
    Name.SLOW_START: "patience; tfdist.train.session looks more often",
    Name.SLOW_EXIT: "patience",
    Name.TASK_FAILED: "its error",
    Name.SILENT_TRUNCATION: "padded batches: no error may mean the end",
    Name.DUPLICATES: "splits of a SplitQueue instead of shares by number",
    Name.SAVED_TOO_EARLY: "saving in the action of an Epoch, when all have ended",
    Name.FINE: "nothing has to",
}


class Confidence(str, enum.Enum):
    """How much is to be made of it."""

    CERTAIN = "certain"
    LIKELY = "likely"
    GUESS = "a guess"


@dataclass(frozen=True)
class Verdict:
    """What is the matter with a job.

    Attributes:
        name: of the matter.
        culprits: names of the tasks that are its cause.
        because: what was seen, a sentence each.
        confidence: in it.
        would_help: what would raise the confidence; "" where nothing has to.
    """

    name: Name
    culprits: tuple[str, ...]
    because: tuple[str, ...]
    confidence: Confidence = Confidence.CERTAIN
    would_help: str = ""

    def __str__(self) -> str:
        """In one line."""
        who = f" ({', '.join(self.culprits)})" if self.culprits else ""
        return f"{self.name.value}{who}: {'; '.join(self.because)} [{self.confidence.value}]"
