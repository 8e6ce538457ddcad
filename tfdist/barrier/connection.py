"""One incarnation of a trainer at a barrier: the graph, and a session straight to the ps."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfdist.barrier.rules import Arrivals
from tfdist.barrier.state import StateOnPs
from tfdist.barrier.vector import State, as_arrivals, num_parties, unpack
from tfdist.deadline import Deadline
from tfdist.errors import ConfigError
from tfdist.ps.section import IN_USE
from tfdist.ps.session import DirectSession

_log = logging.getLogger(__name__)

# A run that blocks is looked after this often: a lost token or a Ctrl-C waits no longer.
RECHECK_SECS = 2.0
# What never blocks is answered within milliseconds, unless the ps is stopped or cut off.
ANSWER_SECS = 10.0
_LAST_ANSWER_SECS = 0.4
_RETRY_SECS = 0.05
_IN_USE_SECS = 0.001


@dataclass(frozen=True)
class Snapshot:
    """What was read from the ps in one run; times are by its clock."""

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


class Connection:
    """A session on a graph whose incarnation may speak for the trainer, once `enter` has returned.

    Args:
        address: of the ps.
        name: of the barrier.
        names: of the parties by rank.
        rank: of the trainer.
        has_action: whether it is a chief with an action.
        previous_incarnation: that it renews; None for a trainer that enters.
    """

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
        self._name, self._parties = name, len(names)
        self.graph = StateOnPs(
            f"tfdist/barrier/{name}",
            names,
            rank,
            has_action=has_action,
            previous_incarnation=previous_incarnation,
        )
        self._session = DirectSession(address, self.graph.graph, timeout=RECHECK_SECS)

    @property
    def incarnation(self) -> int:
        """The number by which the ps knows it."""
        return self.graph.incarnation

    def enter(self, deadline: Deadline, *, may_start: bool) -> None:
        """Takes the trainer's place on the ps; again, and nothing changes.

        Args:
            deadline: until which it is tried, once at least.
            may_start: whether the ps may be about to start, so that one that is not there is
                tried again.

        Raises:
            ConfigError: the barrier was made for another number of parties.
            tf.errors.UnavailableError: the ps is not there.
            tf.errors.DeadlineExceededError: it does not answer.
        """
        while True:
            try:
                if not self._fetch(self.graph.exists, deadline):
                    self.run(self.graph.make, deadline=deadline)
                self.look(deadline)  # made for as many parties?
                self.run(self.graph.enter, deadline=deadline)
                return
            except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError) as error:
                is_gone = isinstance(error, tf.errors.UnavailableError)
                if deadline.expired or (is_gone and not may_start):
                    raise
                self._warn_if_due(deadline)
                time.sleep(_RETRY_SECS)

    def run(
        self, operation: Any, reason: str | None = None, *, deadline: Deadline | None = None
    ) -> None:
        """Runs an operation that does not block, with a `reason` where it takes one."""
        feed = {} if reason is None else {self.graph.reason_text: reason}
        answer = Deadline(_soon(deadline))
        while True:
            try:
                timeout = max(answer.remaining, _LAST_ANSWER_SECS)
                self._session.run(operation, feed, timeout=timeout)
                return
            except IN_USE as error:
                if answer.expired:
                    message = f"others change the state all the time: {error}"
                    raise tf.errors.DeadlineExceededError(None, None, message) from error
                time.sleep(_IN_USE_SECS)

    def block(self, operation: Any, seconds: float) -> None:
        """Runs an operation that blocks, for `seconds` or RECHECK_SECS at most.

        Raises:
            tf.errors.DeadlineExceededError: it still blocked.
            tf.errors.InvalidArgumentError: it was woken in vain.
            tf.errors.OutOfRangeError: it was refused, and has done nothing.
        """
        if seconds < RECHECK_SECS:
            self._session.run(operation, timeout=seconds)
        else:
            self._session.call(operation)

    def look(self, deadline: Deadline | None = None) -> Snapshot:
        """Reads everything; asks again every RECHECK_SECS, until the deadline or ANSWER_SECS.

        Raises:
            ConfigError: the barrier was made for another number of parties.
        """
        deadline = deadline or Deadline(ANSWER_SECS)
        vector, reason, now = self._fetch(self.graph.snapshot, deadline)
        if num_parties(vector) != self._parties:
            made_for = f"others made barrier {self._name!r} with {num_parties(vector)}"
            raise ConfigError("parties", self._parties, made_for)
        state = unpack(vector)
        rules = as_arrivals(state)
        return Snapshot(
            arrivals=rules,
            ps_incarnation=state.ps_incarnation,
            arrived_at_us=state.arrived_at,
            total_wait_us=_total_waits(state, rules),
            reason=reason.decode(),
            now_us=int(1e6 * now),
        )

    def look_if_made(self, deadline: Deadline) -> Snapshot | None:
        """The same, for somebody who has not entered; None if nobody has made the barrier."""
        return self.look(deadline) if self._fetch(self.graph.exists, deadline) else None

    def _fetch(self, fetches: Any, deadline: Deadline) -> Any:
        while True:
            try:
                timeout = min(_soon(deadline), RECHECK_SECS)
                return self._session.run(fetches, timeout=timeout)
            except tf.errors.DeadlineExceededError:
                if deadline.expired:
                    raise
                self._warn_if_due(deadline)

    def _warn_if_due(self, deadline: Deadline) -> None:
        if deadline.notice_due():
            where, seconds = self._session.address, deadline.elapsed
            _log.warning(
                "barrier %r: no answer from ps:0 at %s, after %.0f s", self._name, where, seconds
            )

    def close(self) -> None:
        """Closes the session; blocks for RECHECK_SECS at most."""
        self._session.close()


def _total_waits(state: State, rules: Arrivals) -> list[int]:
    """How long each rank has waited in released generations."""
    waits = list(state.waited)
    for rank in rules.waiting:
        waits[rank] += state.arrived_at[rank]
    # The clock is read before the lock is taken, so the last to arrive may be early by some us.
    return [max(wait, 0) for wait in waits]


def _soon(deadline: Deadline | None) -> float:
    """Seconds within which an answer is due, not long after the deadline."""
    if deadline is None:
        return ANSWER_SECS
    return min(max(deadline.remaining, _LAST_ANSWER_SECS), ANSWER_SECS)
