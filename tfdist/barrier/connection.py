"""The connection of one incarnation of a trainer to its barrier on the ps.

`read_barrier` is for processes that are not trainers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import tensorflow as tf

from tfdist.barrier import vector
from tfdist.barrier.operations import Crossing, Transitions
from tfdist.barrier.rules import Arrivals
from tfdist.barrier.state import resource_names
from tfdist.barrier.vector import State
from tfdist.deadline import Deadline
from tfdist.errors import ConfigError
from tfdist.ps.section import IN_USE
from tfdist.ps.session import DirectSession, SharedSession, share_session
from tfdist.runs.barrier_notes import (
    ARRIVED,
    MISSING,
    RESIGNED,
    BarrierNote,
    BarrierReport,
    Place,
)

_log = logging.getLogger(__name__)

# Longest time that one run may block before the state is read again. It bounds what a lost token
# costs, and the delay of a Ctrl-C.
RECHECK_SECS = 2.0
# The ps answers a run that does not block within milliseconds, unless it is stopped or cut off.
ANSWER_SECS = 10.0
_LAST_ANSWER_SECS = 0.4
_RETRY_SECS = 0.05
_IN_USE_SECS = 0.001


@dataclass(frozen=True)
class Snapshot:
    """The state as one run read it; times are by the clock of the ps."""

    arrivals: Arrivals
    ps_incarnation: int
    arrived_at_us: list[int]  # 0 for never
    total_wait_us: list[int]
    reason: str
    now_us: int

    @property
    def ages(self) -> list[float | None]:
        """Seconds since each rank last arrived; None for a trainer that never has."""
        # The clock is read before the lock is taken, so an arrival may seem to be some us ahead.
        return [max(0, self.now_us - at) / 1e6 if at else None for at in self.arrived_at_us]


_transitions_lock = threading.RLock()  # a signal handler may make a barrier too


@cache
def _transitions(parties: int, rank: int, has_action: bool) -> Transitions:
    transitions = Transitions(parties, rank, has_action=has_action)
    # Builds what joins and waits run before the session first runs. A session sends new parts of
    # its graph in an extra call, which costs more time than a short wait has if the ps is silent.
    for each in ("templates", "exists", "prepare", "make", "snapshot", "enter", "renew", "arrive"):
        getattr(transitions, each)
    _ = transitions.begin_to_block
    return transitions


class Connection:
    """One incarnation of a trainer, which acts for the trainer once `enter` has returned.

    The connections of a process for one rank, with equally many parties, share a session. Only
    `open_crossing` makes another.

    Args:
        address: the ps.
        name: the barrier's name.
        names: the parties by rank.
        rank: the trainer.
        has_action: whether it is a chief with an action.
        previous_incarnation: the incarnation that this one replaces; None for a trainer that
            enters.

    Attributes:
        incarnation: the number by which the ps knows this incarnation.
        transitions: the operations for `run`.
        can_block: whether `open_crossing` has succeeded.
    """

    can_block = False
    _is_closed = False
    _crossing: Crossing
    _blocking: DirectSession
    _recheck: float

    def __init__(
        self,
        address: str,
        name: str,
        names: Sequence[str],
        rank: int,
        *,
        has_action: bool,
        previous_incarnation: int | None = None,
    ) -> None:
        self._address, self._name, self._names, self._rank = address, name, names, rank
        self._has_action, self._previous = has_action, previous_incarnation
        self._resources = resource_names(name)
        self.incarnation = vector.new_incarnation()
        with _transitions_lock:  # `cache` alone might make two
            self.transitions = _transitions(len(names), rank, has_action)
        self._session = self._share()

    def _share(self) -> SharedSession:
        return share_session(self._address, self.transitions.graph, timeout=RECHECK_SECS)

    def enter(self, deadline: Deadline, *, may_start: bool) -> None:
        """Takes the trainer's place on the ps; calling it again changes nothing.

        Args:
            deadline: for all attempts; there is at least one.
            may_start: whether the ps may be about to start, so that a missing ps is tried again.

        Raises:
            ConfigError: the barrier was made for another number of parties.
            tf.errors.UnavailableError: the ps is gone.
            tf.errors.DeadlineExceededError: the ps does not answer.
        """
        transitions = self.transitions
        enter = transitions.enter if self._previous is None else transitions.renew
        died = f"{self._names[0]} was restarted while its action ran"
        while True:
            try:
                if not self._fetch(transitions.exists, deadline):
                    self.run(transitions.prepare, deadline=deadline)
                    self.run(transitions.make, deadline=deadline)
                self.look(deadline)  # checks the number of parties
                self._prepare_arrivals(deadline)
                self.run(enter, died, deadline=deadline)
                return
            except tf.errors.AbortedError:
                # The ps was restarted after another connection had opened the session.
                if deadline.expired:
                    raise
                self._session.close()
                self._session = self._share()
            except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError) as error:
                is_gone = isinstance(error, tf.errors.UnavailableError)
                if deadline.expired or (is_gone and not may_start):
                    raise
                self._warn_if_due(deadline)
                time.sleep(_RETRY_SECS)

    def _prepare_arrivals(self, deadline: Deadline) -> None:
        """Sends arrivals that are refused, for this incarnation has not entered yet.

        The ps prepares an operation in the first run of a session. On a busy machine that takes
        longer than a short wait has.
        """
        for parity, arrive in enumerate(self.transitions.arrive):
            self._session.once(f"arrive {parity}", partial(self.run, arrive, deadline=deadline))

    def open_crossing(self, deadline: Deadline) -> bool:
        """Opens a session of this incarnation's own for `cross` and `block`.

        False if the ps does not answer in half of the time, or within RECHECK_SECS.
        """
        crossing = Crossing(
            len(self._names),
            self._rank,
            has_action=self._has_action,
            names=self._resources,
            incarnation=self.incarnation,
        )
        _ = crossing.make_queues, crossing.cross, crossing.block  # see `_transitions`
        self._recheck = min(deadline.remaining / 2, RECHECK_SECS)
        session = DirectSession(self._address, crossing.graph, timeout=self._recheck)
        try:
            session.run(crossing.make_queues)
        except BaseException as error:
            close_in_thread(session)
            if not isinstance(error, tf.errors.DeadlineExceededError):
                raise
            return False
        self._crossing, self._blocking, self.can_block = crossing, session, True
        return True

    def run(self, operation: Any, reason: str = "", *, deadline: Deadline | None = None) -> None:
        """Runs an operation that does not block; `reason` is for those that break the barrier."""
        answer = Deadline(_soon(deadline))
        while True:
            self._check_open()
            try:
                timeout = max(answer.remaining, _LAST_ANSWER_SECS)
                self._session.run(operation, self._feed(reason), timeout=timeout)
                return
            except IN_USE as error:
                if answer.expired:
                    message = f"other trainers change the state all the time: {error}"
                    raise tf.errors.DeadlineExceededError(None, None, message) from error
                time.sleep(_IN_USE_SECS)

    def cross(self, parity: int, seconds: float) -> None:
        """Arrives and blocks for at most `seconds` or RECHECK_SECS; needs `open_crossing`.

        Raises:
            tf.errors.DeadlineExceededError: the time is over.
            tf.errors.InvalidArgumentError: it was refused, or woken without a release.
            IN_USE: another run was in the section; nothing has changed.
        """
        self._block(self._crossing.cross[parity], seconds)

    def block(self, parity: int, seconds: float) -> None:
        """As `cross`, for a trainer that has arrived."""
        self._block(self._crossing.block[parity], seconds)

    def _block(self, operation: Any, seconds: float) -> None:
        if seconds < self._recheck:
            self._blocking.run(operation, timeout=seconds)
        else:
            self._blocking.call(operation)

    def look(self, deadline: Deadline | None = None) -> Snapshot:
        """Reads the state; asks again every RECHECK_SECS until the deadline (default ANSWER_SECS).

        Raises:
            ConfigError: the barrier was made for another number of parties.
        """
        deadline = deadline or Deadline(ANSWER_SECS)
        found, reason, now = self._fetch(self.transitions.snapshot, deadline)
        if vector.num_parties(found) != len(self._names):
            parties = vector.num_parties(found)
            made_for = f"other trainers made barrier {self._name!r} with {parties} parties"
            raise ConfigError("parties", len(self._names), made_for)
        state = vector.unpack(found)
        rules = vector.as_arrivals(state)
        return Snapshot(
            arrivals=rules,
            ps_incarnation=state.ps_incarnation,
            arrived_at_us=state.arrived_at,
            total_wait_us=_total_waits(state, rules),
            reason=reason.decode(),
            now_us=int(1e6 * now),
        )

    def look_if_made(self, deadline: Deadline) -> Snapshot | None:
        """Reads the state without having entered; None if no trainer has made the barrier."""
        return self.look(deadline) if self._fetch(self.transitions.exists, deadline) else None

    def _fetch(self, fetches: Any, deadline: Deadline) -> Any:
        while True:
            self._check_open()
            try:
                timeout = min(_soon(deadline), RECHECK_SECS)
                return self._session.run(fetches, self._feed(), timeout=timeout)
            except tf.errors.DeadlineExceededError:
                if deadline.expired:
                    raise
                self._warn_if_due(deadline)

    def _check_open(self) -> None:
        """Raises the error of a closed session, for other connections may still use this one."""
        if self._is_closed:
            raise tf.errors.CancelledError(None, None, "the connection was closed")

    def _feed(self, reason: str = "") -> dict[Any, Any]:
        fetch = partial(self._session.run, self.transitions.templates)
        templates = self._session.once("templates", fetch)
        return self.transitions.feed(
            templates,
            self._resources,
            reason,
            incarnation=self.incarnation,
            previous=self._previous or 0,
        )

    def _warn_if_due(self, deadline: Deadline) -> None:
        if deadline.notice_due():
            where, seconds = self._address, deadline.elapsed
            _log.warning(
                "barrier %r: no answer from ps:0 at %s, after %.0f s", self._name, where, seconds
            )

    def close(self) -> None:
        """Closes the sessions, which ends waits of other threads.

        Blocks for at most RECHECK_SECS each.
        """
        if not self._is_closed:
            self._is_closed = True
            self._session.close()
            if self.can_block:
                self._blocking.close()


def close_in_thread(closes: Connection | DirectSession) -> None:
    """Closes it without blocking, which closing does while the ps is silent."""
    threading.Thread(target=closes.close, daemon=True).start()


def read_barrier(
    address: str, trainers: Sequence[str], note: BarrierNote, timeout: float
) -> BarrierReport:
    """Reads a barrier without entering it; blocks for at most `timeout` seconds.

    Closing the connection may take RECHECK_SECS more.

    Args:
        address: ps 0.
        trainers: names of all trainers of the cluster, by rank.
        note: the barrier's name and number of parties.
        timeout: in seconds.

    Raises:
        tf.errors.UnavailableError: the ps is gone.
        tf.errors.DeadlineExceededError: the ps does not answer.
    """
    names = trainers[: note.parties]
    connection = Connection(address, note.name, names, 0, has_action=False)
    try:
        snapshot = connection.look_if_made(Deadline(timeout))
    except ConfigError as error:
        return BarrierReport(note.name, problem=str(error))
    finally:
        connection.close()
    if snapshot is None:
        return BarrierReport(note.name)
    state = snapshot.arrivals
    states = dict.fromkeys(range(len(names)), RESIGNED)
    states |= dict.fromkeys(state.waiting, ARRIVED) | dict.fromkeys(state.missing, MISSING)
    return BarrierReport(
        note.name,
        state.generation,
        tuple(Place(names[rank], each, snapshot.ages[rank]) for rank, each in states.items()),
        acts=state.acting,
        broken=snapshot.reason if state.broken else None,
    )


def _total_waits(state: State, rules: Arrivals) -> list[int]:
    """How long each rank has waited in released generations, in us."""
    waits = list(state.waited)
    for rank in rules.waiting:
        waits[rank] += state.arrived_at[rank]
    # The clock is read before the lock is taken, so a wait may come out negative by some us.
    return [max(wait, 0) for wait in waits]


def _soon(deadline: Deadline | None) -> float:
    """Seconds that one answer may take, ending at most _LAST_ANSWER_SECS after the deadline."""
    if deadline is None:
        return ANSWER_SECS
    return min(max(deadline.remaining, _LAST_ANSWER_SECS), ANSWER_SECS)
