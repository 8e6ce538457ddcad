"""Why a job stands still, or what it did wrong in silence: who is the cause, and why.

The rules are pure, and asked in order: what explains other signs comes before them. A job whose
tasks wait for one that is stopped has nothing else to tell, whatever they wait in.

Sources: the frames are those of TensorFlow 2.21; the family of hangs is described in docs/hang.md.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tfdist.evidence import Evidence, Place, State, TaskEvidence


class Name(str, enum.Enum):
    """What a verdict says."""

    # It hangs.
    INPUT_STALLED = "INPUT_STALLED"
    STRANDED_AT_BARRIER = "STRANDED_AT_BARRIER"
    PEER_DEAD = "PEER_DEAD"
    PEER_STOPPED = "PEER_STOPPED"
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


# Waits in which a task needs others.
_NEEDS_OTHERS = (Place.RUN, Place.EAGER, Place.BARRIER, Place.JOIN, Place.INPUT)
_LEAVES_OR_COMES = (Place.CLOSING, Place.EXTENDING)
# Kernel functions in which threads wait that wait for no data: locks, timers, the network.
_IDLE_WAITS = ("futex", "epoll", "poll", "hrtimer", "nanosleep", "sigtimedwait", "pipe_wait_signal")
_COORDINATOR = "cluster_coordinator.py"
_IMPORT_SECS = 60.0


def judge(evidence: Evidence) -> Verdict:
    """The verdict on a job that stands still or is over."""
    rules = _OVER if evidence.over else _STALLED
    for rule in rules:
        verdict = rule(evidence)
        if verdict is not None:
            return verdict
    return _unknown(evidence)


# --- whether a task is missing


def _stopped(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in evidence.tasks if task.state is State.STOPPED]
    if not tasks:
        return None
    return _verdict(
        Name.PEER_STOPPED, tasks, [f"{_names(tasks)}: stopped, by SIGSTOP or a debugger"]
    )


def _dead(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in evidence.tasks if task.state in (State.DEAD, State.FAILED)]
    if not tasks:
        return None
    told = [_end(task) for task in tasks]
    waits = [task for task in _waiting(evidence) if task.place in _LEAVES_OR_COMES]
    if waits:
        return _verdict(Name.DEAD_DEPENDENCY, tasks, [*told, *map(_stands, waits)])
    return _verdict(Name.PEER_DEAD, tasks, [*told, *map(_stands, _waiting(evidence))])


def _end(task: TaskEvidence) -> str:
    ago = "" if task.ended_secs is None else f" {task.ended_secs:.0f} s ago"
    return f"{task.name} {task.state.value}{ago}{': ' + task.error if task.error else ''}"


# --- whether it is only slow


def _slow(evidence: Evidence) -> Verdict | None:
    """Somebody works, or is in Python: the others wait for it."""
    working = [task for task in evidence.tasks if task.lives and task.works]
    importing = [task for task in _alive(evidence) if task.place is Place.IMPORT]
    if importing and evidence.seconds < _IMPORT_SECS:
        return _verdict(Name.SLOW_START, importing, [f"{_names(importing)}: still importing"])
    if working:
        return _verdict(
            Name.SLOW,
            working,
            [f"{_names(working)}: uses the CPU"],
            Confidence.LIKELY,
            "a later look: a thread that spins looks the same",
        )
    busy = [task for task in _alive(evidence) if task.place is Place.PYTHON and not task.left]
    if busy:
        return _verdict(
            Name.SLOW,
            busy,
            [f"{_names(busy)}: in {', '.join(filter(None, (task.call for task in busy)))}"],
            Confidence.LIKELY,
            "a note of progress in that part of the script",
        )
    return None


def _starting(evidence: Evidence) -> Verdict | None:
    """A trainer looks now and then whether the chief has initialised."""
    tasks = [task for task in _alive(evidence) if task.place is Place.STARTING]
    absent = [task for task in evidence.tasks if task.state is State.ABSENT]
    if not tasks:
        return None
    if absent:
        return _verdict(
            Name.NOT_INITIALIZED,
            absent,
            [f"{_names(tasks)}: waits for the chief", f"{_names(absent)}: has not started"],
        )
    overdue = [task for task in tasks if task.quiet_secs > 1.5 * task.recovery_secs + 2.0]
    if not overdue:
        every = max(task.recovery_secs for task in tasks)
        return _verdict(
            Name.SLOW_START,
            tasks,
            [f"{_names(tasks)}: looks only every {every:.0f} s whether the chief has initialised"],
        )
    return _verdict(
        Name.NOT_INITIALIZED,
        overdue,
        [f"{task.name}: has waited {task.quiet_secs:.0f} s for variables" for task in overdue],
        Confidence.LIKELY,
        "the log of that task, which names the variables; each has to lie on a ps",
    )


def _stopping(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in _alive(evidence) if task.place is Place.STOPPING]
    others = [task for task in _waiting(evidence) if task not in tasks]
    if not tasks or others or any(task.quiet_secs > task.grace_secs for task in tasks):
        return None
    return _verdict(
        Name.SLOW_EXIT,
        tasks,
        [f"{task.name}: gives its threads {task.grace_secs:.0f} s to end" for task in tasks],
    )


# --- what it hangs in


def _exhausted(evidence: Evidence) -> Verdict | None:
    """Threads of one process wait for others of it that find no thread to run on."""
    for task in _alive(evidence):
        blocked = sum(stack.count for stack in task.stacks if stack.has("execute_on", _COORDINATOR))
        if task.servers > 1 and task.pool is not None and blocked >= task.pool:
            return _verdict(
                Name.THREADS_EXHAUSTED,
                [task],
                [
                    f"{task.name} runs {task.servers} servers with {task.pool} threads for "
                    f"operations, and {blocked} functions wait in it"
                ],
                Confidence.LIKELY,
                "a run with inter_op_parallelism_threads of the number of workers + 1",
            )
    return None


def _input(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in _alive(evidence) if task.trains and _reader(task) is not None]
    if not tasks:
        return None
    return _verdict(Name.INPUT_STALLED, tasks, [f"{task.name}: {_reader(task)}" for task in tasks])


def _reader(task: TaskEvidence) -> str | None:
    """What of its input a task waits for."""
    for stack in task.stacks:
        if stack.has("_call", "ops/script_ops.py") or stack.has(
            "generator_next_fn", "from_generator_op.py"
        ):
            frame = stack.frames[0]
            return f"a function of its input is in {frame.function} ({frame.file}:{frame.line})"
    waits = [name for name in task.waits if not any(idle in name for idle in _IDLE_WAITS)]
    if waits:
        return f"a thread waits for data in the kernel, in {', '.join(waits)}"
    return "its iterator gives nothing" if task.place is Place.INPUT else None


def _dependency(evidence: Evidence) -> Verdict | None:
    """Who comes or leaves talks to all tasks that it knows, also to those that have left."""
    waits = [task for task in _waiting(evidence) if task.place in _LEAVES_OR_COMES]
    ended = [task for task in evidence.tasks if task.state is State.ENDED]
    if not waits:
        return None
    return _verdict(
        Name.DEAD_DEPENDENCY,
        ended or waits,
        [*map(_stands, waits), *map(_end, ended)],
        Confidence.CERTAIN if ended else Confidence.LIKELY,
        "" if ended else "stacks of the tasks that it talks to",
    )


def _stranded(evidence: Evidence) -> Verdict | None:
    """Others are in a step that needs one that has ended."""
    waits = [task for task in _waiting(evidence) if task.place in _NEEDS_OTHERS]
    gone = [
        task
        for task in evidence.tasks
        if task.trains and (task.state is State.ENDED or (task.lives and task.left))
    ]
    if not waits or not gone:
        return None
    missing = [
        f"barrier {barrier.name!r} waits for {', '.join(barrier.missing)}"
        for barrier in evidence.barriers
        if set(barrier.missing) & {task.name for task in gone}
    ]
    told = [_end(task) if not task.lives else f"{task.name} has left" for task in gone]
    return _verdict(
        Name.STRANDED_AT_BARRIER,
        gone,
        [*told, *missing, *map(_stands, waits)],
        Confidence.CERTAIN if missing else Confidence.LIKELY,
        "" if missing else "the name of the barrier, from a tfdist.Barrier",
    )


def _deadlock(evidence: Evidence) -> Verdict | None:
    """All live, all wait, and nobody has left: for each other."""
    waits = _waiting(evidence)
    trainers = [task for task in evidence.tasks if task.trains]
    if not waits or len(waits) < len(trainers):
        return None
    if any(task.place not in _NEEDS_OTHERS for task in waits):
        return None
    return _verdict(
        Name.DEADLOCK,
        waits,
        [*map(_stands, waits), "nobody has left, and nobody works"],
        Confidence.LIKELY,
        "tfdist stacks --native, for the operation in which each waits",
    )


def _unknown(evidence: Evidence) -> Verdict:
    waits = _waiting(evidence)
    return _verdict(
        Name.UNKNOWN,
        waits,
        [_stands(task) for task in waits] or ["nothing was seen of any task"],
        Confidence.GUESS,
        "tfdist stacks --native, and notes of progress in the script",
    )


# --- a job that is over


def _failed(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in evidence.tasks if task.state is State.FAILED]
    if not tasks:
        return None
    first = max(tasks, key=lambda task: task.ended_secs or 0.0)
    return _verdict(Name.TASK_FAILED, [first], [_end(first)])


def _lost(evidence: Evidence) -> Verdict | None:
    """A task was killed, and what it should have done was not done by others."""
    tasks = [task for task in evidence.tasks if task.state is State.DEAD]
    if not tasks or (evidence.expected is not None and not evidence.missing):
        return None
    missing = [f"nobody visited {_ranges(evidence.missing)}"] if evidence.missing else []
    return _verdict(Name.PEER_DEAD, tasks, [*map(_end, tasks), *missing])


def _early(evidence: Evidence) -> Verdict | None:
    if evidence.step is None or evidence.saved_step is None or evidence.saved_step >= evidence.step:
        return None
    chief = [task for task in evidence.tasks if task.trains][:1]
    return _verdict(
        Name.SAVED_TOO_EARLY,
        chief,
        [f"the checkpoint has step {evidence.saved_step} of {evidence.step}"],
    )


def _ledger(evidence: Evidence) -> Verdict | None:
    if evidence.missing:
        told = f"all have ended well, and of {evidence.expected} examples nobody visited "
        return _verdict(Name.SILENT_TRUNCATION, [], [told + _ranges(evidence.missing)])
    if evidence.duplicates:
        told = f"visited more than once: {_ranges(evidence.duplicates)}"
        return _verdict(Name.DUPLICATES, [], [told])
    return None


def _fine(evidence: Evidence) -> Verdict | None:
    if evidence.expected is None:
        return _verdict(
            Name.FINE,
            [],
            ["all have ended well"],
            Confidence.LIKELY,
            "a ledger of the examples, and the step of the checkpoint",
        )
    return _verdict(Name.FINE, [], [f"each of {evidence.expected} examples was visited once"])


_Rule = Callable[[Evidence], "Verdict | None"]

_STALLED: Sequence[_Rule] = (
    _stopped,
    _dead,
    _slow,
    _starting,
    _exhausted,
    _input,
    _dependency,
    _stopping,
    _stranded,
    _deadlock,
)
_OVER: Sequence[_Rule] = (_stopped, _failed, _lost, _early, _ledger, _fine)


def _verdict(
    name: Name,
    culprits: Sequence[TaskEvidence],
    because: Sequence[str],
    confidence: Confidence = Confidence.CERTAIN,
    would_help: str = "",
) -> Verdict:
    return Verdict(
        name, tuple(task.name for task in culprits), tuple(because), confidence, would_help
    )


def _alive(evidence: Evidence) -> list[TaskEvidence]:
    return [task for task in evidence.tasks if task.state is State.RUNS]


def _waiting(evidence: Evidence) -> list[TaskEvidence]:
    """The trainers that have something left to do."""
    return [task for task in _alive(evidence) if task.trains and not task.left]


def _stands(task: TaskEvidence) -> str:
    return f"{task.name} {task.place.value}" + (f", {task.call}" if task.call else "")


def _names(tasks: Sequence[TaskEvidence]) -> str:
    return ", ".join(task.name for task in tasks)


def _ranges(ranges: Sequence[tuple[int, int]], shown: int = 5) -> str:
    def texts() -> Iterator[str]:
        for start, stop in ranges[:shown]:
            yield str(start) if stop == start + 1 else f"{start}..{stop - 1}"
        if len(ranges) > shown:
            yield f"and {len(ranges) - shown} ranges more"

    return ", ".join(texts())
