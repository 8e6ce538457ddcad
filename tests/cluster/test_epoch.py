"""Epochs: the same steps for all, one account of the examples, one end."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
import tensorflow as tf

import tfdist
from tfdist import BarrierTimeout, BrokenBarrierError, TfdistError
from tfdist.deadline import Deadline
from tfdist.train import EpochStatus
from tfdist.train.epoch import ANSWER_SECS, RECHECK_SECS, EpochState

TIMEOUT = 20.0  # of what is expected to end


@pytest.fixture(scope="module")
def trainers():
    with tfdist.local_cluster(1, 3, backend="threads") as cluster:
        yield cluster.trainers


@pytest.fixture
def make(trainers, request):
    """Makes the epochs of the first trainers, closed at the end."""
    made = []

    def make_all(number=3, **options):
        options = {"timeout": TIMEOUT, **options}
        tasks = [of_first(task, number) for task in trainers[:number]]
        epochs = [tfdist.train.Epoch(task, request.node.name, **options) for task in tasks]
        made.extend(epochs)
        return epochs

    yield make_all
    for epoch in made:
        epoch.close()


def of_first(task, number):
    """The same trainer in a cluster that has so many."""
    spec = {**task.cluster_spec, "worker": task.cluster_spec["worker"][:number]}
    return replace(task, cluster_spec=spec)


def together(function, epochs):
    """Calls `function(epoch, rank)` for all at once."""
    with ThreadPoolExecutor(len(epochs)) as pool:
        return list(pool.map(function, epochs, range(len(epochs))))


def steps(epoch, examples):
    """Reads one example in a step; how many steps there were, with those of the others."""
    count, has_value = 0, True
    while epoch.should_continue(has_value):
        has_value = count < len(examples)
        epoch.read(examples[count : count + 1])
        count += 1
    return count


def test_all_do_as_many_steps_as_the_one_that_has_most(make):
    """3, 8 and 1 batches: 8 steps, and one in which nobody has anything."""
    shares = [range(0, 3), range(3, 11), range(11, 12)]

    def train(epoch, rank):
        return [(steps(epoch, shares[rank]), epoch.finish()) for _ in range(3)]

    of_all = together(train, make(expected=12))
    assert [count for epochs in of_all for count, _ in epochs] == [9] * 9
    for number, results in enumerate(zip(*of_all, strict=True), start=1):
        assert {result.number for _, result in results} == {number}
        result = results[0][1]
        assert all(other == result for _, other in results)
        assert result.status is EpochStatus.ALL_ENDED
        assert [report.steps for report in result.reports] == [3, 8, 1]
        assert (result.examples, result.missing, result.duplicates) == (12, (), ())


def test_an_epoch_without_any_example_ends_after_one_step(make):
    assert together(lambda epoch, _: steps(epoch, ()), make()) == [1, 1, 1]


def test_a_slow_one_looks_at_its_own_step(make, monkeypatch):
    """Trainer 1 has ended; as it looks whether all have, trainer 0 has ended a step later."""
    later = threading.Event()
    all_ended, put_end = EpochState.all_ended, EpochState.put_end

    def look_late(state, epoch, step):
        if state is epochs[1]._state:
            assert later.wait(TIMEOUT)
        return all_ended(state, epoch, step)

    def put(state, epoch, step):
        put_end(state, epoch, step)
        if state is epochs[0]._state:
            later.set()

    epochs = make(2)
    monkeypatch.setattr(EpochState, "all_ended", look_late)
    monkeypatch.setattr(EpochState, "put_end", put)
    assert together(lambda epoch, rank: steps(epoch, range(3 - rank)), epochs) == [4, 4]


def test_a_slow_one_reads_the_reports_of_its_own_epoch(make, monkeypatch):
    """Trainer 1 looks at the reports of epoch 1 when trainer 0 has put that of epoch 2."""
    later = threading.Event()
    reports, put_report = EpochState.reports, EpochState.put_report

    def look_late(state, epoch):
        if state is epochs[1]._state:
            assert later.wait(TIMEOUT)
        return reports(state, epoch)

    def put(state, report):
        put_report(state, report)
        if state is epochs[0]._state and report.epoch == 2:
            later.set()

    def train(epoch, rank):
        results = []
        for number in (1, 2):
            epoch.read([10 * number + rank])
            results.append(epoch.finish())
        return results

    epochs = make(2)
    monkeypatch.setattr(EpochState, "reports", look_late)
    monkeypatch.setattr(EpochState, "put_report", put)
    results = together(train, epochs)
    assert results[0] == results[1]
    assert [[report.reads for report in result.reports] for result in results[1]] == [
        [((10, 11),), ((11, 12),)],
        [((20, 21),), ((21, 22),)],
    ]


def test_who_does_not_come_is_named_and_may_come_later(make):
    saved = []
    first, second, third = make(expected=4, action=saved.append)
    first.read([0, 1])
    second.read([3])
    for epoch in (first, second):
        result = epoch.finish(timeout=0.2)
    assert (result.status, result.absent) == (EpochStatus.PARTIAL, (third._task.name,))
    assert [report.examples for report in result.reports] == [2, 1]
    assert (result.missing, saved) == (((2, 3),), [])
    third.read([2])
    results = together(lambda epoch, _: epoch.finish(), [first, second, third])
    assert [result.status for result in results] == [EpochStatus.ALL_ENDED] * 3
    assert [(result.number, result.missing) for result in saved] == [(1, ())]
    assert [epoch.number for epoch in (first, second, third)] == [2, 2, 2]


def test_the_result_has_what_is_missing_and_what_came_twice(make):
    reads = [[0, 1, 2], [2, 3], [6]]

    def train(epoch, rank):
        epoch.read(reads[rank])
        return epoch.finish()

    result = together(train, make(expected=8))[0]
    assert (result.examples, result.steps) == (6, 3)
    assert result.missing == ((4, 6), (7, 8))
    assert result.duplicates == ((2, 3),)


def test_an_action_that_fails_is_told_to_all(make):
    def fail(result):
        raise ValueError(f"no disk in epoch {result.number}")

    def finish(epoch, _):
        with pytest.raises(BrokenBarrierError, match="no disk in epoch 1"):
            epoch.finish()

    together(finish, make(action=fail))


def test_after_a_timeout_it_goes_on_waiting_for_the_same_step(make):
    epochs = make(2)
    with pytest.raises(tfdist.BarrierTimeout):
        epochs[0].should_continue(True, timeout=0.2)
    assert together(lambda epoch, rank: steps(epoch, range(2 - rank)), epochs) == [3, 3]


def test_who_was_restarted_goes_on_in_its_epoch(make, trainers):
    """Its earlier life had ended, so it counts as ended; nobody waits for what it does not have."""

    def first_life(epoch, rank):
        if rank == 1:
            epoch.should_continue(True)
            epoch.should_continue(False)
            return None
        return [epoch.should_continue(True) for _ in range(3)]

    first, second = make(2)
    with ThreadPoolExecutor(2) as pool:
        rest = pool.submit(first_life, first, 0)
        pool.submit(first_life, second, 1).result()
        again = make(2)[1]
        assert again.number == second.number
        assert again.should_continue(True)
        assert rest.result() == [True] * 3
    assert together(lambda epoch, _: epoch.should_continue(False), [first, again]) == [False, False]


def test_what_a_lost_ps_was_to_tell_is_broken_before_its_time_is_over(make_cluster):
    cluster = make_cluster(1, 1, backend="processes")
    with closing(EpochState(cluster.trainers[0], "lost")) as state:
        assert state.reports(1) == []
        cluster.kill("ps:0")
        lost = Deadline(ANSWER_SECS)
        with pytest.raises(BrokenBarrierError, match="ps:0 was lost"):
            state.reports(1)
        with pytest.raises(BrokenBarrierError, match="ps:0 was lost"):
            state.put_end(1, 1)
        assert not lost.expired


def test_a_silent_ps_may_wake_in_time_and_is_named_where_it_does_not(make_cluster, monkeypatch):
    cluster = make_cluster(1, 1, backend="processes")
    with closing(EpochState(cluster.trainers[0], "silent")) as state:
        assert state.reports(1) == []
        cluster.pause("ps:0")
        with ThreadPoolExecutor(1) as pool:
            reports = pool.submit(state.reports, 1)
            with pytest.raises(TimeoutError):
                reports.result(1.5 * RECHECK_SECS)
            cluster.resume("ps:0")
            assert reports.result(TIMEOUT) == []
        monkeypatch.setattr("tfdist.train.epoch.ANSWER_SECS", 0.5)
        cluster.pause("ps:0")
        with pytest.raises(BrokenBarrierError, match=r"ps:0 has not answered for \d"):
            state.reports(1)
        cluster.resume("ps:0")


def test_a_ps_that_is_silent_at_the_end_is_no_trainer_that_is_absent(make_cluster, monkeypatch):
    cluster = make_cluster(1, 1, backend="processes")
    with tfdist.train.Epoch(cluster.trainers[0], "silent") as epoch:
        with monkeypatch.context() as patch:
            # It falls silent after that.
            patch.setattr(epoch._state, "put_report", lambda report: cluster.pause("ps:0"))
            with pytest.raises(BarrierTimeout) as caught:
                epoch.finish(0.5)
        assert caught.value.missing == ("ps:0",)
        cluster.resume("ps:0")
        assert epoch.finish(TIMEOUT).status is EpochStatus.ALL_ENDED


def test_it_is_over_once_it_has_said_so(make):
    epochs = make()
    together(steps_of_nothing, epochs)
    with pytest.raises(TfdistError, match=r"epoch 1 of .* is over; call finish"):
        epochs[0].should_continue(True)


def steps_of_nothing(epoch, _):
    return steps(epoch, ())


def test_mirrored_replicas_take_as_many_steps_as_the_one_that_has_most(make_cluster):
    cluster = make_cluster(0, 3, backend="processes")
    assert cluster.run(count_mirrored, timeout=100) == [(8, 12.0)] * 3


def count_mirrored(task):
    """3, 8 and 1 batches; the steps in which anybody had one, and the sum of all examples."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    number = (3, 8, 1)[task.rank]
    batches = tfdist.data.endless_batches(tf.data.Dataset.from_tensors(1.0).repeat(number), 1)
    iterator = iter(strategy.distribute_datasets_from_function(lambda _: batches))
    with strategy.scope():
        total = tf.Variable(0.0)

    def step(example, weight, has_value):
        replica = tf.distribute.get_replica_context()
        total.assign_add(replica.all_reduce("SUM", tf.reduce_sum(weight * example)))
        return tfdist.data.any_replica_has_value(has_value)

    run = tf.function(lambda: strategy.run(step, args=next(iterator)))
    steps = 0
    while run():
        steps += 1
    return steps, float(total.numpy())
