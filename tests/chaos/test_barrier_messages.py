"""Messages to a real ps that are lost, late, or sent by a process that has been replaced."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow as tf

from tests.chaos.barrier_jobs import num_tokens
from tfdist import Barrier, BarrierTimeout, BrokenBarrierError, local_cluster
from tfdist.barrier.connection import Connection
from tfdist.barrier.state import handle_of, resource_names
from tfdist.deadline import Deadline
from tfdist.ps.session import PS_DEVICE, DirectSession

pytestmark = pytest.mark.rotates(1)  # one kind of barrier a day

TIMEOUT = 20.0
SOON = 0.3


@pytest.fixture(scope="module")
def trainers():
    with local_cluster(1, 2, backend="threads") as cluster:
        yield cluster.trainers


@pytest.fixture(params=["queue", "counter"])
def make(trainers, request):
    """Makes the barrier of this test for one trainer; each further call is a new incarnation."""
    made = []

    def make_one(rank, **options):
        made.append(Barrier(trainers[rank], request.node.name, kind=request.param, **options))
        return made[-1]

    yield make_one
    for barrier in made:
        barrier.close()


class Post:
    """Holds back the next arrival of a barrier, as a slow network would, until `deliver`."""

    def __init__(self, barrier, monkeypatch):
        self._monkeypatch, self._held = monkeypatch, []
        self._connection = connection = barrier._participant.connection
        arrivals, run = connection.transitions.arrive, connection.run

        def run_or_hold(operation, *arguments, **options):
            if operation in arrivals:
                self._hold(operation)
            return run(operation, *arguments, **options)

        monkeypatch.setattr(connection, "run", run_or_hold)
        monkeypatch.setattr(connection, "cross", lambda parity, _: self._hold(arrivals[parity]))

    def _hold(self, arrival):
        self._held.append(arrival)
        self._monkeypatch.undo()
        raise tf.errors.DeadlineExceededError(None, None, "no answer")

    def deliver(self):
        # It uses another session, because the sender may have closed its own meanwhile.
        connection = self._connection
        address, graph = connection._session.address, connection.transitions.graph
        with DirectSession(address, graph, timeout=0) as session:
            session.run(self._held.pop(), connection._feed())


def meet(one, other):
    with ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(barrier.wait, TIMEOUT) for barrier in (one, other)]
        assert [wait.result() for wait in waits] == [0, 1]


@pytest.fixture
def refused_once(monkeypatch):
    """Refuses each run once, as `retry_duplicate_request` says that a server does."""
    refused = []

    def refuse_once(run):
        def refuse_or_run(*arguments, **options):
            if not refused or refused[-1] is None:
                refused.append(run)
                message = "The same RunGraph (Worker) request was received twice."
                raise tf.errors.AbortedError(None, None, message)
            refused.append(None)
            return run(*arguments, **options)

        return refuse_or_run

    session = tf.compat.v1.Session
    make_callable = session.make_callable
    monkeypatch.setattr(session, "run", refuse_once(session.run))
    monkeypatch.setattr(session, "make_callable", lambda *given: refuse_once(make_callable(*given)))
    return refused


def test_a_run_refused_as_a_duplicate_is_not_taken_for_a_lost_ps(make, refused_once):
    one = make(0, action=list)
    other = make(1)
    with pytest.raises(BarrierTimeout):
        one.wait(SOON)
    one.reset()
    other.abort()
    with pytest.raises(BrokenBarrierError, match="called abort"):
        one.wait(SOON)
    one.reset()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other.wait, TIMEOUT)
        assert one.wait(TIMEOUT) == 0
        assert waiting.result() == 1
    other.resign()
    assert len(refused_once) > 20


def test_a_lost_arrival_is_sent_again(make, monkeypatch):
    one = make(0)
    other = make(1)
    Post(one, monkeypatch)
    meet(one, other)


def test_a_renewal_whose_answer_is_lost_is_not_taken_for_another_process(make, monkeypatch):
    one, other = make(0), make(1)
    enter, renewals = Connection.enter, []

    def lose_the_first_answer(connection, deadline, *, may_start):
        enter(connection, deadline, may_start=may_start)
        renewals.append(connection)
        if len(renewals) == 1:
            raise tf.errors.DeadlineExceededError(None, None, "no answer")

    monkeypatch.setattr(Connection, "enter", lose_the_first_answer)
    with pytest.MonkeyPatch.context() as patch:
        Post(one, patch)  # without an answer to its arrival, the trainer renews its incarnation
        with pytest.raises(BarrierTimeout, match="ps:0"):
            one.wait(SOON)
    meet(one, other)
    assert renewals == [one._participant.connection] * 2


def test_a_late_arrival_counts_nowhere_after_it_was_sent_again(make, monkeypatch):
    one = make(0)
    other = make(1)
    post = Post(one, monkeypatch)
    meet(one, other)
    meet(one, other)
    post.deliver()  # two generations late, when its parity is right again
    assert one.missing() == ("worker:0", "worker:1")
    with pytest.raises(BarrierTimeout):
        other.wait(SOON)  # it would pass alone if the late message counted


def test_a_late_arrival_from_before_a_reset_counts_nowhere(make, monkeypatch):
    one = make(0)
    other = make(1)
    post = Post(one, monkeypatch)
    other.reset()
    with pytest.raises(BrokenBarrierError, match="reset"):
        one.wait(SOON)
    post.deliver()
    assert one.missing() == ("worker:0", "worker:1")
    meet(one, other)


def test_a_reset_right_after_a_waiting_trainer_has_looked_raises_in_its_wait(make, monkeypatch):
    one = make(0)
    other = make(1)
    look = one._participant.connection.look

    def look_and_be_reset(*arguments):
        snapshot = look(*arguments)
        monkeypatch.undo()
        other.reset()
        return snapshot

    monkeypatch.setattr(one._participant.connection, "look", look_and_be_reset)
    with pytest.raises(BrokenBarrierError, match="reset"):
        one.wait(timeout=5)


@pytest.mark.parametrize("make", ["queue"], indirect=True)
def test_a_wait_continued_after_a_timeout_ends_at_a_reset(make):
    one = make(0)
    other = make(1)
    with pytest.raises(BarrierTimeout) as caught:
        one.wait(SOON)
    assert caught.value.missing == ("worker:1",)
    other.reset()
    with pytest.raises(BrokenBarrierError, match="reset"):
        one.wait(SOON)
    meet(one, other)


def test_a_ps_that_lost_the_barrier_is_detected_although_the_connection_stayed(make):
    one = make(0)
    other = make(1)
    with pytest.raises(BarrierTimeout):
        one.wait(SOON)
    with tf.Graph().as_default() as graph, tf.compat.v1.device(PS_DEVICE):
        state = handle_of("state", resource_names(one.name).state)
        forget = tf.raw_ops.DestroyResourceOp(resource=state)
    with DirectSession(one._participant._address, graph, timeout=0) as session:
        session.run(forget)
    other.close()
    new = make(1)  # makes the state again
    one._participant.connection.enter(Deadline(TIMEOUT), may_start=False)
    with pytest.raises(BrokenBarrierError, match="has lost the barrier"):
        one.wait(SOON)
    one.reset()
    meet(one, new)


def test_a_replaced_process_gets_an_error_and_its_successor_passes(make):
    old = make(0)
    other = make(1)
    new = make(0)
    with pytest.raises(BrokenBarrierError, match="another Barrier of this name for worker:0"):
        old.wait(SOON)
    assert new.missing() == ("worker:0", "worker:1")  # what it has sent does not count
    meet(new, other)


@pytest.mark.parametrize("make", ["queue"], indirect=True)
def test_a_replaced_chief_neither_acts_nor_releases(make):
    runs = []
    old = make(0, action=lambda: runs.append("old"))
    other = make(1)
    new = make(0, action=lambda: runs.append("new"))
    with pytest.raises(BarrierTimeout):
        other.wait(0)
    with pytest.raises(BrokenBarrierError, match="another Barrier of this name"):
        old.wait(SOON)
    assert runs == []
    assert new.wait(TIMEOUT) == 0
    assert other.wait(TIMEOUT) == 1
    assert runs == ["new"]


def arrived_chief(make):
    """A chief with an action, and the other trainer; both have arrived, neither has passed."""
    other = make(1)
    chief = make(0, action=lambda: None)
    chief._participant.connection.run(chief._participant.connection.transitions.arrive[1])
    with pytest.raises(BarrierTimeout):
        other.wait(0)
    return chief, other


@pytest.mark.parametrize("make", ["queue"], indirect=True)
def test_a_chief_that_dies_in_its_action_leaves_a_broken_barrier(make):
    old, other = arrived_chief(make)
    connection = old._participant.connection
    connection.run(connection.transitions.begin_action)  # then it died
    make(0, action=lambda: None)
    with pytest.raises(BrokenBarrierError, match="worker:0 was restarted while its action ran"):
        other.wait(TIMEOUT)


@pytest.mark.parametrize("make", ["queue"], indirect=True)
def test_a_chief_that_restarts_without_its_action_releases_the_others(make):
    _, other = arrived_chief(make)
    make(0)
    assert other.wait(TIMEOUT) == 1


@pytest.mark.parametrize("make", ["queue"], indirect=True)
def test_tokens_do_not_pile_up(make, trainers, request):
    """A queue on the ps that only grows would be a leak."""
    one = make(0)
    other = make(1)
    for _ in range(50):
        meet(one, other)
    assert num_tokens(trainers[0], request.node.name) <= 2
