"""Random operations on the barrier's state on a real ps; `tfdist.barrier.rules` predicts them."""

import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.chaos.runs import connect, run
from tfdist import local_cluster
from tfdist.barrier import rules as arrivals
from tfdist.barrier.connection import Connection
from tfdist.barrier.rules import RESIGNED, Arrivals
from tfdist.barrier.vector import unpack
from tfdist.deadline import Deadline

N = 3
TIMEOUT = 30.0  # for what is expected to end; far more than it takes

ranks = st.integers(0, N - 1)
parities = st.integers(0, 1)


@pytest.fixture(scope="module")
def tasks():
    with local_cluster(1, N, backend="threads") as cluster:
        yield cluster.trainers


# By name of an incarnation: its rank, whether it is a chief with an action, and the incarnation
# that it replaces. Earlier incarnations continue to send.
INCARNATIONS = {
    "chief with an action": (0, True, None),
    "chief": (0, False, None),
    "chief renewed": (0, False, "chief"),
    "first": (1, False, None),
    "first again": (1, False, None),
    "second": (2, False, None),
    "second renewed": (2, False, "second"),
}
incarnations = st.sampled_from(list(INCARNATIONS))
chiefs = st.sampled_from(
    [incarnation for incarnation, (rank, *_) in INCARNATIONS.items() if rank == 0]
)


class Operations(RuleBasedStateMachine):
    connections: dict[str, Connection]  # kept over all runs, since building one takes long
    forget: tf.Operation

    @initialize(chief=st.sampled_from(["chief", "chief with an action"]))
    def start(self, chief):
        self.connections["second"]._blocking.run(self.forget)
        self.model, self.reason = Arrivals.start(N), ""
        for incarnation in (chief, "first", "second"):
            self.enter(incarnation)

    @invariant()
    def the_ps_agrees_with_the_model(self):
        snapshot = self.connections["second"].look()
        assert snapshot.arrivals == self.model
        assert not self.model.broken or snapshot.reason == self.reason

    @invariant()
    def what_is_stored_twice_agrees(self):
        fetched, *_ = self.connections["second"]._fetch(
            self.connections["second"].transitions.snapshot, Deadline(TIMEOUT)
        )
        state, model = unpack(fetched), self.model
        waiting = [rank for rank in model.waiting if state.blocks[rank]]
        assert state.parity == arrivals.next_parity(model)
        assert state.expected == N - model.arrived.count(RESIGNED)
        assert state.missing == len(model.missing)
        assert state.blocked == len([rank for rank in waiting if rank or not model.has_action])
        for rank in range(N):
            may_arrive = not model.broken and model.arrived[rank] < RESIGNED
            next_parity = (model.arrived[rank] + 1) % 2
            assert state.keys[rank] == (model.incarnations[rank] + next_parity if may_arrive else 0)

    def is_current(self, incarnation):
        return (
            self.model.incarnations[INCARNATIONS[incarnation][0]]
            == self.connections[incarnation].incarnation
        )

    def current(self, rank):
        return next(
            incarnation
            for incarnation in INCARNATIONS
            if INCARNATIONS[incarnation][0] == rank and self.is_current(incarnation)
        )

    def send(self, incarnation, operation, reason="", *, parity=None):
        found = getattr(self.connections[incarnation].transitions, operation)
        self.connections[incarnation].run(found if parity is None else found[parity], reason)

    @rule(incarnation=incarnations)
    def enter(self, incarnation):
        (rank, has_action, renews), number = (
            INCARNATIONS[incarnation],
            self.connections[incarnation].incarnation,
        )
        before = self.model
        if renews:
            self.model = arrivals.renew(before, rank, number, self.connections[renews].incarnation)
        else:
            self.model = arrivals.enter(before, rank, number, has_action=has_action)
        if self.model.broken and not before.broken:
            self.reason = "worker:0 was restarted while its action ran"
        self.connections[incarnation].enter(Deadline(TIMEOUT), may_start=False)

    # By chance alone, all trainers would seldom arrive.

    @rule(but=st.sampled_from([None, *range(N)]))
    def all_arrive(self, but):
        for rank in range(N):
            if rank != but:
                self.arrive(self.current(rank), arrivals.next_parity(self.model))

    @rule(dies=st.booleans(), restarted=chiefs)
    def all_arrive_and_the_chief_acts(self, dies, restarted):
        self.all_arrive(but=None)
        self.begin_action(self.current(0))
        if dies:
            self.enter(restarted)
        else:
            self.release(self.current(0))

    @rule(last=ranks)
    def all_arrive_and_the_last_resigns(self, last):
        self.all_arrive(but=last)
        self.resign(self.current(last))

    # Any incarnation at any time.

    @rule(incarnation=incarnations, parity=parities)
    def arrive(self, incarnation, parity):
        rank, number = INCARNATIONS[incarnation][0], self.connections[incarnation].incarnation
        self.model = arrivals.arrive(self.model, rank, number, parity)
        self.send(incarnation, "arrive", parity=parity)

    @rule(incarnation=incarnations, parity=parities)
    def cross(self, incarnation, parity):
        """Runs only if it cannot block: it is refused, or the last to arrive."""
        (rank, has_action, _), number = (
            INCARNATIONS[incarnation],
            self.connections[incarnation].incarnation,
        )
        before, after = self.model, arrivals.arrive(self.model, rank, number, parity)
        refused = after == before
        if refused or after.released > before.released or (has_action and after.full):
            self.model = after
            try:
                self.connections[incarnation].cross(parity, TIMEOUT)
                assert not refused
            except tf.errors.InvalidArgumentError:
                pass  # the last trainer may have taken an older token that was left

    @rule(incarnation=incarnations)
    def begin_to_block(self, incarnation):
        self.send(incarnation, "begin_to_block")

    @rule(incarnation=chiefs)
    def begin_action(self, incarnation):
        if self.model.arrived[0] == RESIGNED:  # it does not wait
            return
        self.model = arrivals.begin_action(self.model, self.connections[incarnation].incarnation)
        self.send(incarnation, "begin_action")

    @rule(incarnation=chiefs)
    def release(self, incarnation):
        self.model = arrivals.release(self.model, self.connections[incarnation].incarnation)
        self.send(incarnation, "release")

    @rule(incarnation=incarnations)
    def resign(self, incarnation):
        if INCARNATIONS[incarnation][1]:  # no other trainer could run its action
            return
        self.model = arrivals.resign(
            self.model, INCARNATIONS[incarnation][0], self.connections[incarnation].incarnation
        )
        self.send(incarnation, "resign")

    @rule(incarnation=incarnations)
    def abort(self, incarnation):
        self.breaks(f"{incarnation} called abort()")
        self.send(incarnation, "abort", f"{incarnation} called abort()")

    @rule(incarnation=incarnations)
    def abort_if_waiting(self, incarnation):
        rank = INCARNATIONS[incarnation][0]
        if self.is_current(incarnation) and self.model.arrived[rank] != RESIGNED:
            if rank in self.model.waiting:
                self.breaks(f"{incarnation} timed out")
            self.send(incarnation, "abort_if_waiting", f"{incarnation} timed out")

    @rule(incarnation=incarnations)
    def reset(self, incarnation):
        self.model = arrivals.reset(self.model)
        self.send(incarnation, "reset")

    def breaks(self, reason):
        if not self.model.broken:
            self.model, self.reason = arrivals.abort(self.model), reason


def forgetting(graph):
    """An operation that removes everything of the barrier from the ps."""
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


def test_operations_do_to_the_state_what_the_rules_say(tasks, times, no_leaks):
    connections = {}
    for incarnation, (rank, has_action, renews) in INCARNATIONS.items():
        previous_incarnation = connections[renews].incarnation if renews else None
        connections[incarnation] = connect(
            tasks,
            "operations",
            rank,
            has_action=has_action,
            previous_incarnation=previous_incarnation,
        )
        assert connections[incarnation].open_crossing(Deadline(TIMEOUT))
    Operations.connections = connections
    Operations.forget = forgetting(connections["second"]._crossing.graph)
    try:
        run(Operations, examples=30 * times, steps=50, shrink_secs=30)
    finally:
        for connected in connections.values():
            connected.close()
