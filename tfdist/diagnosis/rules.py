"""The rules that make a verdict from what was seen of a job.

They are pure and are tried in order: a cause comes before its symptoms. If tasks wait for a stopped
task, for example, the calls in which they wait say nothing more.

The stacks are those of TensorFlow 2.21. docs/hang.md describes the family of hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from tfdist.diagnosis.evidence import Evidence, Place, State, TaskEvidence
from tfdist.diagnosis.verdict import Confidence, Name, Verdict
from tfdist.diagnosis.waits import (
    barrier_waits,
    can_continue,
    doing,
    end_of,
    input_wait,
    python_call,
    python_wait,
    running,
    scheduled_functions,
    sending,
    shortages,
    waiting,
    work,
    working,
)

# Places in which a task waits for other tasks.
_NEEDS_OTHERS = (Place.RUN, Place.EAGER, Place.BARRIER, Place.JOIN)
_OPENS_OR_CLOSES = (Place.CLOSING, Place.EXTENDING)
# Places of a chief that has no session; it may have had one before.
_NO_SESSION = (Place.SERVER, Place.WAIT)
_LOST = (State.STOPPED, State.DEAD, State.FAILED)
_IMPORT_SECS = 60.0


def diagnose(evidence: Evidence) -> Verdict:
    """The verdict on a job that has stalled or ended."""
    # While tfdist ends a job, the tasks that it has terminated are no cause either.
    is_over = evidence.over or any(task.state is State.TERMINATED for task in evidence.tasks)
    rules = _OVER if is_over else _STALLED if evidence.whole else _ALONE
    verdicts = (verdict for rule in rules if (verdict := rule(evidence)) is not None)
    verdict = next(verdicts, None) or _unknown(evidence)
    because = [*verdict.because]
    if not is_over and verdict.name is not Name.STRANDED_AT_BARRIER:
        because += barrier_waits(evidence.barriers)
    if verdict.name is not Name.FINE:
        because += shortages(evidence)
    return replace(verdict, because=tuple(because))


# --- a task is missing


def _stopped(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in evidence.tasks if task.state is State.STOPPED]
    if not tasks or can_continue(evidence):
        return None
    stops = [f"{task.name} is stopped, by SIGSTOP or a debugger" for task in tasks]
    return _verdict(Name.PEER_STOPPED, tasks, [*stops, *map(doing, waiting(evidence))])


def _dead(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in evidence.tasks if task.state in (State.DEAD, State.FAILED)]
    if not tasks or can_continue(evidence):
        return None
    ends = [end_of(task) for task in tasks]
    waits = [task for task in waiting(evidence) if task.place in _OPENS_OR_CLOSES]
    if waits:
        return _verdict(Name.DEAD_DEPENDENCY, tasks, [*ends, *map(doing, waits)])
    return _verdict(Name.PEER_DEAD, tasks, [*ends, *map(doing, waiting(evidence))])


def _also_lost(evidence: Evidence) -> list[str]:
    """The lost tasks, for a job that does not wait for them yet."""
    return [end_of(task) for task in evidence.tasks if task.state in _LOST]


# --- the job is only slow


def _slow(evidence: Evidence) -> Verdict | None:
    """A task works, sends a long message, or runs Python; the other tasks wait for it."""
    workers, senders = working(evidence), sending(evidence)
    importing = [task for task in running(evidence) if task.place is Place.IMPORT]
    if importing and evidence.seconds < _IMPORT_SECS:
        return _verdict(Name.SLOW_START, importing, [*map(doing, importing)])
    if senders:
        sends = (f"{task.name} is slowly sending to {', '.join(task.sends_to)}" for task in senders)
        return _verdict(
            Name.SLOW,
            senders,
            [*sends, *_also_lost(evidence)],
            Confidence.LIKELY,
            "measure the bandwidth between their machines",
        )
    if workers:
        return _verdict(
            Name.SLOW,
            workers,
            [*map(work, workers), *_also_lost(evidence)],
            Confidence.LIKELY,
            "look again later; a thread that spins for ever looks the same",
        )
    busy = [(task, call) for task in waiting(evidence) if (call := python_call(task))]
    if busy:
        return _verdict(
            Name.SLOW,
            [task for task, _ in busy],
            [*(f"{task.name} is in Python code outside TensorFlow: {call}" for task, call in busy),
             *_also_lost(evidence)],
            Confidence.LIKELY,
            "note progress in that part of the script, with tfdist.Progress",
        )  # fmt: skip
    return None


def _connecting(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in running(evidence) if task.place is Place.CONNECTING]
    if not tasks:
        return None
    waits = [f"{task.name} waits for every ps to listen, up to its deadline" for task in tasks]
    return _verdict(Name.SLOW_START, tasks, waits)


def _starting(evidence: Evidence) -> Verdict | None:
    """A trainer checks at intervals whether the chief has initialized the variables."""
    tasks = [task for task in running(evidence) if task.place is Place.STARTING]
    chief = next((task for task in evidence.tasks if task.trains), None)
    # If the chief hangs in a session, the reason for that is the reason for all.
    if not tasks or chief is None or chief.place in _OPENS_OR_CLOSES:
        return None
    if chief.state is State.ABSENT:
        why = f"{chief.name}, the chief, has not started"
        return _verdict(Name.NOT_INITIALIZED, [chief], [*map(_has_waited, tasks), why])
    overdue = [task for task in tasks if task.quiet_secs > 1.5 * task.recovery_secs + 2.0]
    if not overdue:
        checks = (
            f"{task.name} checks only every {task.recovery_secs:g} s whether the chief has "
            "initialized the variables"
            for task in tasks
        )
        return _verdict(Name.SLOW_START, tasks, [*checks])
    waits = [*map(_has_waited, overdue)]
    if chief in tasks:
        why = f"{chief.name}, which should be the chief, waits for a chief too"
        return _verdict(Name.NOT_INITIALIZED, [chief], [*waits, why])
    if chief.place in _NO_SESSION and not chief.steps:
        why = f"{chief.name} is the chief, which has to initialize them; {doing(chief)}"
        return _verdict(
            Name.NOT_INITIALIZED,
            [chief],
            [*waits, why],
            Confidence.LIKELY,
            f"read the log of {chief.name}: has it made its session?",
        )
    if initialized := bool(chief.steps) or not chief.alive:
        has = f"has done {chief.steps} steps" if chief.steps else chief.state.value
        why = f"{chief.name}, the chief, {has}, so the variables on the ps are initialized"
    else:
        why = doing(chief)
    return _verdict(
        Name.NOT_INITIALIZED,
        overdue,
        [*waits, why],
        Confidence.LIKELY if initialized else Confidence.GUESS,
        f"read the log of {overdue[0].name} at level INFO, which names the variables; each has to "
        "be on a ps",
    )


def _has_waited(task: TaskEvidence) -> str:
    return f"{task.name} has waited {task.quiet_secs:.0f} s for the variables to be initialized"


def _closing(evidence: Evidence) -> Verdict | None:
    """Session.close waits for the thread that tunes the input (TensorFlow 2.21)."""
    tasks = [
        task
        for task in running(evidence)
        if task.place is Place.CLOSING
        and 0 < max(evidence.seconds, task.quiet_secs) < task.close_secs
    ]
    if not tasks or any(task.state in _LOST for task in evidence.tasks if not task.trains):
        return None
    closes = [
        f"{task.name} is closing its session; the autotuning of tf.data may delay that for "
        f"{task.close_secs:.0f} s"
        for task in tasks
    ]
    return _verdict(Name.SLOW_EXIT, tasks, [*closes, *_also_lost(evidence)])


def _stopping(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in running(evidence) if task.place is Place.STOPPING]
    others = [task for task in waiting(evidence) if task not in tasks]
    if not tasks or others or any(task.quiet_secs > task.grace_secs for task in tasks):
        return None
    waits = [f"{task.name} waits up to {task.grace_secs:.0f} s for its threads" for task in tasks]
    return _verdict(Name.SLOW_EXIT, tasks, waits)


# --- the job hangs


def _unreachable(evidence: Evidence) -> Verdict | None:
    """A machine does not acknowledge data; the kernel does so also for a stopped process."""
    pairs = [(task, peer) for task in running(evidence) for peer in task.unanswered]
    if not pairs:
        return None
    # The task at one end of all these connections is the cause; with one connection, either may be.
    ends = [{task.name, peer} for task, peer in pairs]
    common = set.intersection(*ends)
    tasks = [task for task in evidence.tasks if task.name in (common or set.union(*ends))]
    return _verdict(
        Name.PEER_UNREACHABLE,
        tasks,
        [
            f"{task.name} sends to {peer}, whose machine acknowledges nothing"
            for task, peer in pairs
        ],
        Confidence.LIKELY,
        "ping one machine from the other, and check their firewalls",
    )


def _exhausted(evidence: Evidence) -> Verdict | None:
    """The threads of a process wait for operations that find no thread there to run on."""
    for task in running(evidence):
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
                "run it with inter_op_parallelism_threads of the number of workers + 1",
            )
    return None


def _input(evidence: Evidence) -> Verdict | None:
    waits = [(task, input_wait(task)) for task in running(evidence) if not task.left]
    found = [(task, wait) for task, wait in waits if wait is not None]
    if not found:
        return None
    because = [f"{task.name} waits for its input: {wait}" for task, wait in found]
    return _verdict(Name.INPUT_STALLED, [task for task, _ in found], because)


def _dependency(evidence: Evidence) -> Verdict | None:
    """A session that opens or closes talks to every task it knows, a run to those that serve it."""
    waits = [task for task in waiting(evidence) if task.place in _OPENS_OR_CLOSES]
    ended = [task for task in evidence.tasks if task.state is State.ENDED]
    if not waits:
        ended = [task for task in ended if not task.trains]
        waits = [task for task in waiting(evidence) if ended and task.place in _NEEDS_OTHERS]
    if not waits:
        return None
    return _verdict(
        Name.DEAD_DEPENDENCY,
        ended or waits,
        [*map(doing, waits), *map(end_of, ended)],
        Confidence.CERTAIN if ended else Confidence.LIKELY,
        "" if ended else "look at the stacks of the tasks that its session talks to",
    )


def _stranded(evidence: Evidence) -> Verdict | None:
    """Trainers are in a step that needs a trainer that has ended or left."""
    waits = [task for task in waiting(evidence) if task.place in _NEEDS_OTHERS]
    gone = [
        task
        for task in evidence.tasks
        if task.trains and (task.state is State.ENDED or (task.alive and task.left))
    ]
    if not waits or not gone:
        return None
    names = {task.name for task in gone}
    missing = barrier_waits(one for one in evidence.barriers if names.intersection(one.missing))
    ends = [
        f"{task.name} runs, but takes no further part" if task.alive else end_of(task)
        for task in gone
    ]
    return _verdict(
        Name.STRANDED_AT_BARRIER,
        gone,
        [*ends, *missing, *map(doing, waits)],
        Confidence.CERTAIN if missing else Confidence.LIKELY,
        "" if missing else "use a tfdist.Barrier, which reports the trainers that are missing",
    )


def _blocked(evidence: Evidence) -> Verdict | None:
    """A trainer waits in Python for threads or processes of its own, and none of them will come."""
    tasks = waiting(evidence)
    found = [(task, wait) for task in tasks if (wait := python_wait(task)) and not wait.may_return]
    if not found:
        return None
    blocked = [task for task, _ in found]
    return _verdict(
        Name.STUCK_IN_CALL,
        blocked,
        [
            *(f"{doing(task)}; {wait.why}" for task, wait in found),
            *(doing(task) for task in tasks if task not in blocked),
        ],
        Confidence.LIKELY,
        "look at the stacks of all its threads, with tfdist stacks",
    )


def _deadlock(evidence: Evidence) -> Verdict | None:
    """All trainers are alive, none has left, and all wait: for one another."""
    waits = waiting(evidence)
    trainers = [task for task in evidence.tasks if task.trains]
    if not waits or len(waits) < len(trainers):
        return None
    if any(task.place not in _NEEDS_OTHERS for task in waits):
        return None
    because = [*map(doing, waits), *_scheduled(waits), "no task has left, and no task works"]
    would_help = "see in which operation each task waits, with tfdist stacks --native"
    if all(task.place is Place.RUN and task.steps == 0 for task in waits):
        because.append("no trainer has done a step")
        would_help += "; a queue is shared only if it is placed on a ps"
    return _verdict(Name.DEADLOCK, waits, because, Confidence.LIKELY, would_help)


def _scheduled(tasks: Sequence[TaskEvidence]) -> Iterator[str]:
    for task in tasks:
        if (count := scheduled_functions(task)) and task.place is Place.JOIN:
            yield f"{count} functions that {task.name} scheduled are running, and none has ended"


def _unknown(evidence: Evidence) -> Verdict:
    waits = waiting(evidence)
    return _verdict(
        Name.UNKNOWN,
        waits,
        [doing(task) for task in waits] or ["no trainer was seen that still has work to do"],
        Confidence.GUESS,
        "run tfdist stacks --native, and note progress in the script"
        if evidence.whole
        else "look at the other tasks of the job: this one waits for one of them",
    )


# --- the job has ended


def _failed(evidence: Evidence) -> Verdict | None:
    tasks = [task for task in evidence.tasks if task.state is State.FAILED]
    if not tasks:
        return None
    first = max(tasks, key=lambda task: task.ended_secs or 0.0)
    # A task that was killed before is the cause of the failure: the failed task lost a peer.
    killed = [
        task
        for task in evidence.tasks
        if task.state is State.DEAD and (task.ended_secs or 0.0) > (first.ended_secs or 0.0)
    ]
    if killed:
        ends = [end_of(task, over=True) for task in (*killed, first)]
        return _verdict(Name.PEER_DEAD, killed, ends)
    return _verdict(Name.TASK_FAILED, [first], [end_of(first, over=True)])


def _lost(evidence: Evidence) -> Verdict | None:
    """A task was killed, and no other task did its work."""
    tasks = [task for task in evidence.tasks if task.state is State.DEAD]
    if not tasks or (evidence.expected is not None and not evidence.missing):
        return None
    missing = [f"no task read the examples {_ranges(evidence.missing)}"] if evidence.missing else []
    ends = [end_of(task, over=True) for task in tasks]
    return _verdict(Name.PEER_DEAD, tasks, [*ends, *missing])


def _terminated(evidence: Evidence) -> Verdict | None:
    """Ctrl-C, --timeout or a stall ended the job, perhaps before a task had started."""
    unfinished = (State.TERMINATED, State.ABSENT)
    tasks = [task for task in evidence.tasks if task.trains and task.state in unfinished]
    if not tasks:
        return None
    return _verdict(
        Name.UNKNOWN,
        tasks,
        [end_of(task, over=True) for task in tasks],
        Confidence.GUESS,
        fix="run the job with --stall-timeout, which prints the verdict before it ends a job that "
        "makes no progress",
    )


def _early(evidence: Evidence) -> Verdict | None:
    if evidence.step is None or evidence.saved_step is None or evidence.saved_step >= evidence.step:
        return None
    chief = [task for task in evidence.tasks if task.trains][:1]
    why = f"the last checkpoint has step {evidence.saved_step}; the job ended at {evidence.step}"
    return _verdict(Name.SAVED_TOO_EARLY, chief, [why])


def _ledger(evidence: Evidence) -> Verdict | None:
    if evidence.missing:
        why = (
            f"all tasks ended without an error, but of {evidence.expected} examples no task read "
            f"{_ranges(evidence.missing)}"
        )
        return _verdict(Name.SILENT_TRUNCATION, [], [why])
    if evidence.duplicates:
        why = f"these examples were read more than once: {_ranges(evidence.duplicates)}"
        return _verdict(Name.DUPLICATES, [], [why])
    return None


def _fine(evidence: Evidence) -> Verdict | None:
    if evidence.expected is None:
        return _verdict(
            Name.FINE,
            [],
            ["no error was seen; tfdist does not know whether all examples were read"],
            Confidence.LIKELY,
            fix="compare the number of examples that were read, and the step of the checkpoint, "
            "with what you expect; a tfdist.train.Epoch with `expected` counts the examples",
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
    _blocked,
    _deadlock,
)
# For single tasks of a job: which task they wait for is not known.
_ALONE: Sequence[_Rule] = (
    _stopped,
    _slow,
    _unreachable,
    _connecting,
    _exhausted,
    _input,
    _dependency,
    _stopping,
    _blocked,
)
_OVER: Sequence[_Rule] = (_stopped, _failed, _lost, _terminated, _early, _ledger, _fine)


def _verdict(
    name: Name,
    culprits: Sequence[TaskEvidence],
    because: Sequence[str],
    confidence: Confidence = Confidence.CERTAIN,
    would_help: str = "",
    fix: str = "",
) -> Verdict:
    names = tuple(task.name for task in culprits)
    return Verdict(name, names, tuple(because), confidence, would_help, fix)


def _ranges(ranges: Sequence[tuple[int, int]], shown: int = 5) -> str:
    def texts() -> Iterator[str]:
        for start, stop in ranges[:shown]:
            yield str(start) if stop == start + 1 else f"{start}..{stop - 1}"
        if len(ranges) > shown:
            yield f"and {len(ranges) - shown} more ranges"

    return ", ".join(texts())
