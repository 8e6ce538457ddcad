"""Epochs: the same number of steps for all, one account of the examples, one end."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

import tfdist
from tfdist import BarrierTimeout, BrokenBarrierError, TfdistError
from tfdist.deadline import Deadline
from tfdist.train import EpochStatus
from tfdist.train.epoch import ANSWER_SECS, RECHECK_SECS, EpochState

TIMEOUT = 20.0  # for what is expected to end


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
    """The same trainer in a cluster of `number` trainers."""
    spec = {**task.cluster_spec, "worker": task.cluster_spec["worker"][:number]}
    return replace(task, cluster_spec=spec)


def together(function, epochs):
    """Calls `function(epoch, rank)` in a thread for each epoch."""
    with ThreadPoolExecutor(len(epochs)) as pool:
        return list(pool.map(function, epochs, range(len(epochs))))


def steps(epoch, examples):
    """Reads one example in each step; returns the number of steps, with those of the others."""
    count, has_value = 0, True
    while epoch.should_continue(has_value):
        has_value = count < len(examples)
        epoch.read(examples[count : count + 1])
        count += 1
    return count


def test_all_take_as_many_steps_as_the_trainer_with_the_most_data(make):
    """3, 8 and 1 batches: 8 steps, and one in which no trainer has a value."""
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


def test_a_slow_trainer_decides_by_its_own_step(make, monkeypatch):
    """Trainer 1 has ended. When it reads whether all have, trainer 0 has ended one step later."""
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


def test_a_slow_trainer_reads_the_reports_of_its_own_epoch(make, monkeypatch):
    """Trainer 1 reads the reports of epoch 1 after trainer 0 has stored that of epoch 2."""
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


def test_a_missing_trainer_is_named_and_may_finish_later(make):
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


def test_the_result_has_missing_and_duplicate_examples(make):
    reads = [[0, 1, 2], [2, 3], [6]]

    def train(epoch, rank):
        epoch.read(reads[rank])
        return epoch.finish()

    result = together(train, make(expected=8))[0]
    assert (result.examples, result.steps) == (6, 3)
    assert result.missing == ((4, 6), (7, 8))
    assert result.duplicates == ((2, 3),)


def test_a_failing_action_raises_on_all_trainers(make):
    def fail(result):
        raise ValueError(f"no disk in epoch {result.number}")

    def finish(epoch, _):
        with pytest.raises(BrokenBarrierError, match="no disk in epoch 1"):
            epoch.finish()

    together(finish, make(action=fail))


def test_after_a_timeout_the_next_call_waits_for_the_same_step(make):
    epochs = make(2)
    with pytest.raises(tfdist.BarrierTimeout):
        epochs[0].should_continue(True, timeout=0.2)
    assert together(lambda epoch, rank: steps(epoch, range(2 - rank)), epochs) == [3, 3]


def test_a_wrong_argument_leaves_the_step_and_the_epoch_as_they_are(make):
    epochs = make(2)
    for wrong in ("False", 0, None, np.array([True]), tf.constant(1)):
        with pytest.raises(tfdist.ConfigError, match="must be True or False"):
            epochs[0].should_continue(wrong)
    for call in (partial(epochs[0].should_continue, False), epochs[0].finish):
        with pytest.raises(tfdist.ConfigError, match="timeout: got '1'"):
            call(timeout="1")
    epochs[0].should_continue = partial(_as_tensor, epochs[0].should_continue)
    assert together(lambda epoch, rank: steps(epoch, range(2 - rank)), epochs) == [3, 3]


def _as_tensor(should_continue, has_value):
    return should_continue(tf.constant(bool(has_value)))


def test_a_restarted_trainer_continues_in_its_epoch(make, trainers):
    """Its earlier incarnation had ended, so it counts as ended; no trainer waits for its data."""

    def first_incarnation(epoch, rank):
        if rank == 1:
            epoch.should_continue(True)
            epoch.should_continue(False)
            return None
        return [epoch.should_continue(True) for _ in range(3)]

    first, second = make(2)
    with ThreadPoolExecutor(2) as pool:
        rest = pool.submit(first_incarnation, first, 0)
        pool.submit(first_incarnation, second, 1).result()
        again = make(2)[1]
        assert again.number == second.number
        assert again.should_continue(True)
        assert rest.result() == [True] * 3
    assert together(lambda epoch, _: epoch.should_continue(False), [first, again]) == [False, False]


def test_a_lost_ps_raises_before_the_timeout(make_cluster):
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


def test_a_silent_ps_is_named_unless_it_answers_in_time(make_cluster, monkeypatch):
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


def test_a_silent_ps_at_the_end_is_not_reported_as_a_missing_trainer(make_cluster, monkeypatch):
    cluster = make_cluster(1, 1, backend="processes")
    with tfdist.train.Epoch(cluster.trainers[0], "silent") as epoch:
        with monkeypatch.context() as patch:
            # The ps stops answering from then on.
            patch.setattr(epoch._state, "put_report", lambda report: cluster.pause("ps:0"))
            with pytest.raises(BarrierTimeout) as caught:
                epoch.finish(0.5)
        assert caught.value.missing == ("ps:0",)
        cluster.resume("ps:0")
        assert epoch.finish(TIMEOUT).status is EpochStatus.ALL_ENDED


def test_should_continue_raises_after_it_has_returned_false(make):
    epochs = make()
    together(steps_of_nothing, epochs)
    with pytest.raises(TfdistError, match=r"epoch 1 of .* is over; call finish"):
        epochs[0].should_continue(True)


def steps_of_nothing(epoch, _):
    return steps(epoch, ())


def test_mirrored_replicas_take_as_many_steps_as_the_one_with_the_most_data(make_cluster):
    cluster = make_cluster(0, 3, backend="processes")
    assert cluster.run(count_mirrored, timeout=100) == [(8, 12.0)] * 3


def count_mirrored(task):
    """3, 8 and 1 batches; returns the steps with a value and the sum of all examples."""
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
