"""What was seen of a job that has stalled or ended: the records from which a verdict is made."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

Range = tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """A call of a Python function; `line` is None where Python does not know it."""

    file: str
    line: int | None
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({self.file.rpartition('/')[2]}:{self.line or '?'})"


class Known(NamedTuple):
    """Functions that the rules recognize in a stack.

    Attributes:
        file: the end of the path of the file that defines them.
        functions: their names, without a class, as faulthandler writes them.
    """

    file: str
    functions: tuple[str, ...]


@dataclass(frozen=True)
class Stack:
    """The calls that `count` threads are in, the most recent call first.

    Attributes:
        frames: empty for a thread that runs no Python.
        count: number of threads with the same frames.
        main: whether one of them is the main thread.
        cut: whether faulthandler left out older calls.
        acquires: the lock that the most recent call acquires, and where, such as
            "self._lock (train.py:12)"; "" if its source shows none, or was not read.
        inside: in the same way, the locks of the `with` blocks around the calls.
    """

    frames: tuple[Frame, ...]
    count: int = 1
    main: bool = False
    cut: bool = False
    acquires: str = ""
    inside: tuple[str, ...] = ()

    @property
    def threads(self) -> str:
        """The threads that have this stack: "main thread and 2 threads"."""
        others = self.count - self.main
        parts = ["main thread"] if self.main else []
        parts += [f"{others} thread{'' if others == 1 else 's'}"] if others else []
        return " and ".join(parts)

    @property
    def user(self) -> Frame | None:
        """The most recent call of a function that is the user's."""
        # `python -c` runs the program of the user, and that of a fork server.
        calls = takewhile(lambda frame: not is_call_of(frame, FORK_SERVER), self.frames)
        users = [
            frame
            for frame in calls
            if not RUNTIME.search(frame.file) and not _PACKAGE.search(frame.file)
        ]
        # Functions that a library has generated are in "<string>" too.
        named = [frame for frame in users if not frame.file.startswith("<")]
        return next(iter(named or users), None)

    @property
    def is_of_runtime(self) -> bool:
        """Whether Python, TensorFlow or tfdist started the thread for itself."""
        return (
            all(RUNTIME.search(frame.file) for frame in self.frames)
            and any(_SERVES.search(frame.file) for frame in self.frames)
            and not self.calls(EXECUTOR_ITEM)
        )

    def calls(self, known: Known) -> bool:
        """Whether one of these functions is among the calls."""
        return any(is_call_of(frame, known) for frame in self.frames)


def is_call_of(frame: Frame, known: Known) -> bool:
    """Whether the frame is a call of one of these functions."""
    return frame.function in known.functions and frame.file.endswith(known.file)


def folded(threads: Iterable[Stack]) -> tuple[Stack, ...]:
    """One stack for all threads with the same calls; the main thread's stack comes first."""
    counts: dict[tuple[tuple[Frame, ...], bool], tuple[int, bool]] = {}
    for stack in threads:
        count, main = counts.get((stack.frames, stack.cut), (0, False))
        counts[stack.frames, stack.cut] = (count + stack.count, main or stack.main)
    found = [Stack(frames, count, main, cut) for (frames, cut), (count, main) in counts.items()]
    return tuple(sorted(found, key=lambda stack: (not stack.main, -stack.count)))


class State(str, enum.Enum):
    """The state of a task's process."""

    ABSENT = "has not started"
    RUNS = "runs"
    STOPPED = "is stopped"
    ENDED = "has ended"
    FAILED = "has failed"
    DEAD = "was killed"
    TERMINATED = "was terminated by tfdist"


class Place(str, enum.Enum):
    """What a thread is doing, as its Python calls show."""

    BARRIER = "waits at a tfdist.Barrier"
    JOIN = "waits in ClusterCoordinator for its scheduled functions"
    STARTING = "waits for the chief to initialize the variables"
    CONNECTING = "waits for a ps to listen"
    CLOSING = "is closing its session"
    STOPPING = "waits for its own threads to end, in Coordinator.join"
    EXTENDING = "is creating a session, which sends the graph to every task"
    INPUT = "waits for its input"
    RUN = "is in Session.run"
    EAGER = "is in a TensorFlow operation"
    IMPORT = "is importing modules"
    SERVER = "is serving"
    WAIT = "waits in Python, outside TensorFlow"
    PYTHON = "is running Python code"
    UNKNOWN = "runs no Python that could be read"


_SESSION = "tensorflow/python/client/session.py"
_BARRIER = "tfdist/barrier/interface.py"
_COORDINATOR = "tensorflow/python/distribute/coordinator/cluster_coordinator.py"
BARRIER_ACTION = Known("tfdist/barrier/participant.py", ("_act",))
WAIT_FOR_SESSION = Known("tensorflow/python/training/session_manager.py", ("wait_for_session",))
SCHEDULED_FUNCTION = Known(_COORDINATOR, ("execute_on",))
EXECUTOR_ITEM = Known("concurrent/futures/thread.py", ("run",))
POOL_HANDLER = Known("multiprocessing/pool.py", ("_handle_workers",))
FORK_SERVER = Known("multiprocessing/forkserver.py", ("main",))
SCRIPT_OP = Known("tensorflow/python/ops/script_ops.py", ("__call__",))
GENERATOR = Known("tensorflow/python/data/ops/from_generator_op.py", ("generator_py_func",))
# In order: a call that is made on behalf of another one comes after it. Names of TensorFlow 2.21;
# tests/tf/test_known_functions.py looks for each in the TensorFlow that is installed.
PLACES: tuple[tuple[Known, Place], ...] = (
    (Known("<frozen importlib._bootstrap>", ("_find_and_load",)), Place.IMPORT),
    (Known(_BARRIER, ("wait",)), Place.BARRIER),
    (Known(_COORDINATOR, ("join", "schedule", "fetch")), Place.JOIN),
    (Known(_SESSION, ("close",)), Place.CLOSING),
    (Known(_SESSION, ("_extend_graph",)), Place.EXTENDING),
    (Known("tfdist/train/graph.py", ("_make_session",)), Place.EXTENDING),
    (WAIT_FOR_SESSION, Place.STARTING),
    (Known("tfdist/train/graph.py", ("_wait_until_ready",)), Place.STARTING),
    (Known("tfdist/cluster/server.py", ("_wait_for_ps",)), Place.CONNECTING),
    (Known("tensorflow/python/training/coordinator.py", ("join",)), Place.STOPPING),
    (
        Known(
            "tensorflow/python/ops/gen_dataset_ops.py",
            ("iterator_get_next", "iterator_get_next_sync", "iterator_get_next_as_optional"),
        ),
        Place.INPUT,
    ),
    (Known(_SESSION, ("_call_tf_sessionrun",)), Place.RUN),
    (Known("tensorflow/python/training/server_lib.py", ("join",)), Place.SERVER),
    (Known("tfdist/cluster/server.py", ("serve",)), Place.SERVER),
    (Known("tensorflow/python/eager/execute.py", ("quick_execute",)), Place.EAGER),
    (Known("tensorflow/python/eager/context.py", ("call_function",)), Place.EAGER),
)
KNOWN = (
    *(known for known, _ in PLACES),
    *(BARRIER_ACTION, SCHEDULED_FUNCTION, SCRIPT_OP, GENERATOR),
)
# Files whose functions call into TensorFlow's library.
_CALLS_INTO_TENSORFLOW = re.compile(r"/tensorflow/python/(eager/|client/|.*/gen_\w+_ops\.py$)")
# Modules of the standard library in which a thread waits.
WAITING_MODULES = (
    *("threading.py", "queue.py", "selectors.py", "socket.py", "ssl.py", "subprocess.py"),
    *(f"multiprocessing/{name}.py" for name in ("connection", "popen_fork", "queues")),
    *("multiprocessing/synchronize.py", "multiprocessing/pool.py"),
)
# Files of Python, TensorFlow and tfdist. The scripts of the lab's cases are not, and neither is a
# script in a folder that happens to be named tfdist.
RUNTIME = re.compile(
    r"^<frozen |/python3\.\d+[^/]*/(?!(site|dist)-packages/)|/tensorflow/python/"
    r"|/tfdist/((barrier|cli|cluster|data|deploy|diagnosis|doctor|ps|repro(?!/scenarios/)|runs"
    r"|splits|testing|train)/|(deadline|errors|lazy|task|__main__)\.py$)"
)
_SERVES = re.compile(r"/tensorflow/python/|/tfdist/|/multiprocessing/|/concurrent/futures/")
_PACKAGE = re.compile(r"/(site|dist)-packages/(?!tfdist/repro/scenarios/)")


def place_of(stack: Stack) -> Place:
    """What the thread with these calls is doing."""
    if not stack.frames:
        return Place.UNKNOWN
    for number, frame in enumerate(stack.frames[1:], start=1):
        if is_call_of(frame, BARRIER_ACTION):
            # The chief runs the barrier's action, for which the other trainers wait.
            stack = Stack(stack.frames[:number])
    for known, place in PLACES:
        if stack.calls(known):
            return place
    top = stack.frames[0].file
    # The rest of TensorFlow's Python, such as the building of a graph, waits for no other task.
    if _CALLS_INTO_TENSORFLOW.search(top):
        return Place.EAGER
    waits = RUNTIME.search(top) and any(top.endswith(f"/{name}") for name in WAITING_MODULES)
    return Place.WAIT if waits else Place.PYTHON


@dataclass(frozen=True)
class Child:
    """A process that a task has started, or that such a process has started.

    Attributes:
        pid: of the process.
        exit_code: its exit code, or minus the signal that killed it, if it has ended and the task
            has not asked for that yet; None while it runs.
        works: whether it did anything during the sample, or is in a wait other than for another
            process: a process of a pool that has nothing to do reads from a pipe or waits for a
            lock.
        stopped: whether it is stopped, by a signal or a debugger.
        secs: its age; None if it is not known.
    """

    pid: int
    exit_code: int | None = None
    works: bool = False
    stopped: bool = False
    secs: float | None = None


@dataclass(frozen=True)
class TaskEvidence:
    """What was seen of a task. A default means that nothing was seen.

    Attributes:
        name: such as "worker:1".
        trains: whether it runs a training loop; a ps and a server do not.
        state: of its process.
        ended_secs: seconds since its process ended, if it did.
        exit_code: its exit code, or minus the signal that killed it; None if it is not known.
        error: the last line of its failure.
        stacks: of its Python threads, the main thread first if it is known.
        waits: for each kernel function, the number of threads that wait in it.
        main_wait: the kernel function in which its main thread waits; "" if it does not.
        children: the processes that it has started.
        replaced: those that ended during the sample while others took their place; an exit code of
            None is not known.
        losses: its threads and child processes that died of an error, as its output says, with
            the error.
        shortages: what its output says that the machine had no more of, such as open files.
        works: whether it used the CPU, or read from a disk, during the sample.
        cpu_wait: of the time in which its threads were ready to run, the share in which they had
            no CPU.
        unanswered: peers (task names or addresses) whose machine acknowledges neither data nor a
            request for a connection.
        sends_to: peers (task names or addresses) that took part of a long message during the
            sample.
        quiet_secs: seconds since its last sign of progress.
        left: whether it noted that it takes no further part, although its process runs.
        steps: number of steps that it noted.
        servers: number of servers of the cluster in its process.
        pool: number of operations that may block in its process at the same time.
        recovery_secs: interval at which it checks whether the chief has initialized.
        grace_secs: how long it may wait for its own threads when it ends.
        close_secs: how long its session may take to close; a minute if its input tunes itself.
    """

    name: str
    trains: bool = True
    state: State = State.RUNS
    ended_secs: float | None = None
    exit_code: int | None = None
    error: str | None = None
    stacks: tuple[Stack, ...] = ()
    waits: Mapping[str, int] = field(default_factory=dict)
    main_wait: str = ""
    children: tuple[Child, ...] = ()
    replaced: tuple[Child, ...] = ()
    losses: tuple[str, ...] = ()
    shortages: tuple[str, ...] = ()
    works: bool = False
    cpu_wait: float = 0.0
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
    def main(self) -> Stack | None:
        """The stack of its main thread."""
        return next((stack for stack in self.stacks if stack.main), None)

    @property
    def place(self) -> Place:
        """What its main thread is doing."""
        return place_of(self.main) if self.main is not None else Place.UNKNOWN

    @property
    def alive(self) -> bool:
        """Whether its process exists."""
        return self.state in (State.RUNS, State.STOPPED)

    @property
    def call(self) -> str | None:
        """The most recent call of its main thread, and the user's call that led to it."""
        if self.main is None or not self.main.frames:
            return None
        top = self.main.frames[0]
        user = self.main.user or top
        return str(top) if user == top else f"{top}, called by {user}"


@dataclass(frozen=True)
class BarrierEvidence:
    """The trainers that wait at a barrier, and those that have not arrived."""

    name: str
    arrived: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """What was seen of a job.

    Attributes:
        tasks: all tasks.
        over: whether the job has ended; otherwise it has stalled.
        whole: whether these are all tasks of the job.
        seconds: since the last progress of any task.
        oom_kills: number of processes that the kernel has killed for lack of memory during the run,
            in the cgroup of the launcher.
        barriers: those at which a trainer waits.
        expected: number of examples to read; None if it is not known.
        missing: ranges of examples that no trainer read.
        duplicates: ranges of examples that were read more than once.
        step: the global step at the end.
        saved_step: the global step of the last checkpoint.
    """

    tasks: tuple[TaskEvidence, ...]
    over: bool = False
    whole: bool = True
    seconds: float = 0.0
    oom_kills: int = 0
    barriers: tuple[BarrierEvidence, ...] = ()
    expected: int | None = None
    missing: tuple[Range, ...] = ()
    duplicates: tuple[Range, ...] = ()
    step: int | None = None
    saved_step: int | None = None

    def to_json(self) -> str:
        """The text that `parse` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Evidence:
        """The evidence that `to_json` wrote."""
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
            stack.get("acquires", ""),
            tuple(stack.get("inside", ())),
        )
        for stack in values["stacks"]
    )
    texts = ("unanswered", "sends_to", "losses", "shortages")
    known: dict[str, Any] = {name: tuple(values.get(name, ())) for name in texts}
    for name in ("children", "replaced"):
        known[name] = tuple(Child(**child) for child in values.get(name, ()))
    return TaskEvidence(**{**values, **known, "stacks": stacks, "state": State(values["state"])})


def _ranges(pairs: Iterable[Iterable[int]]) -> tuple[Range, ...]:
    return tuple((start, stop) for start, stop in pairs)
