"""What every kind of barrier promises; how it waits is left to the kind."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfdist.barrier import rules as arrivals
from tfdist.barrier.connection import ANSWER_SECS, Connection, Snapshot
from tfdist.barrier.rules import RESIGNED, Decision
from tfdist.barrier.state import StateOnPs
from tfdist.deadline import Deadline
from tfdist.errors import (
    BarrierError,
    BarrierTimeout,
    BrokenBarrierError,
    ConfigError,
    StartTimeout,
    reason_of,
)
from tfdist.ps.session import PS_LOST
from tfdist.runs.barrier_notes import BarrierNote, PassMark, note_barrier
from tfdist.task import Task

_log = logging.getLogger(__name__)

_CONNECT_SECS = 60.0
_POLL_SECS = 0.001
_LONGEST_POLL_SECS = 0.05


@dataclass(frozen=True)
class BarrierStatistics:
    """How long each trainer that has not resigned waited; who waits least is the straggler.

    Attributes:
        last_wait: seconds by trainer from its latest arrival to the latest arrival of all. In
            the barrier's action that is its wait in the present generation.
        total_wait: seconds by trainer over all released generations.
    """

    last_wait: dict[str, float]
    total_wait: dict[str, float]


class SharedBarrier(ABC):
    """Everything of a barrier but the waiting; see `tfdist.Barrier` for the promises."""

    # What this trainer knows: the parity of the generation that it waits for next, how often the
    # barrier was reset, and which ps that is.
    _parity: int
    _resets: int
    _ps_incarnation: int

    def __init__(
        self,
        task: Task,
        name: str,
        *,
        parties: int | None = None,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        break_on_timeout: bool = False,
    ) -> None:
        trainers = task.trainers
        parties = len(trainers) if parties is None else parties
        if not task.is_trainer:
            raise ConfigError("task", task.name, "only a chief or a worker waits at a barrier")
        if not name:
            raise ConfigError("name", name, "a barrier needs a name")
        if not 1 <= parties <= len(trainers):
            raise ConfigError("parties", parties, f"1 to {len(trainers)}, the number of trainers")
        if task.rank >= parties:
            raise ConfigError("task", task.name, f"the parties are {', '.join(trainers[:parties])}")
        if task.num_ps == 0:
            raise ConfigError("task.cluster.ps", [], "the barrier lies on a ps; start one")
        self.name, self._parties, self._names = name, parties, trainers[:parties]
        self._task, self._rank, self._address = task, task.rank, task.cluster_spec["ps"][0]
        self._action = action if self._rank == 0 else None
        self._timeout, self._break_on_timeout = timeout, break_on_timeout
        note_barrier(BarrierNote(name, parties))  # also of one that never gets an answer
        self._pass_mark = PassMark()
        self._begin()

    # The interface of threading.Barrier.

    @property
    def parties(self) -> int:
        """How many trainers have to arrive."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many have arrived in the present generation; 0 if the barrier is broken."""
        with self._ps_errors():
            state = self._connection.look().arrivals
        return 0 if state.broken else len(state.waiting)

    @property
    def broken(self) -> bool:
        """Whether `wait` raises BrokenBarrierError until somebody calls `reset`."""
        with self._ps_errors():
            return self._connection.look().arrivals.broken

    def wait(self, timeout: float | None = None) -> int:
        """Blocks until all parties have arrived, and then returns this trainer's rank.

        The last one to arrive releases the others, or the chief does after its action.

        Args:
            timeout: in seconds; None takes the barrier's own, and if that is None too, waits
                without end.

        Returns:
            A number in `range(parties)`, a different one for each trainer.

        Raises:
            BarrierTimeout: somebody did not come. This trainer still counts as arrived, and the
                next `wait` goes on waiting for the same generation; unless `break_on_timeout`,
                which breaks the barrier for all. A ps that does not answer can be told nothing:
                then `missing` is ("ps:0",), and only a next `wait` finds out what has become of
                the generation.
            BrokenBarrierError: the barrier was aborted or reset, the action failed, or the ps was
                lost.
            BarrierError: this trainer has resigned, or a tf.function is being traced.
        """
        if self._resigned:
            raise BarrierError(f"barrier {self.name!r}: {self._task.name} has resigned for good")
        if tf.inside_function():
            raise BarrierError(
                f"barrier {self.name!r}: wait() was called while a tf.function was being traced, "
                "so it would block once, here, and never again where the function runs. Within "
                "functions scheduled by a ClusterCoordinator a barrier deadlocks too, since it "
                "runs only as many at a time as it has workers; use coordinator.join() there. "
                "In other functions use op()"
            )
        deadline = Deadline(self._timeout if timeout is None else timeout)
        with self._ps_errors(deadline):
            decision = self._await(deadline)
            if decision is Decision.ACT:
                decision = self._act()
            if decision is Decision.WAIT and self._break_on_timeout:
                decision = self._break(deadline)
            if decision is Decision.PASS:
                self._parity ^= 1
                self._arrived = False
                self._pass_mark.touch()
                return self._rank
            snapshot = self._connection.look(deadline)
        if decision in (Decision.WAIT, Decision.ARRIVE):
            raise self._timeout_error(snapshot, deadline)
        self._arrived = False
        raise self._broken_error(snapshot, decision)

    def abort(self) -> None:
        """Breaks the barrier: `wait` raises BrokenBarrierError for all, now and until a `reset`."""
        with self._ps_errors():
            while True:
                connection = self._connection
                try:
                    connection.run(connection.graph.abort, f"{self._task.name} called abort()")
                    return
                except (RuntimeError, tf.errors.CancelledError):
                    # From another thread, and `wait` has just replaced and closed it.
                    if connection is self._connection:
                        raise

    def reset(self) -> None:
        """Empties the barrier and mends it; those that wait get BrokenBarrierError.

        After the ps was lost it joins the state of the new one, and disturbs nobody there.
        """
        try:
            if self._uncertain:
                self._renew(Deadline(ANSWER_SECS))
            ps_incarnation = self._connection.look().ps_incarnation
        except (*PS_LOST, tf.errors.DeadlineExceededError):
            ps_incarnation = None
        if ps_incarnation == self._ps_incarnation:
            with self._ps_errors():
                self._connection.run(self._connection.graph.reset)
                _log.info("barrier %r: %s reset it", self.name, self._task.name)
        else:
            self._connection.close()
            self._begin()

    # More than threading.Barrier.

    @property
    def generation(self) -> int:
        """The generation that is being waited for; the first is 1."""
        with self._ps_errors():
            return self._connection.look().arrivals.generation

    def missing(self) -> tuple[str, ...]:
        """Names of the trainers that have not arrived in the present generation."""
        with self._ps_errors():
            return tuple(self._names[rank] for rank in self._connection.look().arrivals.missing)

    def resign(self) -> None:
        """Leaves for good: the others stop waiting for this trainer.

        Raises:
            BarrierError: this trainer is the chief and has an action, which nobody else can run.
        """
        if self._action is not None:
            raise BarrierError(
                f"barrier {self.name!r}: {self._task.name} runs its action and cannot resign"
            )
        with self._ps_errors():
            self._connection.run(self._connection.graph.resign)
        self._resigned = True

    def statistics(self) -> BarrierStatistics:
        """How long each trainer waited, by the clock of the ps."""
        with self._ps_errors():
            snapshot = self._connection.look()
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
            timeout: as of `wait`.

        Returns:
            An operation for `control_dependencies` or `session.run`. What `wait` would raise is
            a tf.errors.UnknownError with the same text.

        Raises:
            BarrierError: there is no graph, for in eager code nothing would run it again.
        """
        if tf.executing_eagerly():
            raise BarrierError(
                f"barrier {self.name!r}: op() is for a graph or a tf.function; here call wait()"
            )

        # Whatever scope it is called in. A function runs in this process anyway.
        device = None if tf.inside_function() else f"{self._task.device}/device:CPU:0"
        with tf.control_dependencies(after), tf.device(None), tf.device(device):
            return tf.numpy_function(lambda: self.wait(timeout), [], tf.int64, name="wait").op

    def close(self) -> None:
        """Gives the connection to the ps back; the state stays there."""
        self._connection.close()

    def __enter__(self) -> SharedBarrier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        # By what it knows already: whoever prints a barrier does not ask the network.
        stands = "resigned" if self._resigned else "arrived" if self._arrived else "not arrived"
        return (
            f"<{type(self).__name__} {self.name!r} of {self._parties} parties: "
            f"{self._task.name} has {stands}>"
        )

    # What a kind provides, and what it builds on.

    @abstractmethod
    def _await(self, deadline: Deadline) -> Decision:
        """Arrives, if it has not, and waits; WAIT and ARRIVE mean that the time is over."""

    def _first_decision(self, deadline: Deadline) -> Decision:
        """What to do at the beginning of a wait; one that goes on looks what has come of it."""
        if self._arrived or self._uncertain:
            return self._decide(deadline)
        return Decision.ARRIVE

    def _poll(self, deadline: Deadline, decision: Decision) -> Decision:
        """Goes on from `decision` without blocking on the ps, until it knows."""
        pause = _POLL_SECS
        while True:
            if decision is Decision.ARRIVE:
                self._arrive(deadline)
            elif decision is not Decision.WAIT or deadline.expired:
                return decision
            else:
                time.sleep(min(pause, deadline.remaining))
                pause = min(2 * pause, _LONGEST_POLL_SECS)
            decision = self._decide(deadline)
            if decision is Decision.ARRIVE and deadline.expired:
                return decision

    def _arrive(self, deadline: Deadline) -> None:
        try:
            self._blocks = False
            arrive = self._connection.graph.arrive[self._parity]
            self._connection.run(arrive, deadline=deadline)
        except tf.errors.DeadlineExceededError:
            self._uncertain = True
            if deadline.expired:
                raise

    def _decide(self, deadline: Deadline) -> Decision:
        """What the state on the ps says to do."""
        snapshot = self._connection.look(deadline)
        decision = self._decide_by(snapshot)
        if self._uncertain and decision in (Decision.ARRIVE, Decision.BROKEN):
            # The arrival may come yet and count then. With a new incarnation it cannot.
            self._renew(deadline)
            snapshot = self._connection.look(deadline)
            decision = self._decide_by(snapshot)
        if decision is Decision.WAIT and deadline.notice_due():
            _log.warning("%s", self._progress(snapshot, deadline, "still waiting, "))
        self._uncertain = False
        self._arrived = decision in (Decision.WAIT, Decision.ACT)
        return decision

    def _decide_by(self, snapshot: Snapshot) -> Decision:
        if snapshot.ps_incarnation != self._ps_incarnation:
            return Decision.BROKEN
        state = snapshot.arrivals
        decision = arrivals.decide(
            state, self._rank, self._connection.incarnation, self._parity, self._resets
        )
        if decision is Decision.WAIT:
            self._resets = state.resets
        return decision

    def _begin(self) -> None:
        """Takes its place: at the start, and after the ps was lost."""
        deadline = Deadline(_CONNECT_SECS)
        self._connection = self._connect(previous_incarnation=None)
        self._renewal: Connection | None = None
        # Whether it is known to have arrived in the generation that it waits for; whether an
        # arrival that it has sent may come yet; and whether the ps counts on it to take a token.
        self._arrived = self._uncertain = self._blocks = False
        try:
            self._connection.enter(deadline, may_start=True)
            snapshot = self._connection.look()
        except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError) as error:
            hint = f"Barrier {self.name!r} lies there, at {self._address}; is it up?"
            raise StartTimeout(["ps:0"], deadline.elapsed, hint) from error
        self._ps_incarnation = snapshot.ps_incarnation
        self._resigned = snapshot.arrivals.arrived[self._rank] == RESIGNED
        self._parity = arrivals.next_parity(snapshot.arrivals)
        self._resets = snapshot.arrivals.resets

    @abstractmethod
    def _hot_operations(self, graph: StateOnPs) -> list[Any]:
        """What its waits run; built before the session is first run.

        A session sends new parts of its graph in a call of their own, which costs time, and more
        of it than a short wait has where the ps does not answer.
        """

    def _connect(self, previous_incarnation: int | None) -> Connection:
        connection = Connection(
            self._address,
            self.name,
            self._names,
            self._rank,
            held=self._action is not None,
            previous_incarnation=previous_incarnation,
        )
        self._hot_operations(connection.graph)
        return connection

    def _renew(self, deadline: Deadline) -> None:
        """Goes on with a new incarnation; what the old one has sent has no effect any more."""
        _log.info("barrier %r: %s sends its arrival again", self.name, self._task.name)
        if self._renewal is None:  # else it is tried again, for it may have come through
            self._renewal = self._connect(previous_incarnation=self._connection.incarnation)
        self._renewal.enter(deadline, may_start=False)
        self._blocks = False
        old, self._connection, self._renewal = self._connection, self._renewal, None
        # Aside, for it blocks where the ps is silent.
        threading.Thread(target=old.close, daemon=True).start()

    def _act(self) -> Decision:
        connection = self._connection
        connection.run(connection.graph.begin_action)
        snapshot = connection.look()
        decision = self._decide_by(snapshot)
        if decision is not Decision.ACT or not snapshot.arrivals.acting:
            return decision  # broken, reset or replaced in between
        generation = snapshot.arrivals.generation
        _log.info("barrier %r generation %d: runs the action", self.name, generation)
        try:
            if self._action is not None:
                self._action()
        except BaseException as error:
            why = f"{type(error).__name__}: {reason_of(str(error))}"
            reason = f"the action of {self._task.name} raised {why}"
            connection.run(connection.graph.abort, reason)
            self._arrived = False
            if not isinstance(error, Exception):
                raise
            raise BrokenBarrierError(self.name, reason) from error
        connection.run(connection.graph.release)
        return self._decide_by(connection.look())

    def _break(self, deadline: Deadline) -> Decision:
        """Breaks the barrier for all because of a timeout, unless all came in the last moment."""
        connection = self._connection
        reason = f"{self._task.name} timed out"
        connection.run(connection.graph.abort_if_waiting, reason, deadline=deadline)
        self._arrived = False
        decision = self._decide_by(connection.look(deadline))
        return decision if decision is Decision.PASS else Decision.WAIT

    @contextmanager
    def _ps_errors(self, deadline: Deadline | None = None) -> Iterator[None]:
        """Inside it, what TensorFlow raises of a ps that is lost or silent becomes our errors."""
        deadline = deadline or Deadline(ANSWER_SECS)
        try:
            yield
        except PS_LOST as error:
            self._uncertain = True
            raise BrokenBarrierError(self.name, f"ps:0 was lost or restarted: {error}") from error
        except tf.errors.DeadlineExceededError as error:
            self._uncertain = True
            raise self._silence_error(deadline) from error

    def _timeout_error(self, snapshot: Snapshot, deadline: Deadline) -> BarrierTimeout:
        state = snapshot.arrivals
        message = self._progress(snapshot, deadline)
        if state.missing:
            message += ". A trainer that ended early has to call resign(); see docs/barrier.md"
        return BarrierTimeout(
            message,
            name=self.name,
            generation=state.generation,
            arrived=[self._names[rank] for rank in state.waiting],
            missing=[self._names[rank] for rank in state.missing],
        )

    def _progress(self, snapshot: Snapshot, deadline: Deadline, note: str = "") -> str:
        """Says how many trainers have arrived after how long, and which are missing."""
        state = snapshot.arrivals
        times = snapshot.arrived_at_us
        ages = [(snapshot.now_us - at) / 1e6 if at else None for at in times]
        expected = sum(generation < RESIGNED for generation in state.arrived)
        return (
            f"barrier {self.name!r} generation {state.generation}: {note}{len(state.waiting)} of "
            f"{expected} trainers after {deadline.elapsed:.1f} s; "
            f"{arrivals.describe_missing(state, self._names, ages)}"
        )

    def _silence_error(self, deadline: Deadline) -> BarrierTimeout:
        message = (
            f"barrier {self.name!r}: ps:0, which keeps it, does not answer after "
            f"{deadline.elapsed:.1f} s; it is stopped, overloaded or cut off"
        )
        return BarrierTimeout(message, name=self.name, generation=0, arrived=(), missing=("ps:0",))

    def _broken_error(self, snapshot: Snapshot, decision: Decision) -> BrokenBarrierError:
        if decision is Decision.REPLACED:
            reason = f"another process has taken the place of {self._task.name}"
            _log.info("barrier %r: %s", self.name, reason)
        elif snapshot.ps_incarnation != self._ps_incarnation:
            reason = "ps:0 was restarted and has forgotten who arrived"
        elif snapshot.arrivals.broken:
            reason = snapshot.reason
        else:
            reason = "it was reset while this trainer waited"
        return BrokenBarrierError(self.name, reason)
