"""What a barrier tells somebody who is not one of its trainers; reading it changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from tfdist.barrier.connection import Connection, Snapshot
from tfdist.deadline import Deadline
from tfdist.errors import ConfigError
from tfdist.runs.barrier_notes import (
    ARRIVED,
    MISSING,
    RESIGNED,
    BarrierNote,
    BarrierReport,
    Place,
)


def read_barrier(
    address: str, trainers: Sequence[str], note: BarrierNote, timeout: float
) -> BarrierReport:
    """Asks the ps at `address`, without entering the barrier; blocks for `timeout` seconds at most.

    Closing the connection may take RECHECK_SECS more.

    Args:
        address: of ps 0.
        trainers: names of all of the cluster, by rank.
        note: the barrier that is meant.
        timeout: in seconds.

    Raises:
        tf.errors.UnavailableError: the ps is not there.
        tf.errors.DeadlineExceededError: it does not answer.
    """
    names = trainers[: note.parties]
    connection = Connection(address, note.name, names, 0, has_action=False)
    try:
        snapshot = connection.look_if_made(Deadline(timeout))
    except ConfigError as error:
        return BarrierReport(note.name, problem=str(error))
    finally:
        connection.close()
    return BarrierReport(note.name) if snapshot is None else _report(note.name, names, snapshot)


def _report(name: str, names: Sequence[str], snapshot: Snapshot) -> BarrierReport:
    rules = snapshot.arrivals
    states = dict.fromkeys(range(len(names)), RESIGNED)
    states |= dict.fromkeys(rules.waiting, ARRIVED) | dict.fromkeys(rules.missing, MISSING)
    return BarrierReport(
        name,
        rules.generation,
        tuple(Place(names[rank], state, snapshot.ages[rank]) for rank, state in states.items()),
        acts=rules.acting,
        broken=snapshot.reason if rules.broken else None,
    )
