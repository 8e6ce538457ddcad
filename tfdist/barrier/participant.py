"""One trainer's part in a barrier: it enters, arrives, waits, runs the action, and recovers."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfdist.barrier import rules
from tfdist.barrier.connection import Connection, Snapshot, close_in_thread
from tfdist.barrier.rules import RESIGNED, Decision
from tfdist.deadline import Deadline
from tfdist.errors import BrokenBarrierError, ConfigError, StartTimeout, described
from tfdist.ps.section import IN_USE
from tfdist.task import Task

_log = logging.getLogger(__name__)

QUEUE, COUNTER = KINDS = ("queue", "counter")

_CONNECT_SECS = 60.0
_LONGEST_TEXT = 2000  # of an action's error, in characters
_POLL_SECS = 0.001
_LONGEST_POLL_SECS = 0.05
# A run that is cancelled before the ps has begun it leaves its `dequeue` behind on the ps, which
# later takes another trainer's token. So the last part of a timeout is spent polling.
_SHORTEST_BLOCK_SECS = 0.1
# A first long wait opens a session, which takes some 0.1 s, and far more on a busy machine.
_SHORTEST_OPENING_SECS = 1.0


class Participant:
    """Carries one trainer through the generations of a barrier.

    With kind QUEUE it waits in a queue on the ps, and a release costs each trainer one
    `session.run`. That run has no feed and no fetch, for either nearly doubles its cost. Tokens
    are wake-ups only: TensorFlow may lose one (a `dequeue` that times out, or belongs to a killed
    process, can take a token with it), so a trainer that was woken without a release reads the
    state.

    With kind COUNTER it arrives, then reads the state again and again, with pauses that grow to
    50 ms. Nothing blocks on the ps. This serves networks that cut idle calls, and tests compare it
    with the queue.

    Every method that asks the ps raises TensorFlow's error if the ps is lost or does not answer.

    Args:
        task: the trainer.
        name: the barrier's name.
        names: the parties by rank.
        action: run once a generation by this trainer; None unless it is a chief with an action.
        kind: QUEUE or COUNTER.

    Attributes:
        connection: the current connection to the ps.
        ps_incarnation: the ps that this trainer has joined.
        joined_at: the generation in which it has joined it.
        resigned: whether the trainer has resigned.
        arrived: whether it is known to have arrived in the generation that it waits for.
        uncertain: whether an arrival that it has sent may still reach the ps.
    """

    connection: Connection
    ps_incarnation: int
    joined_at: int
    resigned: bool
    arrived: bool
    uncertain: bool
    _renewal: Connection | None
    _blocks: bool  # whether the ps counts on this trainer to take a token
    _parity: int  # of the generation that it waits for next
    _resets: int  # how many resets of the barrier it knows of

    def __init__(
        self,
        task: Task,
        name: str,
        names: Sequence[str],
        *,
        action: Callable[[], object] | None,
        kind: str,
    ) -> None:
        self._task, self._name, self._names = task, name, names
        self._rank, self._address = task.rank, task.cluster_spec["ps"][0]
        self._action, self._kind = action, kind
        self.acts = self._is_closed = False
        self.join()

    def join(self) -> None:
        """Takes the trainer's place on the ps: at the start, and after the ps was lost.

        Raises:
            ConfigError: the barrier was made for another number of parties.
            StartTimeout: the ps did not answer within 60 s.
        """
        deadline = Deadline(_CONNECT_SECS)
        self.connection = self._connect(previous_incarnation=None)
        self._renewal = None
        self.arrived = self.uncertain = self._blocks = False
        try:
            self.connection.enter(deadline, may_start=True)
            snapshot = self.connection.look()
        except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError) as error:
            hint = f"Barrier {self._name!r} is kept there, at {self._address}; is it running?"
            raise StartTimeout(["ps:0"], deadline.elapsed, hint) from error
        self.ps_incarnation = snapshot.ps_incarnation
        self.joined_at = snapshot.arrivals.generation
        self.resigned = snapshot.arrivals.arrived[self._rank] == RESIGNED
        self._parity = rules.next_parity(snapshot.arrivals)
        self._resets = snapshot.arrivals.resets

    def renew(self, deadline: Deadline) -> None:
        """Continues as a new incarnation; messages that the old one has sent have no effect."""
        _log.info("barrier %r: %s continues as a new incarnation", self._name, self._task.name)
        if self._renewal is None:  # else it is tried again, for it may have come through
            self._renewal = self._connect(previous_incarnation=self.connection.incarnation)
        self._renewal.enter(deadline, may_start=False)
        self._blocks = self.uncertain = False
        old, self.connection, self._renewal = self.connection, self._renewal, None
        close_in_thread(old)
        if self._is_closed:  # meanwhile
            self.connection.close()

    def close(self) -> None:
        """Closes the connection, also if another thread renews it meanwhile."""
        self._is_closed = True
        self.connection.close()

    def wait(self, deadline: Deadline, *, break_on_timeout: bool) -> Decision:
        """Arrives, unless it has arrived, and waits; the chief runs its action.

        Returns:
            PASS, BROKEN or REPLACED; WAIT or ARRIVE if the time is over.

        Raises:
            BrokenBarrierError: the action failed.
        """
        decision = self._await(deadline)
        if decision is Decision.ACT:
            decision = self._act()
        if decision is Decision.WAIT and break_on_timeout:
            decision = self._break(deadline)
        if decision is Decision.PASS:
            self._parity ^= 1
        if decision not in (Decision.WAIT, Decision.ARRIVE):
            self.arrived = False
        return decision

    def _connect(self, previous_incarnation: int | None) -> Connection:
        return Connection(
            self._address,
            self._name,
            self._names,
            self._rank,
            has_action=self._action is not None,
            previous_incarnation=previous_incarnation,
        )

    def _await(self, deadline: Deadline) -> Decision:
        """Arrives and waits; WAIT and ARRIVE mean that the time is over."""
        decision = Decision.ARRIVE
        if self.arrived or self.uncertain:
            decision = self._decide(deadline)
        while (
            self._kind == QUEUE
            and decision in (Decision.ARRIVE, Decision.WAIT)
            and deadline.remaining >= _SHORTEST_BLOCK_SECS
        ):
            if not self.connection.can_block:
                is_long = deadline.remaining >= _SHORTEST_OPENING_SECS
                if not (is_long and self.connection.open_crossing(deadline)):
                    break
                continue
            if decision is Decision.WAIT and not self._blocks:
                # It arrived as a trainer that polls, so the release would send it no token.
                self.connection.run(self.connection.transitions.begin_to_block, deadline=deadline)
                self._blocks = True
            elif self._take_token(decision, deadline):
                return Decision.PASS
            decision = self._decide(deadline)
        return self._poll(deadline, decision)

    def _take_token(self, decision: Decision, deadline: Deadline) -> bool:
        """Arrives if need be and blocks for a while; true if its generation was released."""
        arrives = decision is Decision.ARRIVE
        block = self.connection.cross if arrives else self.connection.block
        self._blocks = True
        try:
            block(self._parity, deadline.remaining - _SHORTEST_BLOCK_SECS / 2)
        except (tf.errors.InvalidArgumentError, IN_USE):
            # It was woken without a release, or the ps refused the arrival. The ps refuses it from
            # a restarted trainer that had arrived before, and does not know yet that this process
            # blocks.
            self._blocks = not arrives
            _log.debug("barrier %r: woken without a release; reads the state", self._name)
            return False
        except BaseException as error:  # also Ctrl-C
            self.uncertain = self.uncertain or arrives
            if not isinstance(error, tf.errors.DeadlineExceededError):
                raise
            return False
        return self._action is None  # the token of a chief with an action says that all are there

    def _poll(self, deadline: Deadline, decision: Decision) -> Decision:
        """Continues from `decision` without blocking on the ps, until the wait ends."""
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
            self.connection.run(self.connection.transitions.arrive[self._parity], deadline=deadline)
        except tf.errors.DeadlineExceededError:
            self.uncertain = True
            if deadline.expired:
                raise

    def _decide(self, deadline: Deadline) -> Decision:
        """Reads the state on the ps and decides by it."""
        if self._renewal is not None:
            # Its answer was lost. It may act for the trainer by now, so that the state would show
            # the present connection as replaced.
            self.renew(deadline)
        snapshot = self.connection.look(deadline)
        decision = self._decide_by(snapshot)
        if self.uncertain and decision in (Decision.ARRIVE, Decision.BROKEN):
            # The arrival may still reach the ps and count there; a new incarnation prevents that.
            self.renew(deadline)
            snapshot = self.connection.look(deadline)
            decision = self._decide_by(snapshot)
        if decision is Decision.WAIT and deadline.notice_due():
            state = snapshot.arrivals
            _log.warning(
                "barrier %r generation %d: still waiting, %s",
                self._name,
                state.generation,
                rules.describe(state, self._names, snapshot.ages, deadline.elapsed),
            )
        self.uncertain = False
        self.arrived = decision in (Decision.WAIT, Decision.ACT)
        return decision

    def _decide_by(self, snapshot: Snapshot) -> Decision:
        if snapshot.ps_incarnation != self.ps_incarnation:
            return Decision.BROKEN
        state, incarnation = snapshot.arrivals, self.connection.incarnation
        decision = rules.decide(state, self._rank, incarnation, self._parity, self._resets)
        if decision is Decision.WAIT:
            self._resets = state.resets
        return decision

    def _act(self) -> Decision:
        connection = self.connection
        connection.run(connection.transitions.begin_action)
        snapshot = connection.look()
        decision = self._decide_by(snapshot)
        if decision is not Decision.ACT or not snapshot.arrivals.acting:
            return decision  # broken, reset or replaced in between
        _log.info("barrier %r: %s runs the action", self._name, self._task.name)
        self.acts = True
        try:
            if self._action is not None:
                _refuse_coroutine(self._action())
        except BaseException as error:
            text = described(error)
            cut = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ..."
            reason = f"the action of {self._task.name} raised {cut}"
            self.arrived = False
            try:
                connection.run(connection.transitions.abort, reason)
            except tf.errors.OpError as lost:
                self.uncertain = True
                _log.warning(
                    "barrier %r is not broken on ps:0, which does not answer (%s), although %s",
                    self._name,
                    described(lost),
                    reason,
                )
            if not isinstance(error, Exception):
                raise
            raise BrokenBarrierError(self._name, reason) from error
        finally:
            self.acts = False
        connection.run(connection.transitions.release)
        return self._decide_by(connection.look())

    def _break(self, deadline: Deadline) -> Decision:
        """Breaks the barrier after a timeout, unless its generation was released meanwhile."""
        connection = self.connection
        reason = f"{self._task.name} timed out"
        connection.run(connection.transitions.abort_if_waiting, reason, deadline=deadline)
        self.arrived = False
        decision = self._decide_by(connection.look(deadline))
        return decision if decision is Decision.PASS else Decision.WAIT


def _refuse_coroutine(result: object) -> None:
    """A `lambda` that calls a coroutine function runs nothing of it, and does not look like one."""
    if inspect.iscoroutine(result):
        result.close()
        raise ConfigError("action", result.__qualname__, "is a coroutine, which nothing awaits")
