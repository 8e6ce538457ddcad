"""The rules by which a verdict is made of what was seen of a job.

They are pure, and asked in order: what explains other signs comes before them. A job whose
tasks wait for one that is stopped has nothing else to tell, whatever they wait in.

Sources: the frames are those of TensorFlow 2.21; the family of hangs is described in docs/hang.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tfdist.diagnosis.evidence import Evidence, Place, State, TaskEvidence
from tfdist.diagnosis.task_waits import python_call, reader, scheduled_functions
from tfdist.diagnosis.verdict import Confidence, Name, Verdict

# Waits in which a task needs others.
_NEEDS_OTHERS = (Place.RUN, Place.EAGER, Place.BARRIER, Place.JOIN)
_LEAVES_OR_COMES = (Place.CLOSING, Place.EXTENDING)
# Where a chief has no session, unless it has had one.
_ELSEWHERE = (Place.SERVER, Place.WAIT)
_IMPORT_SECS = 60.0


def diagnose(evidence: Evidence) -> Verdict:
    """The verdict on a job that stands still or is over."""
    rules = _OVER if evidence.over else _STALLED if evidence.whole else _ALONE
    for rule in rules:
        verdict = rule(evidence)
        if verdict is not None:
            return verdict
    return _unknown(evidence)


# --- whether a task is missing


def _stopped(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in evidence.tasks if task.state is State.STOPPED]
    if not tasks or _is_busy(evidence):
        return None
    told = [f"{_names(tasks)}: stopped, by SIGSTOP or a debugger"]
    return _verdict(Name.PEER_STOPPED, tasks, [*told, *map(_stands, _waiting(evidence))])


def _dead(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in evidence.tasks if task.state in (State.DEAD, State.FAILED)]
    if not tasks or _is_busy(evidence):
        return None
    told = [_end(task) for task in tasks]
    waits = [task for task in _waiting(evidence) if task.place in _LEAVES_OR_COMES]
    if waits:
        return _verdict(Name.DEAD_DEPENDENCY, tasks, [*told, *map(_stands, waits)])
    return _verdict(Name.PEER_DEAD, tasks, [*told, *map(_stands, _waiting(evidence))])


def _is_busy(evidence: Evidence) -> bool:
    """Whether somebody has something to do without those that are missing."""
    in_python = any(python_call(task) for task in _waiting(evidence))
    return bool(_working(evidence) or _sending(evidence) or in_python)


def _working(evidence: Evidence) -> list[TaskEvidence]:
    """Those that get something done.

    Who waits for the chief makes a session each time that it looks, which is work for it and for
    the ps, and does nothing.
    """
    tasks = _alive(evidence)
    looks = any(task.place is Place.STARTING for task in tasks)
    return [
        task
        for task in tasks
        if task.works and task.place is not Place.STARTING and (task.trains or not looks)
    ]


def _sending(evidence: Evidence) -> list[TaskEvidence]:
    """Those whose messages get through, slowly.

    The kernel of a task that is stopped takes what it has room for, and nobody reads it.
    """
    stopped = {task.name for task in evidence.tasks if task.state is State.STOPPED}
    return [task for task in _alive(evidence) if set(task.sends_to) - stopped]


def _missing(evidence: Evidence) -> list[str]:
    """The tasks that nobody waits for, so far."""
    states = (State.STOPPED, State.DEAD, State.FAILED)
    return [_end(task) for task in evidence.tasks if task.state in states]


def _end(task: TaskEvidence) -> str:
    ago = "" if task.ended_secs is None else f" {task.ended_secs:.0f} s ago"
    return f"{task.name} {task.state.value}{ago}{': ' + task.error if task.error else ''}"


# --- whether it is only slow


def _slow(evidence: Evidence) -> Verdict | None:
    """Somebody works, sends a long message, or is in Python: the others wait for it."""
    working, sending = _working(evidence), _sending(evidence)
    importing = [task for task in _alive(evidence) if task.place is Place.IMPORT]
    if importing and evidence.seconds < _IMPORT_SECS:
        told = [f"{task.name}: still importing, in {task.call}" for task in importing]
        return _verdict(Name.SLOW_START, importing, told)
    if sending:
        return _verdict(
            Name.SLOW,
            sending,
            [
                *(f"{task.name}: sends to {', '.join(task.sends_to)}, slowly" for task in sending),
                *_missing(evidence),
            ],
            Confidence.LIKELY,
            "the bandwidth between their machines",
        )
    if working:
        return _verdict(
            Name.SLOW,
            working,
            [f"{_names(working)}: uses the CPU, or reads from a disk", *_missing(evidence)],
            Confidence.LIKELY,
            "a later look: a thread that spins looks the same",
        )
    busy = [(task, call) for task in _waiting(evidence) if (call := python_call(task))]
    if busy:
        return _verdict(
            Name.SLOW,
            [task for task, _ in busy],
            [*(f"{task.name}: in {call}" for task, call in busy), *_missing(evidence)],
            Confidence.LIKELY,
            "a note of progress in that part of the script",
        )
    return None


def _connecting(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in _alive(evidence) if task.place is Place.CONNECTING]
    if not tasks:
        return None
    told = f"{_names(tasks)}: waits for a ps to listen, and will say for which if none does"
    return _verdict(Name.SLOW_START, tasks, [told])


def _starting(evidence: Evidence) -> Verdict | None:
    """A trainer looks now and then whether the chief has initialised."""
    tasks = [task for task in _alive(evidence) if task.place is Place.STARTING]
    chief = next((task for task in evidence.tasks if task.trains), None)
    # If the chief hangs itself, what it hangs in tells why.
    if not tasks or chief is None or chief.place in _LEAVES_OR_COMES:
        return None
    if chief.state is State.ABSENT:
        return _verdict(
            Name.NOT_INITIALIZED,
            [chief],
            [*map(_has_waited, tasks), f"{chief.name}, the chief, {chief.state.value}"],
        )
    overdue = [task for task in tasks if task.quiet_secs > 1.5 * task.recovery_secs + 2.0]
    if not overdue:
        every = max(task.recovery_secs for task in tasks)
        return _verdict(
            Name.SLOW_START,
            tasks,
            [f"{_names(tasks)}: looks only every {every:g} s whether the chief has initialised"],
        )
    told = [*map(_has_waited, overdue)]
    if chief in tasks:
        why = f"all wait for a chief, also {chief.name}, which should be it"
        return _verdict(Name.NOT_INITIALIZED, [chief], [*told, why])
    if chief.place in _ELSEWHERE and not chief.steps:
        return _verdict(
            Name.NOT_INITIALIZED,
            [chief],
            [*told, f"{_stands(chief)}, and is the chief, which has to initialise them"],
            Confidence.LIKELY,
            f"the log of {chief.name}: whether it has made its session",
        )
    has = f"has done {chief.steps} steps" if chief.steps else chief.state.value
    initialised = bool(chief.steps) or not chief.alive
    return _verdict(
        Name.NOT_INITIALIZED,
        overdue,
        [
            *told,
            f"{chief.name}, the chief, {has}: those that lie on a ps are initialised"
            if initialised
            else _stands(chief),
        ],
        Confidence.LIKELY if initialised else Confidence.GUESS,
        f"the log of {overdue[0].name} at level INFO, which names them; each has to lie on a ps",
    )


def _has_waited(task: TaskEvidence) -> str:
    return f"{task.name} has waited {task.quiet_secs:.0f} s for variables to be initialised"


def _closing(evidence: Evidence) -> Verdict | None:
    """A session that is closed waits for the thread that tunes its input (TensorFlow 2.21)."""
    tasks = [
        task
        for task in _alive(evidence)
        if task.place is Place.CLOSING
        and 0 < max(evidence.seconds, task.quiet_secs) < task.close_secs
    ]
    missing = (State.STOPPED, State.DEAD, State.FAILED)
    if not tasks or any(task.state in missing for task in evidence.tasks if not task.trains):
        return None
    told = [
        f"{task.name}: closes its session; tf.data, which tunes itself, may keep it for "
        f"{task.close_secs:.0f} s"
        for task in tasks
    ]
    return _verdict(Name.SLOW_EXIT, tasks, [*told, *_missing(evidence)])


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


def _unreachable(evidence: Evidence) -> Verdict | None:
    """What a task has sent is not acknowledged: a kernel does that, also for a stopped process."""
    pairs = [(task, peer) for task in _alive(evidence) for peer in task.unanswered]
    if not pairs:
        return None
    # Who is at one end of all these connections is the cause; of one connection both may be.
    ends = [{task.name, peer} for task, peer in pairs]
    common = set.intersection(*ends)
    tasks = [task for task in evidence.tasks if task.name in (common or set.union(*ends))]
    return _verdict(
        Name.PEER_UNREACHABLE,
        tasks,
        [f"{task.name} has sent to {peer}, whose machine does not answer" for task, peer in pairs],
        Confidence.LIKELY,
        "ping between the two machines, and their firewalls",
    )


def _exhausted(evidence: Evidence) -> Verdict | None:
    """Threads of one process wait for others of it that find no thread to run on."""
    for task in _alive(evidence):
        blocked = scheduled_functions(task)
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
    tasks = [task for task in _alive(evidence) if not task.left and reader(task) is not None]
    if not tasks:
        return None
    return _verdict(Name.INPUT_STALLED, tasks, [f"{task.name}: {reader(task)}" for task in tasks])


def _dependency(evidence: Evidence) -> Verdict | None:
    """Who comes or leaves talks to all tasks that it knows, and each run to those that serve it."""
    waits = [task for task in _waiting(evidence) if task.place in _LEAVES_OR_COMES]
    ended = [task for task in evidence.tasks if task.state is State.ENDED]
    if not waits:
        ended = [task for task in ended if not task.trains]
        waits = [task for task in _waiting(evidence) if ended and task.place in _NEEDS_OTHERS]
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
        if task.trains and (task.state is State.ENDED or (task.alive and task.left))
    ]
    if not waits or not gone:
        return None
    missing = [
        f"barrier {barrier.name!r} waits for {', '.join(barrier.missing)}"
        for barrier in evidence.barriers
        if set(barrier.missing) & {task.name for task in gone}
    ]
    told = [_end(task) if not task.alive else f"{task.name} has left" for task in gone]
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
    told = [*map(_stands, waits), *_scheduled(waits), "nobody has left, and nobody works"]
    would_help = "tfdist stacks --native, for the operation in which each waits"
    if all(task.place is Place.RUN and task.steps == 0 for task in waits):
        told.append("nobody has done a step")
        would_help += "; a queue is shared only where it is placed on a ps"
    return _verdict(Name.DEADLOCK, waits, told, Confidence.LIKELY, would_help)


def _scheduled(tasks: Sequence[TaskEvidence]) -> Iterator[str]:
    """How many functions of a coordinator run at the moment."""
    for task in tasks:
        if (count := scheduled_functions(task)) and task.place is Place.JOIN:
            yield f"{count} functions that {task.name} has scheduled run, and none ends"


def _unknown(evidence: Evidence) -> Verdict:
    waits = _waiting(evidence)
    return _verdict(
        Name.UNKNOWN,
        waits,
        [_stands(task) for task in waits] or ["nothing was seen of any task"],
        Confidence.GUESS,
        "tfdist stacks --native, and notes of progress in the script"
        if evidence.whole
        else "a look at the other tasks: it waits for one of them",
    )


# --- a job that is over


def _failed(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in evidence.tasks if task.state is State.FAILED]
    if not tasks:
        return None
    first = max(tasks, key=lambda task: task.ended_secs or 0.0)
    # What then fails has lost a peer.
    killed = [
        task
        for task in evidence.tasks
        if task.state is State.DEAD and (task.ended_secs or 0.0) > (first.ended_secs or 0.0)
    ]
    if killed:
        return _verdict(Name.PEER_DEAD, killed, [*map(_end, killed), _end(first)])
    return _verdict(Name.TASK_FAILED, [first], [_end(first)])


def _lost(evidence: Evidence) -> Verdict | None:
    """A task was killed, and what it should have done was not done by others."""
    tasks = [task for task in evidence.tasks if task.state is State.DEAD]
    if not tasks or (evidence.expected is not None and not evidence.missing):
        return None
    missing = [f"nobody read {_ranges(evidence.missing)}"] if evidence.missing else []
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
        told = f"all have ended well, and of {evidence.expected} examples nobody read "
        return _verdict(Name.SILENT_TRUNCATION, [], [told + _ranges(evidence.missing)])
    if evidence.duplicates:
        told = f"read more than once: {_ranges(evidence.duplicates)}"
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
    return _verdict(Name.FINE, [], [f"each of {evidence.expected} examples was read once"])


_Rule = Callable[[Evidence], "Verdict | None"]

_STALLED: Sequence[_Rule] = (
    _closing,
    _stopped,
    _dead,
    _slow,
    _unreachable,
    _connecting,
    _starting,
    _exhausted,
    _input,
    _dependency,
    _stopping,
    _stranded,
    _deadlock,
)
# Of one task alone: whom it waits for is not known.
_ALONE: Sequence[_Rule] = (
    _stopped,
    _slow,
    _unreachable,
    _connecting,
    _exhausted,
    _input,
    _dependency,
    _stopping,
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
