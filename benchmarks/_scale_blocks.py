"""The measurements of each kind of message: a burst from many trainers, and single messages.

Each trainer has its own server, and therefore its own connection to the ps. CPU times are taken
from bursts: the ps of a large job is busy, and an idle ps takes longer for a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import tfdist
from benchmarks import _scale_kinds as kinds
from benchmarks import _scale_load as load
from benchmarks._scale_crew import Call, Crew
from benchmarks._scale_kinds import Kind, Pair, Sample, Sizes, mean
from benchmarks._scale_parties import barriers
from benchmarks._scale_splits import Reader
from tfdist.cluster.server import start_server
from tfdist.ps.session import retry_duplicate_request
from tfdist.task import ClusterSpec

# Counts in a round: messages of each trainer in a burst, single messages, claims of each trainer.
_BURST, _ALONE, _CLAIMS = 8, 16, 4
_BATCHES = 6  # of a split: 2 for single commits, 2 for commits in a run, 1 for a chain, 1 spare

Block = Callable[[Crew], dict[Kind, Pair]]


def blocks(sizes: Sizes, cluster_spec: ClusterSpec, opened: ExitStack) -> list[Block]:
    """The blocks of a round, which may run in any order; blocks until all graphs are built.

    Args:
        sizes: of the messages, and the number of senders.
        cluster_spec: two ps, and one worker for each sender.
        opened: closes the sessions.
    """
    (few, many), (small, large) = sizes.parties, sizes.splits
    trainers = [
        _Trainer(sizes, tfdist.Task("worker", rank, cluster_spec), opened) for rank in range(few)
    ]
    present = {few: [each.task for each in trainers], many: load.named(cluster_spec, many, few)}
    found: list[Block] = [
        partial(_send, kind, [trainer.calls[kind] for trainer in trainers])
        for kind in trainers[0].calls
    ]
    found.append(
        partial(_read, _phases_in_runs(trainers, small), [each.reader for each in trainers])
    )
    for parties, splits in ((few, large), (many, small)):
        readers = _readers(present[parties], trainers[0], splits, opened)
        found.append(partial(_read, _phases(readers, splits, parties), readers))
    for name, kind in ((kinds.ARRIVAL, "queue"), (kinds.POLLED_ARRIVAL, "counter")):
        [alone] = barriers(load.named(cluster_spec, 1, 1), f"{kind}_alone", kind, opened)
        for parties, tasks in present.items():
            waits = [each.wait for each in barriers(tasks, f"{kind}_{parties}", kind, opened)]
            found.append(partial(_send, Kind(name, 0, parties), waits, alone=alone.wait))
    return found


# Messages in any order.


class _Trainer:
    """The runs of a trainer through its own server, and a reader that commits in such runs.

    The chief's instance initializes the variables.
    """

    def __init__(self, sizes: Sizes, task: tfdist.Task, opened: ExitStack) -> None:
        import tensorflow as tf

        self.task, self._target = task, start_server(task).target
        with tf.Graph().as_default():
            variables = load.Variables("costs", task.device, sizes.dense_bytes)
            update = variables.count()
            operations: dict[Kind, Any] = {
                Kind(kinds.RUN): load.nothing_on(1, task.device),
                Kind(kinds.RUN_ON_TWO): load.nothing_on(2, task.device),
                Kind(kinds.UPDATE): [update, *load.nothing_on(1, task.device)],
            }
            for number, size in enumerate(sizes.dense_bytes):
                operations[Kind(kinds.PULL, size)] = variables.pull(number)
                operations[Kind(kinds.PUSH, size)] = variables.push(number)
            for rows in sizes.rows:
                ids = variables.ids(rows)
                operations[Kind(kinds.LOOKUP, rows)] = variables.lookup(ids)
                operations[Kind(kinds.SCATTER, rows)] = variables.scatter(ids)
            queue = load.split_queue(task, "runs", sizes.splits[0], _BATCHES)
            self._commit = self._chain = queue.commit_after([update])
            for _ in range(kinds.CHAINED - 1 if task.rank < kinds.CHAINS else 0):
                self._chain = queue.commit_after([self._chain])
            initialize = tf.compat.v1.global_variables_initializer()
            self._session = opened.enter_context(closing(self.open_session()))
            if task.is_chief:
                self._session.run(initialize)
        self.calls: dict[Kind, Call] = {
            kind: partial(retry_duplicate_request, self._session.make_callable(operation))
            for kind, operation in operations.items()
        }
        direct = opened.enter_context(closing(load.StraightToPs(task.cluster_spec["ps"][0])))
        self.calls[Kind(kinds.DIRECT)] = direct.run
        self.reader = Reader(opened.enter_context(closing(queue)))
        self.reader.begin()

    def open_session(self) -> Any:
        """Opens another session on the trainer's server, for the default graph."""
        return load.open_session(self._target, self.task.device)

    def commit(self) -> None:
        """Commits a batch in the run of an addition."""
        self._run(self._commit)

    def chain(self) -> None:
        """Commits a batch, and repeats the same commit several times, in one run."""
        self._run(self._chain)

    def _run(self, fetched: Any) -> None:
        split = self.reader.split
        split.committed(retry_duplicate_request(self._session.run, fetched, split.feed))


def _send(
    kind: Kind, calls: Sequence[Call], crew: Crew, *, alone: Call | None = None
) -> dict[Kind, Pair]:
    """Measures a message sent by all trainers, and then by one."""
    return {kind: Pair(crew.measure(calls, _BURST), crew.measure([alone or calls[0]], _ALONE))}


# Messages about splits, which have a fixed order.


@dataclass(frozen=True)
class _Phase:
    """A call that each reader makes `times` times."""

    kind: Kind
    calls: Sequence[Call]
    times: int


def _phases(readers: Sequence[Reader], splits: int, parties: int) -> list[_Phase]:
    def phase(name: str, call: Callable[[Reader], Call], times: int) -> _Phase:
        return _Phase(Kind(name, splits, parties), [call(reader) for reader in readers], times)

    return [
        phase(kinds.CLAIM, lambda reader: reader.claim, 1),
        phase(kinds.COMMIT, lambda reader: reader.commit, 2),
        phase(kinds.RENEW, lambda reader: reader.renew, 2),
    ]


def _phases_in_runs(trainers: Sequence[_Trainer], splits: int) -> list[_Phase]:
    in_run, chain = (Kind(name, splits, len(trainers)) for name in (kinds.WITH_COMMIT, kinds.CHAIN))
    return [
        *_phases([trainer.reader for trainer in trainers], splits, len(trainers)),
        _Phase(in_run, [trainer.commit for trainer in trainers], 2),
        _Phase(chain, [trainer.chain for trainer in trainers[: kinds.CHAINS]], 1),
    ]


def _read(phases: Sequence[_Phase], readers: Sequence[Reader], crew: Crew) -> dict[Kind, Pair]:
    """Measures some splits of all readers, and then of the first reader alone."""

    def found(count: int) -> dict[Kind, Sample]:
        samples: dict[Kind, list[Sample]] = {phase.kind: [] for phase in phases}
        for _ in range(_CLAIMS):
            for phase in phases:
                samples[phase.kind].append(crew.measure(phase.calls[:count], phase.times))
            for reader in readers[:count]:
                reader.finish()
        return {kind: mean(each) for kind, each in samples.items()}

    bursts, alone = found(len(readers)), found(1)
    return {kind: Pair(bursts[kind], alone[kind]) for kind in bursts}


def _readers(
    tasks: Sequence[tfdist.Task], trainer: _Trainer, splits: int, opened: ExitStack
) -> list[Reader]:
    """Makes readers of a new table, which `trainer` initializes."""
    import tensorflow as tf

    made = []
    for task in tasks:
        with tf.Graph().as_default():
            name = f"of{len(task.trainers)}_{splits}"
            queue = load.split_queue(task, name, splits, _BATCHES)
            if task.is_chief:
                initialize = tf.compat.v1.global_variables_initializer()
                with trainer.open_session() as session:
                    session.run(initialize)
        made.append(Reader(opened.enter_context(closing(queue))))
        made[-1].begin()
    return made
