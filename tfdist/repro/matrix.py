"""All cases of the lab: what each shows, and what it was reported as."""

from __future__ import annotations

from tfdist.cluster.shape import Shape
from tfdist.diagnosis.verdict import Name
from tfdist.errors import ConfigError
from tfdist.repro.case import Case

_ASYNCHRONOUS = (
    Case(
        "asynchronous/chief-short",
        "the chief has less data, and saves when it has ended itself",
        "the chief saves in the action of an Epoch, when all have ended",
        (Name.SAVED_TOO_EARLY,),
        examples=60,
        issues=(34750,),
    ),
    Case(
        "asynchronous/worker-short",
        "a worker has less data: the others do not need it",
        "an Epoch tells all when the last one has ended",
        (Name.FINE,),
        examples=44,
    ),
    Case(
        "asynchronous/no-device-filters",
        "a worker starts after the chief has left, and its session talks to all tasks",
        "device_filters: every ps, and itself",
        (Name.DEAD_DEPENDENCY,),
        examples=24,
        issues=(13337, 21629, 26559),
    ),
    Case(
        "asynchronous/iterator-on-other-worker",
        "the chief reads from an iterator of a worker that leaves first",
        "iterators are local",
        (Name.DEAD_DEPENDENCY,),
        examples=20,
        issues=(24338, 21745),
    ),
    Case(
        "asynchronous/iterator-on-ps",
        "the end of an iterator on the ps reaches its trainer",
        "iterators are local all the same: no batch crosses the network twice",
        (Name.FINE,),
        examples=32,
        issues=(23846,),
    ),
    Case(
        "asynchronous/shared-iterator",
        "all read from one iterator on the ps, each batch at most once",
        "a SplitQueue, which gives the rest of a trainer that dies to another",
        (Name.FINE,),
        examples=40,
    ),
)

_START = (
    Case(
        "start/chief-never-came",
        "the chief serves, as the ps do, and the others wait for it to initialise the variables",
        "graph.session: the wait has an end, whose error names the chief, which may come late",
        (Name.NOT_INITIALIZED,),
        shape=Shape(chief=True),
        examples=24,
        issues=(2472, 32081),
        stall_secs=3.0,
    ),
    Case(
        "start/variable-off-the-ps",
        "the global step is on each trainer, and nobody initialises that of a worker",
        "the device function for all variables",
        (Name.NOT_INITIALIZED,),
        examples=16,
        issues=(20585, 32081),
        stall_secs=3.0,
    ),
)

_SYNC = (
    Case(
        "sync/chief-short",
        "the chief has less data, and closes the queue of tokens: the other takes that for its end",
        "padded batches; all take each step together, until should_continue says that nobody has "
        "any",
        (Name.SILENT_TRUNCATION,),
        examples=28,
        issues=(24997, 32549),
    ),
    Case(
        "sync/worker-short",
        "a worker has less data, and the chief waits for its gradients",
        "padded batches; all take each step together, until should_continue says that nobody has "
        "any",
        (Name.STRANDED_AT_BARRIER,),
        examples=28,
        issues=(5022,),
    ),
    Case(
        "sync/default-num-tokens",
        "all have the same, but tokens to begin with let one get ahead, and leave: a race",
        "all take each step together",
        (Name.STRANDED_AT_BARRIER, Name.SILENT_TRUNCATION, Name.FINE),
        examples=48,
        issues=(18268,),
        runs=5,
    ),
    Case(
        "sync/no-extra-tokens",
        "all have the same, and num_tokens=0 keeps them together",
        "all take each step together, also where they have not the same",
        (Name.FINE,),
        examples=48,
        issues=(18268,),
    ),
)

_BARRIER = (
    Case(
        "barrier/uneven",
        "a barrier made of queues in each step, and a worker has less data",
        "a tfdist.Barrier, from which a trainer resigns when its data end",
        (Name.STRANDED_AT_BARRIER,),
        examples=28,
        issues=(14662,),
    ),
    Case(
        "barrier/misplaced-queue",
        "the queues of the barrier were left to replica_device_setter: each trainer has its own",
        "a tfdist.Barrier, whose state lies on ps 0 under any device function",
        (Name.DEADLOCK,),
        examples=24,
        issues=(17050,),
    ),
)

_MIRRORED = Shape(num_ps=0, num_workers=2)

_COLLECTIVE = (
    Case(
        "collective/short-one-lives-on",
        "a trainer has less data, leaves the loop and lives on; the other waits in an all-reduce",
        "padded batches, and any_replica_has_value tells when nobody has any",
        (Name.STRANDED_AT_BARRIER,),
        shape=_MIRRORED,
        examples=24,
        issues=(37112, 35878),
        stall_secs=4.0,
    ),
    Case(
        "collective/with-timeout",
        "the same with a timeout for an all-reduce: an error, and the rest is not read",
        "padded batches, and the timeout for a trainer that is lost",
        (Name.TASK_FAILED,),
        shape=_MIRRORED,
        examples=24,
        stall_secs=10.0,
    ),
    Case(
        "collective/distributed-dataset",
        "uneven data in a distributed dataset: TensorFlow asks all whether they have something",
        "padded batches and any_replica_has_value: then all batches have one static size",
        (Name.FINE,),
        shape=_MIRRORED,
        examples=24,
        issues=(36153, 36846),
        stall_secs=10.0,
    ),
    Case(
        "collective/infinite-and-finite",
        "one distributed dataset is infinite, and not asked; the other one is",
        "padded batches, with so many steps of the infinite one: all are asked in the same way",
        (Name.TASK_FAILED,),
        shape=_MIRRORED,
        examples=24,
        stall_secs=15.0,  # who gets no error of its own misses the other's heartbeat after 10 s
    ),
    Case(
        "collective/peer-killed",
        "a trainer is killed: the other misses its heartbeat after 10 s, and fails too",
        "both are started again and go on after what is saved, by tfdist run --restart",
        (Name.PEER_DEAD,),
        shape=_MIRRORED,
        examples=32,
        stall_secs=15.0,
    ),
    Case(
        "collective/peer-stopped",
        "a trainer is stopped: for 10 s the other waits, and then it fails",
        "it is woken before; later as if it had been killed",
        (Name.PEER_STOPPED,),
        shape=_MIRRORED,
        examples=32,
        stall_secs=4.0,
    ),
)

_COORDINATED = Shape(num_ps=1, num_workers=2, coordinator=True)

_COORDINATOR = (
    Case(
        "coordinator/finite-data",
        "iterators that end in scheduled functions: an error, which cancels all that is queued",
        "a SplitScheduler: a function gets a split, and reads it to its end",
        (Name.TASK_FAILED,),
        shape=_COORDINATED,
        examples=48,
        issues=(61129,),
        stall_secs=10.0,
    ),
    Case(
        "coordinator/slow-worker-loses-its-rest",
        "the same error is taken for the end: what a slower worker had left is not read",
        "a SplitScheduler: nothing ends by an error, and who is fast gets more splits",
        (Name.SILENT_TRUNCATION,),
        shape=_COORDINATED,
        examples=48,
        issues=(61129,),
        stall_secs=10.0,
    ),
    Case(
        "coordinator/blocking-barrier",
        "scheduled functions wait for one another, one more than there are workers",
        "no scheduled function waits for another one; the chief waits for all of them",
        (Name.DEADLOCK,),
        shape=_COORDINATED,
        examples=48,
        stall_secs=4.0,
    ),
    Case(
        "coordinator/worker-stopped",
        "a worker is stopped: the chief waits for its function in join",
        "run_epoch has a timeout; who is stopped is killed, and its split goes on elsewhere",
        (Name.PEER_STOPPED,),
        shape=_COORDINATED,
        examples=48,
        stall_secs=5.0,
    ),
    Case(
        "coordinator/default-threads",
        "all servers in one process, with no thread left for what the workers ask of the ps",
        "inter_op_parallelism_threads is the number of workers + 1",
        (Name.THREADS_EXHAUSTED,),
        shape=Shape(num_ps=0, num_workers=1),
        examples=48,
        stall_secs=4.0,
    ),
)

_FAULTS = (
    Case(
        "faults/worker-killed-async",
        "a worker is killed, and nobody else reads what it had left",
        "a SplitQueue: the others go on with its split, at its committed offset",
        (Name.PEER_DEAD,),
        examples=48,
        stall_secs=4.0,
    ),
    Case(
        "faults/worker-killed-sync",
        "a worker is killed, and the step of the others waits for it",
        "the wait of a step has a timeout and names it; started again, it goes on where it was",
        (Name.PEER_DEAD,),
        examples=48,
        stall_secs=4.0,
    ),
    Case(
        "faults/worker-stopped-sync",
        "a worker is stopped, and the step of the others waits for it",
        "the wait of a step has a timeout and names it; woken, it goes on",
        (Name.PEER_STOPPED,),
        examples=48,
        stall_secs=4.0,
    ),
    Case(
        "faults/ps-killed",
        "the ps is killed, and the others hang when they close their sessions",
        "nobody waits long in close; they begin anew, from the checkpoint, on a ps that is new",
        (Name.DEAD_DEPENDENCY,),
        examples=48,
        issues=(24338, 21745),
        stall_secs=4.0,
    ),
    Case(
        "faults/ps-stopped",
        "the ps is stopped, and no step ends",
        "a barrier, whose timeout names the ps; it is woken, and all goes on",
        (Name.PEER_STOPPED,),
        examples=48,
        stall_secs=4.0,
    ),
)

_INPUT = (
    Case(
        "input/generator-never-answers",
        "the generator of a worker waits for ever, and the chief for the step of the worker",
        "it has a deadline; whoever cannot read gives its split back, and another one reads it",
        (Name.INPUT_STALLED,),
        examples=32,
        issues=(23846,),
    ),
    Case(
        "input/file-never-answers",
        "a read of a file does not return, as on a mount whose server has gone",
        "it has a deadline; whoever cannot read gives its split back, and another one reads it",
        (Name.INPUT_STALLED,),
        examples=32,
        issues=(23846,),
    ),
    Case(
        "input/on-the-ps-with-timeout",
        "the same file is read on the ps: there the timeout ends the run, and the share is lost",
        "who reads is who trains, with a deadline; the split is given back",
        (Name.TASK_FAILED,),
        examples=32,
        issues=(23846,),
    ),
)

_DATA_SERVICE = (
    Case(
        "data-service/worker-killed",
        "the worker of a tf.data service is killed, and the trainer waits for its batches",
        "no service: the trainers read splits of a SplitQueue, also those of one that is lost",
        (Name.PEER_DEAD,),
        shape=Shape(num_workers=3),
        examples=200,
        stall_secs=4.0,
    ),
    Case(
        "data-service/dispatcher-killed",
        "the dispatcher is killed: the trainer gets all batches, and never hears that they end",
        "the dispatcher keeps a journal; a deadline of the input has it started again",
        (Name.PEER_DEAD,),
        shape=Shape(num_ps=0, num_workers=3),
        examples=200,
        stall_secs=4.0,
    ),
)

_SLOW = (
    Case(
        "slow/nonchief-start",
        "a worker looks before the chief has initialised, and again after 30 s only",
        "graph.session looks each moment",
        (Name.SLOW_START,),
        examples=32,
    ),
    Case(
        "slow/stop-grace",
        "a thread of a synchronous chief waits for gradients, and the end of the chief for it",
        "steps that are agreed on at a barrier, without a thread",
        (Name.SLOW_EXIT,),
        examples=32,
    ),
    Case(
        "slow/close",
        "inputs that tune themselves: a thread of one may keep the session from being closed",
        "no input tunes itself, as padded has it",
        (Name.SLOW_EXIT, Name.FINE),
        examples=32,
    ),
    Case(
        "slow/imports",
        "a worker imports something large, and the chief waits for its step",
        "a note of progress after each part",
        (Name.SLOW_START,),
        examples=32,
    ),
    Case(
        "slow/long-step",
        "a Python function in the step of a worker takes long",
        "it notes progress",
        (Name.SLOW,),
        examples=32,
    ),
    Case(
        "slow/long-step-in-python",
        "the script of a worker takes long between two steps",
        "it notes progress",
        (Name.SLOW,),
        examples=32,
    ),
    Case(
        "slow/long-step-in-tensorflow",
        "a worker computes for long in one run",
        "several runs, and a note of progress after each",
        (Name.SLOW,),
        examples=32,
    ),
    Case(
        "slow/slow-input",
        "a Python function in the input of a worker takes long for a batch",
        "it notes progress",
        (Name.SLOW,),
        examples=32,
    ),
    Case(
        "slow/barrier-op",
        "the chief waits at a barrier within its step, for a worker that takes long",
        "the worker notes progress",
        (Name.SLOW,),
        examples=32,
    ),
    Case(
        "slow/evaluation",
        "the chief evaluates, and the others wait at a barrier",
        "it notes progress",
        (Name.SLOW,),
        examples=32,
    ),
    Case(
        "slow/chief-saves",
        "the chief copies a checkpoint to a slow disk, in the action of a barrier",
        "it notes progress after each file",
        (Name.SLOW,),
        examples=32,
    ),
    Case(
        "slow/evaluation-after-a-death",
        "a worker is dead that nobody waits for, and the chief evaluates",
        "it notes progress",
        (Name.SLOW,),
        examples=32,
    ),
)

# The job of tensorflow#23846; `grid` has it in other sizes.
T23846 = Case(
    "t23846/end-of-epoch",
    "the job of 2018: it hung at the last batch, on random nodes",
    "padded batches, and an end of each epoch that all know",
    (Name.FINE,),
    shape=Shape(num_ps=2, num_workers=4),
    examples=4 * 96 * 3,
    issues=(23846,),
    stall_secs=4.0,
    settings={"inter_op": 4, "iterator_on_ps": False, "epochs": 3},
)

CASES: tuple[Case, ...] = (
    T23846,
    *_ASYNCHRONOUS,
    *_START,
    *_SYNC,
    *_BARRIER,
    *_COLLECTIVE,
    *_COORDINATOR,
    *_FAULTS,
    *_INPUT,
    *_DATA_SERVICE,
    *_SLOW,
)


def find(name: str) -> Case:
    """The case of this name.

    Raises:
        ConfigError: there is none.
    """
    for case in CASES:
        if case.name == name or (case is T23846 and name == case.family):
            return case
    raise ConfigError("CASE", name, "one that `tfdist repro list` shows")
