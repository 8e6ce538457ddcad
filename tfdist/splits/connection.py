"""A trainer's session with the table of splits: a private graph, straight to ps 0."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.deadline import Deadline
from tfdist.errors import ClusterError, reason_of
from tfdist.ps.session import PS_DEVICE, DirectSession
from tfdist.splits.table import BUSY, Answer, TableOps

# A call to a lost ps waits for this long (`set_fail_fast(false)` in
# core/distributed_runtime/rpc/grpc_remote_master.cc).
_ANSWER_SECS = 10.0
_BUSY_SECS = 0.001
_LOST = "ps:0, where the splits are kept, was lost: "


class Connection:
    """Runs the ops of a trainer, each call in one run; blocks for 10 s at most.

    A lost ps raises UnavailableError, and a restarted one AbortedError, from which a session
    recovers; a ps that does not answer raises DeadlineExceededError. The messages name the ps.

    Args:
        address: of the ps.
        ops: of the trainer.
        incarnation: of this process.
        batch_size: records to reserve at a time.
    """

    def __init__(self, address: str, ops: TableOps, incarnation: int, batch_size: int) -> None:
        self._address, self._ops, self._incarnation = address, ops, incarnation
        self._size, self._graph = np.int64(batch_size), tf.Graph()
        self._built: dict[Callable[..., Any], Any] = {}
        with self._graph.as_default(), tf.compat.v1.device(PS_DEVICE):
            number = [tf.compat.v1.placeholder(tf.int64, []) for _ in range(3)]
            self._fed_incarnation, self._fed_number, self._fed_offset = number
            self._starts = tf.compat.v1.placeholder(tf.int64, [None])
            self._stops = tf.compat.v1.placeholder(tf.int64, [None])
        self._session = DirectSession(address, self._graph, timeout=_ANSWER_SECS)

    def enter(self) -> Answer:
        """Lets this process act for the trainer."""
        return self._ask(self._ops.enter, self._own())

    def leave(self) -> Answer:
        """Ends this incarnation, unless another process has replaced it."""
        return self._ask(self._ops.leave, self._own())

    def freeze(self) -> Answer:
        """Freezes the table."""
        return self._ask(self._ops.freeze, self._own())

    def unfreeze(self) -> Answer:
        """Unfreezes the table."""
        return self._ask(self._ops.unfreeze, self._own())

    def recover(self) -> None:
        """Ends every lease and every incarnation, after a restore."""
        self._ask(self._ops.recover, {})

    def claim(self, epoch: int) -> Answer:
        """Claims a split of the epoch."""
        return self._ask(self._ops.claim, self._own() | {self._fed_number: epoch}, self._size)

    def commit(self, attempt: int, offset: int) -> Answer:
        """Commits all records before `offset`."""
        feed = self._own() | {self._fed_number: attempt, self._fed_offset: offset}
        return self._ask(self._ops.commit, feed, self._size)

    def release(self, attempt: int) -> Answer:
        """Ends the lease."""
        return self._ask(self._ops.release, self._own() | {self._fed_number: attempt})

    def begin_epoch(self, epoch: int, splits: list[tuple[int, int]]) -> Answer:
        """Makes the splits free in this order, if the epoch before is over."""
        starts, stops = np.array(splits, np.int64).reshape(-1, 2).T
        feed = {self._fed_number: epoch, self._starts: starts, self._stops: stops}
        return self._ask(self._ops.begin_epoch, feed)

    def snapshot(self) -> dict[str, Any]:
        """All variables of the table by name."""
        found: dict[str, Any] = self._until(
            lambda values: len(values["counts"]) > 0, self._op(self._ops.snapshot), {}
        )
        return found

    def close(self) -> None:
        """Closes the connection, also if the ps is gone."""
        self._session.close()

    def _own(self) -> dict[Any, Any]:
        return {self._fed_incarnation: self._incarnation}

    def _op(self, build: Callable[..., Any], *args: Any) -> Any:
        """What `build` builds from `args`, on first use: all of them take a third of a second."""
        if build not in self._built:
            with self._graph.as_default():
                self._built[build] = build(*args)
        return self._built[build]

    def _ask(self, build: Callable[..., Any], feed: dict[Any, Any], *constants: Any) -> Answer:
        """Runs the op that `build` builds from the placeholders of `feed` and the constants."""
        op = self._op(build, *feed, *constants)
        found = self._until(lambda values: values[0] != BUSY, op, feed)
        return Answer(*map(int, found))

    def _until(self, is_done: Callable[[Any], bool], fetches: Any, feed: Mapping[Any, Any]) -> Any:
        deadline = Deadline(_ANSWER_SECS)
        while not is_done(found := self._run(fetches, feed)):
            if deadline.expired:
                raise ClusterError(
                    f"the table of splits was in use for {deadline.elapsed:.0f} s: a run that "
                    "changed it did not end. Restart the job from its last checkpoint"
                )
            time.sleep(_BUSY_SECS)
        return found

    def _run(self, fetches: Any, feed: Mapping[Any, Any]) -> Any:
        try:
            return self._session.run(fetches, feed)
        except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
            raise type(error)(None, None, _LOST + reason_of(str(error))) from error
        except tf.errors.DeadlineExceededError as error:
            raise tf.errors.DeadlineExceededError(
                None,
                None,
                f"ps:0 at {self._address}, where the splits are kept, has not answered for "
                f"{_ANSWER_SECS:g} s",
            ) from error
