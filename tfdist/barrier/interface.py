"""What every kind of barrier promises; how it waits is left to the kind."""

from __future__ import annotations

import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import tensorflow as tf

from tfdist import arrivals
from tfdist.arrivals import RESIGNED, Arrivals, Decision
from tfdist.barrier.state import PS_DEVICE, StateOnPs, num_parties, unpack
from tfdist.deadline import Deadline
from tfdist.errors import BarrierBroken, BarrierError, BarrierTimeout, ConfigError, StartTimeout
from tfdist.task import Task, session_target

# A run that blocks is looked after this often: a lost token or a Ctrl-C waits no longer.
RECHECK_SECS = 2.0
# What never blocks is answered within milliseconds, unless the ps is stopped or cut off.
_ANSWER_SECS = 10.0
_LAST_ANSWER_SECS = 0.9
_PROBE_SECS = 0.2
_CONNECT_SECS = 60.0
_CONNECT_POLL_SECS = 0.05
_POLL_SECS = 0.001
_LONGEST_POLL_SECS = 0.05

_PS_LOST = (
    tf.errors.AbortedError,  # "Session handle is not found": the ps was restarted
    tf.errors.UnavailableError,  # its process is gone
    tf.errors.FailedPreconditionError,  # restarted, and nothing is initialised
)


@dataclass(frozen=True)
class BarrierStatistics:
    """How long each trainer has waited; whoever waits least is the straggler.

    Attributes:
        last_wait: seconds by trainer from its latest arrival to the latest arrival of all. In
            the barrier's action that is its wait in the present generation.
        total_wait: seconds by trainer over all released generations.
    """

    last_wait: dict[str, float]
    total_wait: dict[str, float]


@dataclass(frozen=True)
class Snapshot:
    """What was read from the ps in one run."""

    arrivals: Arrivals
    incarnation: int
    arrived_at: list[float | None]
    total_wait: list[float]
    reason: str
    now: float


class SharedBarrier(ABC):
    """Everything of a barrier but the waiting; see `tfdist.Barrier` for the promises."""

    # Of the generation that this trainer waits for next, and how many resets it knows of.
    _parity: int
    _resets: int
    _uncertain: bool  # whether an arrival that it has sent may have been lost
    _graph: StateOnPs
    _session: tf.compat.v1.Session

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
        self._begin()

    # The interface of threading.Barrier.

    @property
    def parties(self) -> int:
        """How many trainers have to arrive."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many have arrived in the present generation."""
        with self._ps_errors():
            return len(self._look().arrivals.waiting)

    @property
    def broken(self) -> bool:
        """Whether `wait` raises BarrierBroken until somebody calls `reset`."""
        with self._ps_errors():
            return self._look().arrivals.broken

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
                which breaks the barrier for all.
            BarrierBroken: the barrier was aborted or reset, the action failed, or the ps was lost.
            BarrierError: this trainer has resigned.
        """
        if self._resigned:
            raise BarrierError(f"barrier {self.name!r}: {self._task.name} has resigned for good")
        deadline = Deadline(self._timeout if timeout is None else timeout)
        with self._ps_errors(deadline):
            if self._uncertain:
                self._enter(deadline)
            decision = self._await(deadline)
            if decision is Decision.ACT:
                decision = self._act()
            if decision is Decision.PASS:
                return self._pass()
            timed_out = decision in (Decision.WAIT, Decision.ARRIVE)
            if timed_out and self._break_on_timeout:
                self._run(self._graph.abort_if_waiting, f"{self._task.name} timed out")
            snapshot = self._look(deadline)
            if self._decide(snapshot) is Decision.PASS:  # released in the last moment
                return self._pass()
            self._uncertain = decision is Decision.ARRIVE
        if timed_out:
            raise self._timeout_error(snapshot, deadline)
        raise self._broken_error(snapshot, decision)

    def abort(self) -> None:
        """Breaks the barrier: `wait` raises BarrierBroken for all, now and until a `reset`."""
        with self._ps_errors():
            self._run(self._graph.abort, f"{self._task.name} called abort()")

    def reset(self) -> None:
        """Empties the barrier and mends it; those that wait get BarrierBroken.

        After the ps was lost it joins the state of the new one, and disturbs nobody there.
        """
        try:
            incarnation = self._look().incarnation
        except (*_PS_LOST, tf.errors.DeadlineExceededError):
            incarnation = None
        if incarnation == self._incarnation:
            with self._ps_errors():
                self._run(self._graph.reset)
        else:
            self._begin()

    # More than threading.Barrier.

    @property
    def generation(self) -> int:
        """The generation that is being waited for; the first is 1."""
        with self._ps_errors():
            return self._look().arrivals.generation

    def missing(self) -> tuple[str, ...]:
        """Names of the trainers that have not arrived in the present generation."""
        with self._ps_errors():
            return tuple(self._names[rank] for rank in self._look().arrivals.missing)

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
            self._run(self._graph.resign)
        self._resigned = True

    def statistics(self) -> BarrierStatistics:
        """How long each trainer waited, by the clock of the ps."""
        with self._ps_errors():
            snapshot = self._look()
        times = [0.0 if at is None else at for at in snapshot.arrived_at]
        last = [max(times) - at if at else 0.0 for at in times]
        return BarrierStatistics(
            last_wait=dict(zip(self._names, last, strict=True)),
            total_wait=dict(zip(self._names, snapshot.total_wait, strict=True)),
        )

    def close(self) -> None:
        """Gives the connection to the ps back; the state stays there."""
        _close(self._session)

    def __enter__(self) -> SharedBarrier:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name!r} of {self._parties} parties, "
            f"as {self._task.name}>"
        )

    # What a kind provides, and what it builds on.

    @abstractmethod
    def _await(self, deadline: Deadline) -> Decision:
        """Arrives and waits; WAIT and ARRIVE mean that the time is over."""

    def _poll(self, deadline: Deadline) -> Decision:
        """Arrives, or says that it does not block any more, and looks until it knows."""
        self._run(self._graph.arrive[self._parity], deadline=deadline)
        pause = _POLL_SECS
        while True:
            decision = self._decide_soon(deadline)
            if decision not in (Decision.WAIT, Decision.ARRIVE) or deadline.expired:
                return decision
            if decision is Decision.ARRIVE:
                self._enter(deadline)
                self._run(self._graph.arrive[self._parity], deadline=deadline)
            time.sleep(min(pause, deadline.remaining))
            pause = min(2 * pause, _LONGEST_POLL_SECS)

    def _decide_soon(self, deadline: Deadline) -> Decision:
        """What the state says to do; WAIT also where the ps is silent but there is time left."""
        try:
            return self._decide(self._look(deadline))
        except tf.errors.DeadlineExceededError:
            self._check_ps()
            if deadline.expired:
                raise
            return Decision.WAIT

    def _check_ps(self) -> None:
        """Raises UnavailableError if the ps is gone; TensorFlow tries it again and again."""
        if _refuses(self._address):
            raise tf.errors.UnavailableError(None, None, f"nobody listens at {self._address}")

    def _decide(self, snapshot: Snapshot) -> Decision:
        if snapshot.incarnation != self._incarnation:
            return Decision.BROKEN
        state = snapshot.arrivals
        decision = arrivals.decide(state, self._rank, self._graph.life, self._parity, self._resets)
        if decision is Decision.WAIT:
            self._resets = state.resets
        return decision

    def _run(
        self, operation: Any, reason: str | None = None, *, deadline: Deadline | None = None
    ) -> None:
        feed = {} if reason is None else {self._graph.reason_text: reason}
        self._session.run(operation, feed, options=_soon(deadline))

    def _look(self, deadline: Deadline | None = None) -> Snapshot:
        vector, arrived_at, waited, reason, now = self._session.run(
            self._graph.snapshot, options=_soon(deadline)
        )
        if num_parties(vector) != self._parties:
            made_for = f"others made barrier {self.name!r} with {num_parties(vector)}"
            raise ConfigError("parties", self._parties, made_for)
        rules, incarnation = unpack(vector)
        return Snapshot(
            arrivals=rules,
            incarnation=incarnation,
            arrived_at=[at or None for at in arrived_at.tolist()],
            total_wait=waited.tolist(),
            reason=reason.decode(),
            now=float(now),
        )

    def _begin(self) -> None:
        """Takes its place: at the start, and after the ps was lost."""
        deadline = Deadline(_CONNECT_SECS)
        try:
            self._enter(deadline)
        except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError) as error:
            hint = f"Barrier {self.name!r} lies there, at {self._address}; is it up?"
            raise StartTimeout(["ps:0"], deadline.elapsed, hint) from error
        snapshot = self._look()
        self._incarnation = snapshot.incarnation
        self._resigned = snapshot.arrivals.arrived[self._rank] == RESIGNED
        self._parity = arrivals.next_parity(snapshot.arrivals)
        self._resets = snapshot.arrivals.resets

    def _enter(self, deadline: Deadline) -> None:
        """Opens a session straight to the ps, nearer than the own server, and takes a new life."""
        if hasattr(self, "_session"):
            # Aside, for it blocks where the ps is silent; the new life fences off the old one.
            threading.Thread(target=_close, args=(self._session,), daemon=True).start()
        held = self._action is not None
        self._graph = StateOnPs(f"tfdist/barrier/{self.name}", self._names, self._rank, held=held)
        self._session = tf.compat.v1.Session(
            session_target(self._address),
            graph=self._graph.graph,
            config=_session_config(min(RECHECK_SECS, _soon_secs(deadline))),
        )
        self._uncertain = False
        while True:
            try:
                self._run(self._graph.enter, deadline=deadline)
                return
            except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError):
                if deadline.expired:
                    raise
                time.sleep(_CONNECT_POLL_SECS)

    def _pass(self) -> int:
        self._parity ^= 1
        return self._rank

    @contextmanager
    def _ps_errors(self, deadline: Deadline | None = None) -> Iterator[None]:
        """Inside it, what TensorFlow raises of a ps that is lost or silent becomes our errors."""
        deadline = deadline or Deadline(_ANSWER_SECS)
        try:
            yield
        except _PS_LOST as error:
            raise BarrierBroken(self.name, f"ps:0 was lost or restarted: {error}") from error
        except tf.errors.DeadlineExceededError as error:
            self._uncertain = True
            raise self._silence_error(deadline) from error

    def _act(self) -> Decision:
        self._run(self._graph.begin_action)
        snapshot = self._look()
        if not snapshot.arrivals.acting:
            return self._decide(snapshot)  # broken or reset in between
        try:
            if self._action is not None:
                self._action()
        except BaseException as error:
            reason = f"the action of {self._task.name} raised {type(error).__name__}: {error}"
            self._run(self._graph.abort, reason)
            if not isinstance(error, Exception):
                raise
            raise BarrierBroken(self.name, reason) from error
        self._run(self._graph.release)
        return self._decide(self._look())

    def _timeout_error(self, snapshot: Snapshot, deadline: Deadline) -> BarrierTimeout:
        state = snapshot.arrivals
        ages = [None if at is None else snapshot.now - at for at in snapshot.arrived_at]
        there = [self._names[rank] for rank in state.waiting]
        expected = sum(generation < RESIGNED for generation in state.arrived)
        message = (
            f"barrier {self.name!r} generation {state.generation}: {len(there)} of {expected} "
            f"trainers after {deadline.elapsed:.1f} s; "
            f"{arrivals.describe_missing(state, self._names, ages)}"
        )
        if state.missing:
            message += ". A trainer that ended early has to call resign(); see docs/barrier.md"
        return BarrierTimeout(
            message,
            name=self.name,
            generation=state.generation,
            arrived=there,
            missing=[self._names[rank] for rank in state.missing],
        )

    def _silence_error(self, deadline: Deadline) -> BarrierTimeout:
        message = (
            f"barrier {self.name!r}: ps:0, which keeps it, does not answer after "
            f"{deadline.elapsed:.1f} s; it is stopped, overloaded or cut off"
        )
        return BarrierTimeout(message, name=self.name, generation=0, arrived=(), missing=("ps:0",))

    def _broken_error(self, snapshot: Snapshot, decision: Decision) -> BarrierBroken:
        if decision is Decision.REPLACED:
            reason = f"another process has taken the place of {self._task.name}"
        elif snapshot.incarnation != self._incarnation:
            reason = "ps:0 was restarted and has forgotten who arrived"
        elif snapshot.arrivals.broken:
            reason = snapshot.reason
        else:
            reason = "it was reset while this trainer waited"
        return BarrierBroken(self.name, reason)


def _soon(deadline: Deadline | None) -> tf.compat.v1.RunOptions:
    """For a run that does not block: the answer is due soon, and not long after the deadline."""
    return tf.compat.v1.RunOptions(timeout_in_ms=int(_soon_secs(deadline) * 1000))


def _soon_secs(deadline: Deadline | None) -> float:
    if deadline is None:
        return _ANSWER_SECS
    return min(max(deadline.remaining, _LAST_ANSWER_SECS), _ANSWER_SECS)


def _close(session: tf.compat.v1.Session) -> None:
    with suppress(*_PS_LOST, tf.errors.DeadlineExceededError):  # then it is gone already
        session.close()


def _refuses(address: str) -> bool:
    """Whether nobody listens there: the process is gone, rather than slow."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECS).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _session_config(timeout: float) -> tf.compat.v1.ConfigProto:
    config = tf.compat.v1.ConfigProto(
        # Without the filter the session would wait for every task of the cluster.
        device_filters=[PS_DEVICE.removesuffix("/device:CPU:0")],
        operation_timeout_in_ms=int(timeout * 1000),
    )
    # A dozen small operations: nothing to gain, and the rewriting takes longer than a wait.
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return config
