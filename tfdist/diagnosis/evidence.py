"""What was seen of a job that stands still or is over: all that a verdict is made of."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Range = tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """A call of a Python function; `line` is None where Python does not know it."""

    file: str
    line: int | None
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({self.file.rpartition('/')[2]}:{self.line or '?'})"


@dataclass(frozen=True)
class Stack:
    """Where `count` threads stand, the most recent call first.

    Attributes:
        frames: none where a thread runs no Python.
        count: threads with the same frames.
        main: whether one of them is the main thread.
        cut: whether there are older calls, which faulthandler leaves out.
    """

    frames: tuple[Frame, ...]
    count: int = 1
    main: bool = False
    cut: bool = False

    def has(self, function: str, file: str) -> bool:
        """Whether `function` of a file whose path ends with `file` is being called."""
        return any(
            frame.function == function and frame.file.endswith(file) for frame in self.frames
        )


def folded(threads: Iterable[Stack]) -> tuple[Stack, ...]:
    """Threads that stand at the same place as one, and that of the main thread first."""
    counts: dict[tuple[tuple[Frame, ...], bool], tuple[int, bool]] = {}
    for stack in threads:
        count, main = counts.get((stack.frames, stack.cut), (0, False))
        counts[stack.frames, stack.cut] = (count + stack.count, main or stack.main)
    found = [Stack(frames, count, main, cut) for (frames, cut), (count, main) in counts.items()]
    return tuple(sorted(found, key=lambda stack: (not stack.main, -stack.count)))


class State(str, enum.Enum):
    """Whether a task lives."""

    ABSENT = "has not started"
    RUNS = "runs"
    STOPPED = "is stopped"
    ENDED = "has ended"
    FAILED = "has failed"
    DEAD = "was killed"


class Place(str, enum.Enum):
    """What a thread does, told by its Python functions."""

    BARRIER = "at a barrier of tfdist"
    JOIN = "in ClusterCoordinator.join"
    STARTING = "waits for the chief to initialise"
    CONNECTING = "waits for a ps to listen"
    CLOSING = "closes its session"
    STOPPING = "waits for its own threads, in Coordinator.join"
    EXTENDING = "sends its graph to all tasks"
    INPUT = "waits for its input"
    RUN = "in a run of the graph"
    EAGER = "in an operation"
    IMPORT = "imports"
    SERVER = "serves"
    WAIT = "waits, outside of TensorFlow"
    PYTHON = "in Python, and waits for nobody there"
    UNKNOWN = "nobody knows where"


_SESSION = "tensorflow/python/client/session.py"
_BARRIER = "tfdist/barrier/interface.py"
_COORDINATOR = "tensorflow/python/distribute/coordinator/cluster_coordinator.py"

# Asked in this order: a call that others are made for comes before them. File, functions, place.
_PLACES: tuple[tuple[str, tuple[str, ...], Place], ...] = (
    ("<frozen importlib._bootstrap>", ("_find_and_load",), Place.IMPORT),
    (_BARRIER, ("wait",), Place.BARRIER),
    (_COORDINATOR, ("join", "schedule", "fetch"), Place.JOIN),
    (_SESSION, ("close",), Place.CLOSING),
    (_SESSION, ("_extend_graph",), Place.EXTENDING),
    ("tensorflow/python/training/session_manager.py", ("wait_for_session",), Place.STARTING),
    ("tfdist/train/graph.py", ("_wait_until_ready",), Place.STARTING),
    ("tfdist/cluster/server.py", ("_wait_for_ps",), Place.CONNECTING),
    ("tensorflow/python/training/coordinator.py", ("join",), Place.STOPPING),
    (
        "tensorflow/python/ops/gen_dataset_ops.py",
        ("iterator_get_next", "iterator_get_next_sync", "iterator_get_next_as_optional"),
        Place.INPUT,
    ),
    (_SESSION, ("_call_tf_sessionrun",), Place.RUN),
    ("tensorflow/python/training/server_lib.py", ("join",), Place.SERVER),
    ("tfdist/cluster/server.py", ("serve",), Place.SERVER),
    ("tensorflow/python/eager/execute.py", ("quick_execute",), Place.EAGER),
    ("tensorflow/python/eager/context.py", ("call_function",), Place.EAGER),
)
# Files whose functions call into TensorFlow's library.
_CALLS_INTO_TENSORFLOW = re.compile(r"/tensorflow/python/(eager/|client/|.*/gen_\w+_ops\.py$)")
# Modules of the standard library in which a thread waits.
_WAITING = ("threading.py", "queue.py", "selectors.py", "socket.py", "subprocess.py")


def place_of(stack: Stack) -> Place:
    """What the thread with these calls does."""
    if not stack.frames:
        return Place.UNKNOWN
    for number, frame in enumerate(stack.frames[1:], start=1):
        if frame.function == "_act" and frame.file.endswith(_BARRIER):
            # The chief, in the action: the others wait for it.
            stack = Stack(stack.frames[:number])
    for file, functions, place in _PLACES:
        if any(stack.has(function, file) for function in functions):
            return place
    top = stack.frames[0].file
    # The rest of TensorFlow's Python builds a graph, say, and waits for nobody.
    if _CALLS_INTO_TENSORFLOW.search(top):
        return Place.EAGER
    return Place.WAIT if top.rpartition("/")[2] in _WAITING else Place.PYTHON


@dataclass(frozen=True)
class TaskEvidence:
    """What was seen of a task; of what was not, the default says nothing.

    Attributes:
        name: such as "worker:1".
        trains: whether it runs a training loop; a ps and a server do not.
        state: whether it lives.
        ended_secs: ago, if it does not.
        error: the last line of its failure.
        stacks: of its Python threads; that of the main thread first, if it is marked so.
        waits: for each function of the kernel in which threads wait, how many do.
        works: whether it has used the CPU, or read from a disk, while it was looked at.
        unanswered: names of the tasks, or addresses, whose machine does not acknowledge what it
            has sent them.
        sends_to: names of the tasks, or addresses, that took a long message of it bit by bit while
            it was looked at.
        quiet_secs: since it got on, by its own word.
        left: whether it takes no further part, by its own word, though it lives.
        steps: how many it has done, by its own word.
        servers: how many servers of the cluster run in its process.
        pool: how many operations may block in its process at the same time.
        recovery_secs: between two looks whether the chief has initialised.
        grace_secs: for which it may wait for its own threads when it ends.
        close_secs: that its session may take to close; with an input that tunes itself a minute.
    """

    name: str
    trains: bool = True
    state: State = State.RUNS
    ended_secs: float | None = None
    error: str | None = None
    stacks: tuple[Stack, ...] = ()
    waits: Mapping[str, int] = field(default_factory=dict)
    works: bool = False
    unanswered: tuple[str, ...] = ()
    sends_to: tuple[str, ...] = ()
    quiet_secs: float = 0.0
    left: bool = False
    steps: int | None = None
    servers: int = 1
    pool: int | None = None
    recovery_secs: float = 30.0
    grace_secs: float = 120.0
    close_secs: float = 60.0

    @property
    def place(self) -> Place:
        """Where its main thread stands."""
        main = [stack for stack in self.stacks if stack.main]
        return place_of(main[0]) if main else Place.UNKNOWN

    @property
    def alive(self) -> bool:
        """Whether its process does."""
        return self.state in (State.RUNS, State.STOPPED)

    @property
    def call(self) -> str | None:
        """The most recent call of its main thread, as a user would look for it."""
        for stack in self.stacks:
            if stack.main and stack.frames:
                return str(stack.frames[0])
        return None


@dataclass(frozen=True)
class BarrierEvidence:
    """Who waits at a barrier, and for whom."""

    name: str
    arrived: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """What was seen of a job.

    Attributes:
        tasks: all of it.
        over: whether the job is; else it stands still.
        whole: whether all tasks were looked at, and not one alone.
        seconds: since anybody got on.
        barriers: at which somebody waits.
        expected: how many examples there are to read; None if that is not known.
        missing: ranges of examples that nobody read.
        duplicates: ranges of examples that were read more than once.
        step: the global step at the end.
        saved_step: that of the last checkpoint.
    """

    tasks: tuple[TaskEvidence, ...]
    over: bool = False
    whole: bool = True
    seconds: float = 0.0
    barriers: tuple[BarrierEvidence, ...] = ()
    expected: int | None = None
    missing: tuple[Range, ...] = ()
    duplicates: tuple[Range, ...] = ()
    step: int | None = None
    saved_step: int | None = None

    def to_json(self) -> str:
        """All of it, for `parse`."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Evidence:
        """From what `to_json` gave."""
        values = json.loads(text)
        tasks = tuple(_task(task) for task in values.pop("tasks"))
        barriers = tuple(
            BarrierEvidence(barrier["name"], tuple(barrier["arrived"]), tuple(barrier["missing"]))
            for barrier in values.pop("barriers")
        )
        missing, duplicates = (_ranges(values.pop(name)) for name in ("missing", "duplicates"))
        return cls(tasks, barriers=barriers, missing=missing, duplicates=duplicates, **values)


def _task(values: dict[str, Any]) -> TaskEvidence:
    stacks = tuple(
        Stack(
            tuple(Frame(**frame) for frame in stack["frames"]),
            stack["count"],
            stack["main"],
            stack["cut"],
        )
        for stack in values["stacks"]
    )
    peers = {name: tuple(values.get(name, ())) for name in ("unanswered", "sends_to")}
    return TaskEvidence(**{**values, **peers, "stacks": stacks, "state": State(values["state"])})


def _ranges(pairs: Iterable[Iterable[int]]) -> tuple[Range, ...]:
    return tuple((start, stop) for start, stop in pairs)
