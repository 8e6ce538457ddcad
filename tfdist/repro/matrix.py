"""All cases of the lab: what each job does, what goes wrong, and how its fix works."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tfdist.cluster.shape import Shape
from tfdist.diagnosis.verdict import Name
from tfdist.errors import ConfigError, did_you_mean
from tfdist.repro.case import Case

_IN_STEP = (
    "endless_batches pads each trainer's data, and Epoch.should_continue keeps the trainers in "
    "step until none of them has data left."
)
_NAMED = "Epoch.should_continue times out and names the {}. It is {}, and the training continues."
_PADDED = "endless_batches pads the data, and any_replica_has_value ends all loops together."
_RELEASES = (
    "Each trainer reads its own files, with a deadline. A trainer whose input hangs releases its "
    "split, and another trainer reads it."
)
_PROGRESS = "The {} reports progress while it works."

_ASYNCHRONOUS = (
    Case(
        "asynchronous/chief-short",
        "The chief has fewer batches than the worker. It saves after its own last batch, while "
        "the worker still trains: the checkpoint lacks the last steps.",
        "The chief saves in the action of an Epoch, which runs when all trainers have finished.",
        (Name.SAVED_TOO_EARLY,),
        examples=60,
        issues=(34750,),
    ),
    Case(
        "asynchronous/worker-short",
        "A worker has fewer batches than the chief and leaves early. Nothing hangs: asynchronous "
        "trainers do not need one another.",
        "An Epoch lets all trainers end together, and counts the examples that they read.",
        (Name.FINE,),
        examples=44,
    ),
    Case(
        "asynchronous/no-device-filters",
        "The sessions have no device_filters, so each contacts every task. A worker that starts "
        "after the chief has exited hangs in Session._extend_graph.",
        "device_filters limit each session to the ps tasks and the trainer itself.",
        (Name.DEAD_DEPENDENCY,),
        examples=24,
        issues=(13337, 21629, 26559),
    ),
    Case(
        "asynchronous/iterator-on-other-worker",
        "The chief reads from an iterator that is placed on worker 1, which exits first. The "
        "chief then hangs in Session.close.",
        "Each trainer has its own iterator.",
        (Name.DEAD_DEPENDENCY,),
        examples=20,
        issues=(24338, 21745),
    ),
    Case(
        "asynchronous/iterator-on-ps",
        "Each trainer reads from its own iterator on the ps. Nothing hangs: OutOfRangeError "
        "reaches the trainer as it should.",
        "Local iterators all the same: then no batch crosses the network twice.",
        (Name.FINE,),
        examples=32,
        issues=(23846,),
    ),
    Case(
        "asynchronous/shared-iterator",
        "All trainers share one iterator on the ps, and each batch goes to one of them. Nothing "
        "hangs, but a trainer that dies takes its batches with it.",
        "A SplitQueue hands out ranges of examples. If a trainer dies, another trainer reads the "
        "rest of its range.",
        (Name.FINE,),
        examples=40,
    ),
)

_START = (
    Case(
        "start/chief-never-initializes",
        "The script calls server.join() for every task that is not a worker, and so for the chief. "
        "The workers wait forever for the chief to initialize the variables.",
        "tfdist.train.session waits with a timeout, and its error names the chief. The chief may "
        "come late: the next attempt succeeds.",
        (Name.NOT_INITIALIZED,),
        shape=Shape(chief=True),
        examples=24,
        issues=(2472, 32081),
        stall_secs=3.0,
    ),
    Case(
        "start/variable-not-on-ps",
        "The global step is created outside the device function, so each trainer has its own. The "
        "worker waits forever, because the chief initializes only its own copy.",
        "All variables are created under graph.device_setter.",
        (Name.NOT_INITIALIZED,),
        examples=16,
        issues=(20585, 32081),
        stall_secs=3.0,
    ),
)

_SYNC = (
    Case(
        "sync/chief-short",
        "SyncReplicasOptimizer; the chief has fewer batches. It closes the token queue when it "
        "ends. The worker takes the OutOfRangeError for the end of its own data and exits with 0.",
        _IN_STEP,
        (Name.SILENT_TRUNCATION,),
        examples=28,
        issues=(24997, 32549),
    ),
    Case(
        "sync/worker-short",
        "SyncReplicasOptimizer; a worker has fewer batches and ends. The chief hangs in "
        "session.run, waiting for the worker's gradients.",
        _IN_STEP,
        (Name.STRANDED_AT_BARRIER,),
        examples=28,
        issues=(5022,),
    ),
    Case(
        "sync/default-num-tokens",
        "SyncReplicasOptimizer with the default num_tokens; all trainers have equally many "
        "batches. A race: one trainer may run ahead and leave, and the job hangs or loses data.",
        _IN_STEP,
        (Name.STRANDED_AT_BARRIER, Name.SILENT_TRUNCATION, Name.FINE),
        examples=48,
        issues=(18268,),
        runs=5,
    ),
    Case(
        "sync/no-extra-tokens",
        "SyncReplicasOptimizer with num_tokens=0; all trainers have equally many batches. Nothing "
        "hangs: no trainer can run ahead.",
        _IN_STEP,
        (Name.FINE,),
        examples=48,
        issues=(18268,),
    ),
)

_BARRIERS = (
    Case(
        "barrier/uneven",
        "A hand-made barrier of queues in each step; a worker has fewer batches and leaves. The "
        "chief hangs in session.run, waiting for the worker's token.",
        "A tfdist.Barrier, which a trainer resigns from when its data ends.",
        (Name.STRANDED_AT_BARRIER,),
        examples=28,
        issues=(14662,),
    ),
    Case(
        "barrier/misplaced-queue",
        "A hand-made barrier of queues under replica_device_setter, which puts only variables on "
        "the ps. Each trainer has queues of its own, and all hang in the first step.",
        "A tfdist.Barrier, which keeps its state on ps 0 under any device function.",
        (Name.DEADLOCK,),
        examples=24,
        issues=(17050,),
    ),
)

_mirrored = partial(Case, shape=Shape(num_ps=0, num_workers=2), examples=24)
_COLLECTIVE = (
    _mirrored(
        "collective/short-one-stays",
        "MultiWorkerMirroredStrategy with plain iterators; one trainer has fewer batches and "
        "leaves the loop, but its process stays. The other trainer hangs in an all-reduce.",
        _PADDED,
        (Name.STRANDED_AT_BARRIER,),
        issues=(37112, 35878),
        stall_secs=4.0,
    ),
    _mirrored(
        "collective/with-timeout",
        "As collective/short-one-stays, with timeout_seconds in the CommunicationOptions. The "
        "all-reduce fails instead of hanging, and the rest of the data is not read.",
        f"{_PADDED} The timeout then means that a trainer is lost.",
        (Name.TASK_FAILED,),
        stall_secs=10.0,
    ),
    _mirrored(
        "collective/distributed-dataset",
        "MultiWorkerMirroredStrategy with a distributed dataset; one trainer has fewer batches. "
        "Nothing hangs: before each step TensorFlow asks all trainers whether any has data.",
        f"{_PADDED} All batches then have one static size.",
        (Name.FINE,),
        issues=(36153, 36846),
        stall_secs=10.0,
    ),
    _mirrored(
        "collective/infinite-and-finite",
        "MultiWorkerMirroredStrategy; the chief's distributed dataset is infinite, the worker's "
        "is finite. TensorFlow checks only a finite dataset for its end: the first step fails.",
        "endless_batches(..., steps=N) on the infinite dataset. Then both trainers check alike.",
        (Name.TASK_FAILED,),
        stall_secs=15.0,  # a trainer without an error of its own misses a heartbeat after 10 s
    ),
    _mirrored(
        "collective/peer-killed",
        "MultiWorkerMirroredStrategy; a trainer is killed. The other trainer waits in an "
        "all-reduce until it has missed the heartbeat for 10 s, and fails.",
        "tfdist run --restart starts all trainers again, and they resume from the checkpoint.",
        (Name.PEER_DEAD,),
        examples=32,
        stall_secs=15.0,
    ),
    _mirrored(
        "collective/peer-stopped",
        "MultiWorkerMirroredStrategy; a trainer is stopped (SIGSTOP). The other trainer waits in "
        "an all-reduce until it has missed the heartbeat for 10 s, and fails.",
        "The trainer is resumed within 10 s. Later, it has to be restarted like a killed one.",
        (Name.PEER_STOPPED,),
        examples=32,
        stall_secs=4.0,
    ),
)

_coordinated = partial(Case, shape=Shape(coordinator=True), examples=48)
_COORDINATOR = (
    _coordinated(
        "coordinator/finite-data",
        "ClusterCoordinator; scheduled functions read finite per-worker iterators. When one ends, "
        "join() raises OutOfRangeError and every queued function is cancelled.",
        "A SplitScheduler: each function reads one split, and no error means the end of the data.",
        (Name.TASK_FAILED,),
        issues=(61129,),
        stall_secs=10.0,
    ),
    _coordinated(
        "coordinator/slow-worker-loses-data",
        "ClusterCoordinator; the script takes the OutOfRangeError of join() for the end of the "
        "epoch. What a slower worker had left is never read.",
        "A SplitScheduler: fast workers read more splits, and the epoch ends when all are read.",
        (Name.SILENT_TRUNCATION,),
        issues=(61129,),
        stall_secs=10.0,
    ),
    _coordinated(
        "coordinator/blocking-barrier",
        "ClusterCoordinator; three scheduled functions wait for one another, but there are two "
        "workers. join() hangs: the third function never starts.",
        "No scheduled function waits for another one; the chief waits for all of them.",
        (Name.DEADLOCK,),
        stall_secs=4.0,
    ),
    _coordinated(
        "coordinator/worker-stopped",
        "ClusterCoordinator; a worker is stopped (SIGSTOP). join() hangs, because no other worker "
        "gets the function of the stopped one.",
        "SplitScheduler.run_epoch has a timeout. The chief then kills the worker, and another "
        "worker reads its split.",
        (Name.PEER_STOPPED,),
        stall_secs=5.0,
    ),
    _coordinated(
        "coordinator/default-threads",
        "ClusterCoordinator with all servers in one process, on a machine with few cores. The "
        "workers' calls to the ps block every thread, and the chief hangs.",
        "inter_op_parallelism_threads is the number of workers + 1.",
        (Name.THREADS_EXHAUSTED,),
        shape=Shape(num_ps=0, num_workers=1),
        stall_secs=4.0,
    ),
)

_fault = partial(Case, examples=48, stall_secs=4.0)
_FAULTS = (
    _fault(
        "faults/worker-killed-async",
        "Each trainer has a fixed share of the data; a worker is killed. The chief ends without "
        "an error, and the rest of the worker's share is never read.",
        "A SplitQueue: when the worker's lease ends, the chief continues its split at the "
        "committed offset.",
        (Name.PEER_DEAD,),
    ),
    _fault(
        "faults/worker-killed-sync",
        "Each step waits for all trainers; a worker is killed. The chief hangs in session.run.",
        _NAMED.format("worker", "restarted"),
        (Name.PEER_DEAD,),
    ),
    _fault(
        "faults/worker-stopped-sync",
        "Each step waits for all trainers; a worker is stopped (SIGSTOP). The chief hangs in "
        "session.run.",
        _NAMED.format("worker", "resumed"),
        (Name.PEER_STOPPED,),
    ),
    _fault(
        "faults/ps-killed",
        "The ps is killed during a step. The trainers hang in Session.close, waiting for the ps.",
        "Each trainer opens a new session on the restarted ps, and the chief restores the "
        "checkpoint.",
        (Name.DEAD_DEPENDENCY,),
        issues=(24338, 21745),
    ),
    _fault(
        "faults/ps-stopped",
        "The ps is stopped (SIGSTOP). Its connections stay open, so session.run hangs without an "
        "error.",
        _NAMED.format("ps", "resumed"),
        (Name.PEER_STOPPED,),
    ),
)

_input = partial(Case, examples=32, issues=(23846,))
_INPUT = (
    _input(
        "input/generator-never-answers",
        "The generator of a worker's Dataset.from_generator waits forever. Each step waits for "
        "all trainers, so the chief hangs as well.",
        _RELEASES,
        (Name.INPUT_STALLED,),
    ),
    _input(
        "input/file-never-answers",
        "A read of a file never returns, as on a mount whose server is gone. The worker hangs in "
        "session.run.",
        _RELEASES,
        (Name.INPUT_STALLED,),
    ),
    _input(
        "input/on-the-ps-with-timeout",
        "As input/file-never-answers, but the ps reads the file. RunOptions.timeout_in_ms does "
        "end the run there, and the worker's share is lost.",
        _RELEASES,
        (Name.TASK_FAILED,),
    ),
)

_service = partial(Case, examples=200, stall_secs=4.0)
_DATA_SERVICE = (
    _service(
        "data-service/worker-killed",
        "The worker of a tf.data service is killed. The trainer hangs, waiting for its batches.",
        "No service: the trainers read splits of a SplitQueue, also those of a lost trainer.",
        (Name.PEER_DEAD,),
        shape=Shape(num_workers=3),
    ),
    _service(
        "data-service/dispatcher-killed",
        "The dispatcher of a tf.data service is killed. The trainer reads all batches, then hangs: "
        "it never learns that the data has ended.",
        "The dispatcher keeps a journal, and is restarted when the input misses its deadline.",
        (Name.PEER_DEAD,),
        shape=Shape(num_ps=0, num_workers=3),
    ),
)


def _slow(name: str, about: str, fix: str, *expects: Name) -> Case:
    """A job that only looks as if it hung."""
    return Case(f"slow/{name}", about, fix, expects or (Name.SLOW,), examples=32)


_SLOW = (
    _slow(
        "nonchief-start",
        "A worker checks whether the variables are initialized just before the chief initializes "
        "them. MonitoredTrainingSession checks again only after 30 s.",
        "tfdist.train.session checks 20 times a second.",
        Name.SLOW_START,
    ),
    _slow(
        "stop-grace",
        "SyncReplicasOptimizer; a thread of the chief waits for gradients that will not come. The "
        "chief's session waits for this thread before it closes, up to 120 s.",
        "Epoch.should_continue keeps the trainers in step without a thread.",
        Name.SLOW_EXIT,
    ),
    _slow(
        "close",
        "The thread that autotunes a tf.data input keeps Session.close waiting, up to 60 s: a "
        "race.",
        "The input is not autotuned, as in endless_batches.",
        Name.SLOW_EXIT,
        Name.FINE,
    ),
    _slow(
        "imports",
        "A worker imports a large package between two steps, and the chief's step waits for it.",
        "The worker imports one part after another, and reports progress after each.",
        Name.SLOW_START,
    ),
    _slow(
        "long-step",
        "A tf.py_function in a worker's step takes a long time, and the chief's step waits for it.",
        _PROGRESS.format("function"),
    ),
    _slow(
        "long-step-in-python",
        "A worker's script takes a long time between two steps, and the chief's step waits for it.",
        _PROGRESS.format("script"),
    ),
    _slow(
        "long-step-in-tensorflow",
        "One session.run of a worker computes for a long time, and the chief's step waits for it.",
        "The worker computes in several runs, and reports progress after each.",
    ),
    _slow(
        "slow-input",
        "A Python function in a worker's input takes a long time for one batch, and the chief's "
        "step waits for it.",
        _PROGRESS.format("function"),
    ),
    _slow(
        "barrier-op",
        "The chief waits in the Barrier.op of its step for a worker that takes a long time.",
        _PROGRESS.format("worker"),
    ),
    _slow(
        "evaluation",
        "The chief evaluates, and the worker waits for it at a barrier.",
        _PROGRESS.format("chief"),
    ),
    _slow(
        "chief-saves",
        "The chief copies a checkpoint to a slow disk in the action of a barrier, and the worker "
        "waits at the barrier.",
        "The chief copies one file after another, and reports progress after each.",
    ),
    _slow(
        "evaluation-after-worker-death",
        "A worker that has read all its data is killed, and the chief evaluates. The chief is only "
        "slow: it does not wait for the dead worker.",
        _PROGRESS.format("chief"),
    ),
)


@dataclass(frozen=True)
class EpochSettings:
    """The settings of `T23846` beyond its shape.

    Attributes:
        inter_op: threads for operations, of each server.
        iterator_on_ps: True to place the iterators on the ps.
        epochs: how many epochs a run has.
    """

    inter_op: int = 4
    iterator_on_ps: bool = False
    epochs: int = 3


# `grid` makes this job in other sizes.
T23846 = Case(
    "t23846/end-of-epoch",
    "The job of tensorflow#23846, as reported in 2018: it hung at the last batch of an epoch, on "
    "random nodes. It does not hang on today's TensorFlow.",
    "Padded batches, local iterators, and an Epoch whose end all trainers agree on.",
    (Name.FINE,),
    shape=Shape(num_ps=2, num_workers=4),
    examples=4 * 96 * 3,
    issues=(23846,),
    stall_secs=4.0,
    settings=EpochSettings(),
)

CASES: tuple[Case, ...] = (
    T23846,
    *_ASYNCHRONOUS,
    *_START,
    *_SYNC,
    *_BARRIERS,
    *_COLLECTIVE,
    *_COORDINATOR,
    *_FAULTS,
    *_INPUT,
    *_DATA_SERVICE,
    *_SLOW,
)
FAMILIES = tuple(dict.fromkeys(case.family for case in CASES))


def find(name: str) -> Case:
    """The case of this name.

    Raises:
        ConfigError: there is none.
    """
    cases = {case.name: case for case in CASES} | {T23846.family: T23846}
    if name in cases:
        return cases[name]
    if name in FAMILIES:
        family = ", ".join(case.name for case in CASES if case.family == name)
        raise ConfigError("CASE", name, f"is a family of cases; name one: {family}")
    hint = did_you_mean(name, cases, count=3)
    raise ConfigError("CASE", name, f"`tfdist repro list` shows all cases{hint}")
