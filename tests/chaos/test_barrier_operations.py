"""Random operations on the barrier's state on a real ps, foretold by the rules in arrivals.py."""

import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.chaos.runs import connect, run
from tfdist import arrivals, local_cluster
from tfdist.arrivals import RESIGNED, Arrivals
from tfdist.barrier.connection import Connection
from tfdist.barrier.vector import unpack
from tfdist.deadline import Deadline

N = 3
TIMEOUT = 30.0  # of what is expected to end; far more than it takes

ranks = st.integers(0, N - 1)
parities = st.integers(0, 1)


@pytest.fixture(scope="module")
def tasks():
    with local_cluster(1, N, backend="threads") as cluster:
        yield cluster.trainers


# By name of the life: its rank, whether it is a chief with an action, and the life that it renews.
# A life that is over goes on sending.
LIVES = {
    "chief with an action": (0, True, None),
    "chief": (0, False, None),
    "chief renewed": (0, False, "chief"),
    "first": (1, False, None),
    "first again": (1, False, None),
    "second": (2, False, None),
    "second renewed": (2, False, "second"),
}
lives = st.sampled_from(list(LIVES))
chiefs = st.sampled_from([life for life, (rank, *_) in LIVES.items() if rank == 0])


class Operations(RuleBasedStateMachine):
    connections: dict[str, Connection]  # kept over all runs, since to build one takes longer
    forget: tf.Operation

    @initialize(chief=st.sampled_from(["chief", "chief with an action"]))
    def start(self, chief):
        self.connections["second"].run(self.forget)
        self.model, self.reason = Arrivals.start(N), ""
        for life in (chief, "first", "second"):
            self.enter(life)

    @invariant()
    def the_ps_agrees_with_the_model(self):
        snapshot = self.connections["second"].look()
        assert snapshot.arrivals == self.model
        assert not self.model.broken or snapshot.reason == self.reason

    @invariant()
    def what_is_stored_twice_agrees(self):
        fetched, *_ = self.connections["second"]._fetch(
            self.connections["second"].graph.snapshot, Deadline(TIMEOUT)
        )
        state, model = unpack(fetched), self.model
        waiting = [rank for rank in model.waiting if state.blocks[rank]]
        assert state.parity == arrivals.next_parity(model)
        assert state.expected == N - model.arrived.count(RESIGNED)
        assert state.missing == len(model.missing)
        assert state.blocked == len([rank for rank in waiting if rank or not model.held])
        for rank in range(N):
            may_arrive = not model.broken and model.arrived[rank] < RESIGNED
            next_parity = (model.arrived[rank] + 1) % 2
            assert state.keys[rank] == (model.lives[rank] + next_parity if may_arrive else 0)

    def speaks(self, life):
        return self.model.lives[LIVES[life][0]] == self.connections[life].life

    def speaker(self, rank):
        return next(life for life in LIVES if LIVES[life][0] == rank and self.speaks(life))

    def send(self, life, operation, reason=None, *, parity=None):
        found = getattr(self.connections[life].graph, operation)
        self.connections[life].run(found if parity is None else found[parity], reason)

    @rule(life=lives)
    def enter(self, life):
        (rank, held, renews), number = LIVES[life], self.connections[life].life
        before = self.model
        if renews:
            self.model = arrivals.renew(before, rank, number, self.connections[renews].life)
        else:
            self.model = arrivals.enter(before, rank, number, held=held)
        if self.model.broken and not before.broken:
            self.reason = "worker:0 was restarted while its action ran"
        self.connections[life].enter(Deadline(TIMEOUT), may_start=False)

    # Left to chance, trainers seldom come together.

    @rule(but=st.sampled_from([None, *range(N)]))
    def all_arrive(self, but):
        for rank in range(N):
            if rank != but:
                self.arrive(self.speaker(rank), arrivals.next_parity(self.model))

    @rule(dies=st.booleans(), restarted=chiefs)
    def all_arrive_and_the_chief_acts(self, dies, restarted):
        self.all_arrive(but=None)
        self.begin_action(self.speaker(0))
        if dies:
            self.enter(restarted)
        else:
            self.release(self.speaker(0))

    @rule(last=ranks)
    def all_arrive_and_the_last_resigns(self, last):
        self.all_arrive(but=last)
        self.resign(self.speaker(last))

    # Any life at any time.

    @rule(life=lives, parity=parities)
    def arrive(self, life, parity):
        rank, number = LIVES[life][0], self.connections[life].life
        self.model = arrivals.arrive(self.model, rank, number, parity)
        self.send(life, "arrive", parity=parity)

    @rule(life=lives, parity=parities)
    def cross(self, life, parity):
        """Where it cannot block: it is refused, or is the last to come."""
        (rank, held, _), number = LIVES[life], self.connections[life].life
        before, after = self.model, arrivals.arrive(self.model, rank, number, parity)
        refused = after == before
        if refused or after.released > before.released or (held and after.full):
            self.model = after
            try:
                operation = self.connections[life].graph.cross[parity]
                self.connections[life].block(operation, TIMEOUT)
                assert not refused
            except tf.errors.InvalidArgumentError:
                pass  # also the last may take an older token, which nobody has taken before

    @rule(life=lives)
    def begin_to_block(self, life):
        self.send(life, "begin_to_block")

    @rule(life=chiefs)
    def begin_action(self, life):
        if self.model.arrived[0] == RESIGNED:  # then it does not wait
            return
        self.model = arrivals.begin_action(self.model, self.connections[life].life)
        self.send(life, "begin_action")

    @rule(life=chiefs)
    def release(self, life):
        self.model = arrivals.release(self.model, self.connections[life].life)
        self.send(life, "release")

    @rule(life=lives)
    def resign(self, life):
        if LIVES[life][1]:  # nobody else could run its action
            return
        self.model = arrivals.resign(self.model, LIVES[life][0], self.connections[life].life)
        self.send(life, "resign")

    @rule(life=lives)
    def abort(self, life):
        self.breaks(f"{life} called abort()")
        self.send(life, "abort", f"{life} called abort()")

    @rule(life=lives)
    def abort_if_waiting(self, life):
        rank = LIVES[life][0]
        if self.speaks(life) and self.model.arrived[rank] != RESIGNED:
            if rank in self.model.waiting:
                self.breaks(f"{life} timed out")
            self.send(life, "abort_if_waiting", f"{life} timed out")

    @rule(life=lives)
    def reset(self, life):
        self.model = arrivals.reset(self.model)
        self.send(life, "reset")

    def breaks(self, reason):
        if not self.model.broken:
            self.model, self.reason = arrivals.abort(self.model), reason


def forgetting(graph):
    """An operation after which the ps has nothing of the barrier, as if nobody had ever come."""
    done = []
    with graph.as_default():
        for made in graph.get_operations():
            handle = made.outputs[0] if made.outputs else None
            with tf.device(made.device):
                if made.type == "VarHandleOp":
                    destroy = tf.raw_ops.DestroyResourceOp(
                        resource=handle, ignore_lookup_error=True
                    )
                    done.append(destroy)
                if made.type == "FIFOQueueV2":
                    size = tf.raw_ops.QueueSizeV2(handle=handle)
                    take = tf.raw_ops.QueueDequeueManyV2
                    done.extend(take(handle=handle, n=size, component_types=[tf.int64]))
        return tf.group(*done)


def test_operations_do_to_the_state_what_the_rules_say(tasks, no_leaks):
    connections = {}
    for life, (rank, held, renews) in LIVES.items():
        previous_life = connections[renews].life if renews else None
        connections[life] = connect(
            tasks, "operations", rank, held=held, previous_life=previous_life
        )
    Operations.connections = connections
    Operations.forget = forgetting(connections["second"].graph.graph)
    try:
        run(Operations, examples=50, steps=50, shrink_secs=30)
    finally:
        for connected in connections.values():
            connected.close()
