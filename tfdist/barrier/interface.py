"""`tfdist.Barrier`: the interface of `threading.Barrier`, across machines."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import tensorflow as tf

from tfdist.barrier import rules
from tfdist.barrier.connection import ANSWER_SECS, Snapshot
from tfdist.barrier.participant import KINDS, QUEUE, Participant
from tfdist.barrier.rules import RESIGNED, Decision
from tfdist.deadline import Deadline
from tfdist.errors import (
    BarrierError,
    BarrierTimeout,
    BrokenBarrierError,
    ConfigError,
    checked_action,
    checked_choice,
    checked_flag,
    checked_integer,
    checked_timeout,
)
from tfdist.ps.session import PS_LOST
from tfdist.runs.barrier_notes import BarrierNote, PassMark, note_barrier
from tfdist.task import Task

_log = logging.getLogger(__name__)

# How many objects of this process stand for the same trainer at the same barrier.
_made: dict[tuple[str, str, str], int] = {}


@dataclass(frozen=True)
class BarrierStatistics:
    """How long each trainer that has not resigned has waited; the straggler waits least.

    Attributes:
        last_wait: seconds by trainer from its latest arrival to the latest arrival of all. In
            the barrier's action that is its wait in the present generation.
        total_wait: seconds by trainer over all released generations.
    """

    last_wait: dict[str, float]
    total_wait: dict[str, float]


class Barrier:
    """A barrier that all trainers of a cluster share by its name.

    Making one blocks until ps 0 answers, for at most 60 s. Each trainer makes its own. Use it from
    one thread at a time; only `abort` may be called from another thread.

    Args:
        task: the trainer that waits.
        name: the same on every trainer; another name is another barrier.
        parties: how many trainers have to arrive, those of the lowest ranks; by default all.
        action: called once a generation on the chief (the trainer of rank 0; elsewhere it is
            ignored), after all have arrived and before any trainer continues: "save now". If it
            raises, all trainers get BrokenBarrierError with its text.
        timeout: seconds that a `wait` without a timeout of its own may take; None for no limit.
        kind: "queue" blocks on the server, "counter" polls.
        break_on_timeout: whether a `wait` that times out breaks the barrier for all, as in
            `threading.Barrier`. By default a late trainer may still arrive.

    Raises:
        ConfigError: a parameter is wrong, or other trainers gave another number of parties.
        StartTimeout: ps 0 does not answer.
    """

    def __init__(
        self,
        task: Task,
        name: str,
        *,
        parties: int | None = None,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        kind: str = QUEUE,
        break_on_timeout: bool = False,
    ) -> None:
        if not isinstance(task, Task):
            raise ConfigError("task", task, "must be a tfdist.Task")
        checked_action("action", action)
        break_on_timeout = checked_flag("break_on_timeout", break_on_timeout)
        trainers = task.trainers
        parties = len(trainers) if parties is None else checked_integer("parties", parties)
        checked_choice("kind", kind, KINDS)
        if not task.is_trainer:
            raise ConfigError("task", task.name, "only a chief or a worker can wait at a barrier")
        if not isinstance(name, str) or not name or name != name.encode(errors="replace").decode():
            raise ConfigError("name", name, "must be a text in UTF-8 that is not empty")
        if not 1 <= parties <= len(trainers):
            raise ConfigError(
                "parties", parties, f"must be 1 to {len(trainers)}, the number of trainers"
            )
        if task.rank >= parties:
            raise ConfigError(
                "task", task.name, f"only the parties may wait: {', '.join(trainers[:parties])}"
            )
        if task.num_ps == 0:
            raise ConfigError("task.cluster.ps", [], "the barrier needs a ps")
        self.name, self._parties, self._names = name, parties, trainers[:parties]
        self._task, self._rank = task, task.rank
        self._action = action if self._rank == 0 else None
        self._timeout, self._break_on_timeout = checked_timeout(timeout), break_on_timeout
        self._pid, self._is_closed = os.getpid(), False
        self._waits = threading.Lock()  # held by the thread that does
        self._key = (task.cluster_spec["ps"][0], name, task.name)
        self._number = _made[self._key] = _made.get(self._key, 0) + 1
        note_barrier(BarrierNote(name, parties))  # also if the ps never answers
        self._pass_mark = PassMark()
        self._participant = Participant(task, name, self._names, action=self._action, kind=kind)

    def __init_subclass__(cls) -> None:
        raise TypeError("tfdist.Barrier cannot be subclassed; pass it an action, or wrap it")

    # The interface of threading.Barrier.

    @property
    def parties(self) -> int:
        """How many trainers have to arrive."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many have arrived in the present generation; 0 if the barrier is broken."""
        state = self._look().arrivals
        return 0 if state.broken else len(state.waiting)

    @property
    def broken(self) -> bool:
        """Whether `wait` raises BrokenBarrierError until a trainer calls `reset`."""
        return self._look().arrivals.broken

    def wait(self, timeout: float | None = None) -> int:
        """Blocks until all parties have arrived, and then returns this trainer's rank.

        The last trainer to arrive releases the others. If there is an action, the chief releases
        them after it.

        Args:
            timeout: in seconds; None takes the barrier's own. If that is None too, there is no
                limit, and after 30 s the log names the trainers that are missing.

        Returns:
            A number in `range(parties)`, a different one for each trainer.

        Raises:
            BarrierTimeout: a trainer is missing. This trainer still counts as arrived, and its
                next `wait` continues in the same generation; unless `break_on_timeout`, which
                breaks the barrier for all. If the ps does not answer, `missing` is ("ps:0",), and
                the next `wait` finds out what became of the generation.
            BrokenBarrierError: the barrier was aborted or reset, the action failed, or the ps was
                lost.
            BarrierError: this trainer has resigned, the barrier was closed or made before a fork,
                another thread waits with this object, a tf.function is being traced, or the
                barrier's own action called this.
            ConfigError: the timeout is negative or no number.
            KeyboardInterrupt: Ctrl-C, within 2 s. The next `wait` continues in the same generation.
        """
        if self._participant.resigned:
            raise BarrierError(f"barrier {self.name!r}: {self._task.name} has resigned for good")
        if self._participant.acts:
            raise BarrierError(
                f"barrier {self.name!r}: its own action called wait(), and would wait for itself"
            )
        if tf.inside_function():
            raise BarrierError(
                f"barrier {self.name!r}: wait() was called while a tf.function was being traced, "
                "so it would block once, during tracing, and never when the function runs; use "
                "op(). In functions scheduled by a ClusterCoordinator neither works: it runs only "
                "as many at a time as it has workers, so they deadlock; use coordinator.join()"
            )
        deadline = Deadline(self._timeout if timeout is None else timeout)
        with self._ps_errors(deadline), self._in_one_thread():
            decision = self._participant.wait(deadline, break_on_timeout=self._break_on_timeout)
            if decision is Decision.PASS:
                self._pass_mark.touch()
                return self._rank
            snapshot = self._participant.connection.look(deadline)
        if decision in (Decision.WAIT, Decision.ARRIVE):
            raise self._timeout_error(snapshot, deadline)
        raise self._broken_error(snapshot, decision)

    def abort(self) -> None:
        """Breaks the barrier: every `wait` raises BrokenBarrierError until a `reset`."""
        with self._ps_errors():
            while True:
                connection = self._participant.connection
                try:
                    connection.run(
                        connection.transitions.abort, f"{self._task.name} called abort()"
                    )
                    return
                except (RuntimeError, tf.errors.CancelledError):
                    # This is another thread, and `wait` has just replaced and closed it.
                    if connection is self._participant.connection:
                        raise

    def reset(self) -> None:
        """Empties the barrier and mends it; trainers that wait get BrokenBarrierError.

        After the ps was lost it only joins the state of the new one.
        """
        self._check_usable()
        own = self._participant
        try:
            if own.uncertain:
                own.renew(Deadline(ANSWER_SECS))
            ps_incarnation = own.connection.look().ps_incarnation
        except (*PS_LOST, tf.errors.DeadlineExceededError):
            ps_incarnation = None
        if ps_incarnation == own.ps_incarnation:
            with self._ps_errors():
                own.connection.run(own.connection.transitions.reset)
            _log.info("barrier %r: %s has reset it", self.name, self._task.name)
        else:
            own.connection.close()
            own.join()
            _log.info("barrier %r: %s has joined the new ps:0", self.name, self._task.name)

    # More than threading.Barrier.

    @property
    def generation(self) -> int:
        """The generation that the trainers wait for; the first is 1."""
        return self._look().arrivals.generation

    def missing(self) -> tuple[str, ...]:
        """Names of the trainers that have not arrived in the present generation."""
        return tuple(self._names[rank] for rank in self._look().arrivals.missing)

    def resign(self) -> None:
        """Leaves for good: the others no longer wait for this trainer.

        C++'s std::barrier calls this arrive_and_drop, Java's Phaser arriveAndDeregister.

        Raises:
            BarrierError: this trainer is the chief and has an action, which no other can run.
        """
        if self._action is not None:
            raise BarrierError(
                f"barrier {self.name!r}: {self._task.name} runs its action and cannot resign"
            )
        with self._ps_errors():
            self._participant.connection.run(self._participant.connection.transitions.resign)
        self._participant.resigned = True

    def statistics(self) -> BarrierStatistics:
        """How long each trainer has waited, by the clock of the ps."""
        snapshot = self._look()
        times = snapshot.arrived_at_us
        last = [(max(times) - at) / 1e6 if at else 0.0 for at in times]
        left = [rank for rank in range(self._parties) if snapshot.arrivals.arrived[rank] < RESIGNED]
        return BarrierStatistics(
            last_wait={self._names[rank]: last[rank] for rank in left},
            total_wait={self._names[rank]: snapshot.total_wait_us[rank] / 1e6 for rank in left},
        )

    def op(
        self, after: Sequence[tf.Tensor | tf.Operation] = (), *, timeout: float | None = None
    ) -> tf.Operation:
        """An operation for your own graph, or a `tf.function`; each run of it is one `wait`.

        It blocks a thread of TensorFlow until `wait` would return. In a graph it lies on the
        trainer's own server, which has to be the target of the session and in this process. It
        cannot be saved with the graph.

        Args:
            after: what is done before this trainer arrives.
            timeout: as in `wait`.

        Returns:
            An operation for `control_dependencies` or `session.run`. Where `wait` would raise, it
            fails with a tf.errors.UnknownError of the same text.

        Raises:
            BarrierError: there is no graph, so that eager code would run it once and never again;
                or the barrier was closed or made before a fork.
            ConfigError: the timeout is negative or no number.
        """
        if tf.executing_eagerly():
            raise BarrierError(
                f"barrier {self.name!r}: op() is for a graph or a tf.function; here call wait()"
            )

        self._check_usable()
        checked_timeout(timeout)
        # Overrides the caller's scope. A function runs in this process anyway.
        device = None if tf.inside_function() else f"{self._task.device}/device:CPU:0"
        with tf.control_dependencies(after), tf.device(None), tf.device(device):
            return tf.numpy_function(lambda: self.wait(timeout), [], tf.int64, name="wait").op

    def close(self) -> None:
        """Closes the connection to the ps; the state stays there. In a forked child: nothing."""
        if os.getpid() == self._pid and not self._is_closed:
            if self._participant.acts:
                raise BarrierError(f"barrier {self.name!r}: its own action called close()")
            self._is_closed = True
            self._participant.close()

    def __enter__(self) -> Barrier:
        self._check_usable()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Barrier cannot be copied or pickled; make one where it is used")

    def __repr__(self) -> str:
        # Uses what is known locally: printing a barrier must not ask the network.
        own = self._participant
        state = (
            "has resigned" if own.resigned else "has arrived" if own.arrived else "has not arrived"
        )
        if self._waits.locked():
            state = "waits"
        return (
            f"<{type(self).__name__} {self.name!r} of {self._parties} parties: "
            f"{self._task.name} {state}>"
        )

    def _look(self) -> Snapshot:
        with self._ps_errors():
            return self._participant.connection.look()

    @contextmanager
    def _in_one_thread(self) -> Iterator[None]:
        if not self._waits.acquire(blocking=False):
            raise BarrierError(
                f"barrier {self.name!r}: another thread waits with this object for "
                f"{self._task.name}, which arrives once in a generation; let one thread wait"
            )
        try:
            yield
        finally:
            self._waits.release()

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise BarrierError(
                f"barrier {self.name!r} was made in process {self._pid}, of which this one is a "
                "fork; its connection cannot be used here. Start the process with the method "
                "'spawn' of multiprocessing, and make the barrier there"
            )
        if self._is_closed:
            raise BarrierError(f"barrier {self.name!r} was closed; make a new one")

    @contextmanager
    def _ps_errors(self, deadline: Deadline | None = None) -> Iterator[None]:
        """Turns TensorFlow's errors about a lost or silent ps into those of a barrier."""
        self._check_usable()
        deadline = deadline or Deadline(ANSWER_SECS)
        try:
            yield
        except PS_LOST as error:
            self._participant.uncertain = True
            raise BrokenBarrierError(self.name, f"ps:0 was lost or restarted: {error}") from error
        except tf.errors.DeadlineExceededError as error:
            self._participant.uncertain = True
            raise self._silence_error(deadline) from error
        except tf.errors.CancelledError:
            self._check_usable()  # another thread has closed it
            raise

    def _timeout_error(self, snapshot: Snapshot, deadline: Deadline) -> BarrierTimeout:
        state = snapshot.arrivals
        message = (
            f"barrier {self.name!r} generation {state.generation}: "
            f"{rules.describe(state, self._names, snapshot.ages, deadline.elapsed)}"
        )
        if state.missing and (joined_at := self._participant.joined_at) > 1:
            message += (
                f". This process has joined in generation {joined_at}: if its loop counts from "
                "1, it waits too often; use `while barrier.generation <= N`"
            )
        if state.missing:
            message += ". A trainer that ended early has to call resign(); see docs/barrier.md"
        return BarrierTimeout(
            message,
            name=self.name,
            generation=state.generation,
            arrived=[self._names[rank] for rank in state.waiting],
            missing=[self._names[rank] for rank in state.missing],
        )

    def _silence_error(self, deadline: Deadline) -> BarrierTimeout:
        message = (
            f"barrier {self.name!r}: ps:0, which holds the barrier's state, does not answer after "
            f"{deadline.elapsed:.1f} s; it is stopped, overloaded or cut off"
        )
        return BarrierTimeout(message, name=self.name, generation=0, arrived=(), missing=("ps:0",))

    def _broken_error(self, snapshot: Snapshot, decision: Decision) -> BrokenBarrierError:
        if decision is Decision.REPLACED:
            reason = f"another process has taken the place of {self._task.name}"
            if _made[self._key] != self._number:
                reason = (
                    f"this process has made another Barrier of this name for {self._task.name}, "
                    "which replaces this one; use one object"
                )
            _log.info("barrier %r: %s", self.name, reason)
        elif snapshot.ps_incarnation != self._participant.ps_incarnation:
            reason = "ps:0 was restarted and has lost the barrier"
        elif snapshot.arrivals.broken:
            reason = snapshot.reason
        else:
            reason = "it was reset while this trainer waited"
        return BrokenBarrierError(self.name, reason)
