"""Random runs of whole barriers on a real ps; `tfdist.barrier.rules` predicts every step.

Waits run in threads. The model predicts which trainers wait, pass, or get which error.
"""

import itertools
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.chaos.runs import connect, run
from tfdist import Barrier, BarrierError, BarrierTimeout, BrokenBarrierError, local_cluster
from tfdist.barrier import connection
from tfdist.barrier import rules as arrivals
from tfdist.barrier.rules import RESIGNED, Arrivals, Decision
from tfdist.testing import poll_until

N = 3
TIMEOUT = 20.0  # for what is expected to end; far more than it takes
WOKEN = 4.0  # a trainer that is woken continues within this time
RECHECK = 2 * WOKEN  # a trainer that is not woken takes longer

ranks = st.integers(0, N - 1)
kinds = st.sampled_from(["queue", "counter"])
seldom = st.sampled_from([False, False, False, True])


@pytest.fixture(scope="module")
def tasks():
    """The trainers of a cluster whose ps keeps the barriers of all runs."""
    with local_cluster(1, N, backend="threads") as cluster:
        yield cluster.trainers


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    monkeypatch.setattr(connection, "RECHECK_SECS", RECHECK)
    # The model does not cover a silent ps, and a ps on a busy machine may seem silent.
    monkeypatch.setattr(connection, "_LAST_ANSWER_SECS", WOKEN)


@dataclass
class Trainer:
    """A barrier object, and the state of its trainer."""

    barrier: object
    incarnation: int  # as the model numbers them
    parity: int
    breaks: bool  # a timeout breaks the barrier
    arrived: bool = False  # known from a timeout
    repeats: bool = False  # its wait repeats an arrival of the process before it
    waits: Future | None = None  # with its result or error, and the time of that


def outcome_of(barrier, timeouts):
    """Waits again after each timeout but the last."""
    for timeout in timeouts:
        try:
            outcome = barrier.wait(timeout)
            break
        except Exception as error:
            outcome = error
            if not isinstance(error, BarrierTimeout):
                break
    return outcome, time.monotonic()


class Meeting(RuleBasedStateMachine):
    """Each rule ends when all is as predicted; until then only the waits that it started race."""

    tasks: tuple
    names = (f"meeting/{number}" for number in itertools.count())

    @initialize(
        kinds=st.tuples(*[kinds] * N),
        has_action=st.booleans(),
        breaks=st.tuples(*[seldom] * N),
        lossy=st.booleans(),
    )
    def start(self, kinds, has_action, breaks, lossy):
        self.name, self.model, self.reason = next(self.names), Arrivals.start(N), ""
        self.fails, self.num_runs, self.runs = False, 0, []
        # Whether some waits stop blocking while a token may be on its way, which can lose it.
        self.lossy = lossy
        self.pool, self.made = ThreadPoolExecutor(2 * N), []
        self.observer = connect(self.tasks, self.name, 1, has_action=False)
        self.trainers, self.ghosts = [None] * N, []
        for rank in range(N):
            self.trainers[rank] = self.enter(rank, kinds[rank], has_action, breaks[rank])

    def enter(self, rank, kind, has_action, breaks):
        has_action = has_action and rank == 0
        barrier = Barrier(
            self.tasks[rank],
            self.name,
            kind=kind,
            action=self.act if has_action else None,
            break_on_timeout=breaks,
        )
        self.made.append(barrier)
        incarnation = len(self.made)
        self.model = arrivals.enter(self.model, rank, incarnation, has_action=has_action)
        return Trainer(barrier, incarnation, arrivals.next_parity(self.model), breaks)

    def act(self):
        self.runs.append(self.fails)
        if self.fails:
            raise ValueError("the disk is full")

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        for barrier in self.made:
            barrier.close()  # which ends its waits
        self.observer.close()
        wait_for([trainer.waits for trainer in self.trainers if trainer.waits], TIMEOUT)
        self.pool.shutdown(wait=False)

    # What the trainers do.

    @rule(ranks=st.sets(ranks, min_size=1), restless=st.sets(ranks), fails=seldom)
    def wait(self, ranks, restless, fails):
        """All begin together; the restless ones time out repeatedly and continue."""
        start, self.fails = time.monotonic(), fails
        for rank in ranks:
            if not self.trainers[rank].waits:
                short = self.lossy and rank in restless and not self.trainers[rank].breaks
                self.start_wait(rank, [0, 0.03, 0.15, 0.2, TIMEOUT] if short else [TIMEOUT])
        self.settle(start)

    @precondition(lambda self: not self.model.broken)
    @rule(rounds=st.integers(1, 3), restless=st.sets(ranks))
    def wait_all(self, rounds, restless):
        for _ in range(rounds):
            left = {rank for rank in range(N) if self.model.arrived[rank] < RESIGNED}
            self.wait(left, restless, fails=False)

    def start_wait(self, rank, timeouts):
        trainer, before = self.trainers[rank], self.model
        if not trainer.arrived:
            self.model = arrivals.arrive(before, rank, trainer.incarnation, trainer.parity)
            trainer.repeats = self.model == before
        trainer.waits = self.pool.submit(outcome_of, trainer.barrier, timeouts)

    @precondition(lambda self: not self.model.broken)
    @rule(rank=ranks, blocks=st.booleans())
    def wait_shortly(self, rank, blocks):
        trainer, start = self.trainers[rank], time.monotonic()
        chief_waits = self.model.has_action and self.trainers[0].waits
        if trainer.waits or chief_waits:  # it may act before or after the timeout
            return
        self.fails = False
        self.start_wait(rank, [0.15 if blocks and self.lossy else 0.01])
        self.settle(start, ends=rank)

    # Late enough that most of a run has all its trainers.
    @precondition(lambda self: self.model.generation > 5 * (1 + self.model.arrived.count(RESIGNED)))
    @rule(rank=ranks, last=st.booleans())
    def resign(self, rank, last):
        trainer = self.trainers[rank]
        if trainer.waits:
            return
        if last:  # its resignation releases the others
            self.wait({*range(N)} - {rank}, set(), fails=False)
        start = time.monotonic()
        if rank == 0 and self.model.has_action:
            with pytest.raises(BarrierError, match="cannot resign"):
                trainer.barrier.resign()
        else:
            trainer.barrier.resign()
            self.model = arrivals.resign(self.model, rank, trainer.incarnation)
        self.settle(start)

    @precondition(lambda self: not self.model.broken and self.model.waiting)
    @rule(rank=ranks)
    def abort(self, rank):
        start = time.monotonic()
        self.trainers[rank].barrier.abort()
        self.broken_by(f"{self.tasks[rank].name} called abort()")
        self.settle(start)

    @precondition(lambda self: self.model.broken or self.model.waiting)
    @rule(rank=ranks)
    def reset(self, rank):
        start = time.monotonic()
        if not self.trainers[rank].waits:
            self.trainers[rank].barrier.reset()
            self.model = arrivals.reset(self.model)
            self.settle(start)

    @precondition(lambda self: len(self.made) < 2 * N)  # making one is the slowest step
    @rule(rank=ranks, kind=kinds, has_action=st.booleans(), breaks=seldom)
    def restart(self, rank, kind, has_action, breaks):
        """A waiting trainer is killed; the process of any other continues as a ghost."""
        start, old = time.monotonic(), self.trainers[rank]
        if old.waits:
            old.barrier.close()
            _, ended = old.waits.result(TIMEOUT)
            assert ended >= start
        elif self.model.arrived[rank] != RESIGNED:
            self.ghosts.append(old.barrier)
        self.trainers[rank] = self.enter(rank, kind, has_action, breaks)
        self.settle(start)

    @precondition(lambda self: self.ghosts)
    @rule()
    def ghost(self):
        start, barrier = time.monotonic(), self.ghosts.pop()
        with pytest.raises(BrokenBarrierError, match="made another Barrier of this name"):
            barrier.wait(TIMEOUT)
        with suppress(BarrierError):  # a chief with an action may not resign
            barrier.resign()
        self.settle(start)

    # The predictions of the model.

    def broken_by(self, reason):
        if not self.model.broken:
            self.model, self.reason = arrivals.abort(self.model), reason

    def settle(self, start, ends=None):
        """Checks that exactly the predicted waits end, and not before `start`."""
        while any(self.ends_as_predicted(rank, start) for rank in range(N)):
            pass  # a trainer that passes may release those before it
        if ends is not None and (trainer := self.trainers[ends]).waits:
            missing = tuple(self.tasks[rank].name for rank in self.model.missing)
            generation = self.model.generation
            if trainer.breaks:
                self.broken_by(f"{self.tasks[ends].name} timed out")
            trainer.arrived = not trainer.breaks
            error = self.ended(trainer, start)
            assert isinstance(error, BarrierTimeout)
            assert (error.missing, error.generation) == (missing, generation)
            self.settle(start)
        poll_until(self.ps_agrees, f"the ps agrees with {self.model}")
        # The ps shows nothing of a repeated arrival. One that it gets after the next reset is none.
        for trainer in (t for t in self.trainers if t.waits and t.repeats):
            has_begun = partial(getattr, trainer.barrier._participant, "arrived")
            poll_until(has_begun, "a restarted trainer knows that it has arrived")
        assert not [t.waits.result() for t in self.trainers if t.waits and t.waits.done()]
        assert len(self.runs) == self.num_runs

    def ps_agrees(self):
        state = self.observer.look().arrivals
        return replace(state, incarnations=self.model.incarnations) == self.model

    def ends_as_predicted(self, rank, start):
        """Whether the wait of this trainer ends now; checks that it ends as predicted."""
        trainer = self.trainers[rank]
        if not trainer.waits:
            return False
        if self.model.arrived[rank] == RESIGNED:
            assert "has resigned" in str(self.ended(trainer, start))
            return True
        # No arrival is lost here, so the number of resets does not matter.
        decision = arrivals.decide(self.model, rank, trainer.incarnation, trainer.parity, resets=-1)
        if decision is Decision.ACT:
            self.num_runs += 1
            self.model = arrivals.begin_action(self.model, trainer.incarnation)
            if self.fails:
                self.broken_by("the action of worker:0 raised ValueError: the disk is full")
            self.model = arrivals.release(self.model, trainer.incarnation)
        elif decision is Decision.PASS:
            trainer.parity ^= 1
            trainer.arrived = False
            assert self.ended(trainer, start) == rank
        elif decision is Decision.BROKEN:
            trainer.arrived = False
            error = self.ended(trainer, start)
            assert isinstance(error, BrokenBarrierError)
            assert (self.reason if self.model.broken else "it was reset") in str(error)
        else:
            assert decision is Decision.WAIT
            return False
        return True

    def ended(self, trainer, start):
        """The outcome of its wait, which has to end in time."""
        outcome, ended = trainer.waits.result(TIMEOUT if self.lossy else WOKEN)
        trainer.waits = None
        assert ended >= start, f"too early: {outcome}"
        return outcome

    @invariant()
    def the_properties_agree(self):
        barrier = next(t.barrier for t in self.trainers if not t.waits)
        model = self.model
        assert barrier.n_waiting == (0 if model.broken else len(model.waiting))
        assert barrier.missing() == tuple(self.tasks[rank].name for rank in model.missing)
        assert (barrier.broken, barrier.generation) == (model.broken, model.generation)


def test_barriers_do_what_the_rules_say(tasks, times, no_leaks):
    Meeting.tasks = tasks
    run(Meeting, examples=6 * times, steps=40, shrink_secs=0)
