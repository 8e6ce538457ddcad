"""The table of splits on a real ps: each call has the result of `tfdist.splits.rules`."""

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

import tfdist
from tfdist import ConfigError, EpochError, SplitLostError
from tfdist.splits import rules as splits
from tfdist.splits import table
from tfdist.splits.connection import Connection
from tfdist.splits.plan import Plan, epoch_order
from tfdist.splits.section import exclusive
from tfdist.splits.table import TableOps
from tfdist.testing import poll_until

TIMEOUT = 20.0
BATCH = 4
HOUR_US = 3600 * 10**6

_names = itertools.count()


@pytest.fixture(scope="module")
def trainers():
    with tfdist.local_cluster(1, 3, backend="threads") as cluster:
        yield cluster.trainers


def initialized(trainer, build):
    """Builds in a training graph and initializes the variables, as the chief does."""
    with tf.Graph().as_default() as graph:
        built = build()
        config = tf.compat.v1.ConfigProto(device_filters=["/job:ps"])
        target = f"grpc://{trainer.cluster_spec['ps'][0]}"
        with tf.compat.v1.Session(target, graph=graph, config=config) as session:
            session.run(tf.compat.v1.global_variables_initializer())
        return built


# The table on the ps compared with the rules.


class Twins:
    """The table on the ps and the table of the rules; each call goes to both."""

    def __init__(self, trainers, ranges, retries=1, lease_us=HOUR_US):
        self.plan = Plan(ranges, seed=3, lease_us=lease_us, max_retries=retries)
        self._clock = itertools.count(0, 2)  # a lease of 1 us expires before the next call
        self.rules = splits.SplitTable.start(self.plan, len(trainers))
        name = f"twins{next(_names)}"
        initialized(trainers[0], lambda: table.make_variables(name, self.plan, len(trainers)))
        self.connections = [
            Connection(
                task.cluster_spec["ps"][0],
                TableOps(name, self.plan, len(trainers), task.rank),
                incarnation=0,
                batch_size=BATCH,
            )
            for task in trainers
        ]

    def close(self):
        for connection in self.connections:
            connection.close()

    def enter(self, rank, incarnation):
        self.connections[rank]._incarnation = incarnation
        answer = self.connections[rank].enter()
        assert (answer.code == table.FROZEN) == (self.rules.frozen_by not in (splits.NOTHING, rank))
        self.rules = splits.enter(self.rules, rank, incarnation)

    def leave(self, rank, incarnation):
        connection = self.connections[rank]
        present, connection._incarnation = connection._incarnation, incarnation
        connection.leave()
        connection._incarnation = present
        self.rules = splits.enter(self.rules, rank, splits.NO_INCARNATION, previous=incarnation)

    def claim(self, rank, epoch):
        incarnation, now = self.connections[rank]._incarnation, next(self._clock)
        try:
            self.rules, expected = splits.claim(
                self.rules, rank, incarnation, epoch=epoch, now=now, batch_size=BATCH
            )
        except SplitLostError:
            expected = None
        answer = self.connections[rank].claim(epoch)
        self.compare(answer, expected)
        return expected if isinstance(expected, splits.Lease) else None

    def commit(self, lease, offset):
        try:
            now = next(self._clock)
            self.rules, expected = splits.commit(
                self.rules, lease, offset, now=now, batch_size=BATCH
            )
        except (SplitLostError, ConfigError):
            expected = None
        connection = self.connections[lease.rank]
        incarnation, connection._incarnation = connection._incarnation, lease.incarnation
        answer = connection.commit(lease.attempt, offset)
        connection._incarnation = incarnation
        self.compare(answer, expected)
        return expected if isinstance(expected, splits.Lease) else None

    def release(self, lease):
        connection = self.connections[lease.rank]
        incarnation, connection._incarnation = connection._incarnation, lease.incarnation
        answer = connection.release(lease.attempt)
        connection._incarnation = incarnation
        try:
            self.rules, expected = splits.release(self.rules, lease)
        except SplitLostError:
            assert answer.code == table.REPLACED
        else:
            assert (answer.code == table.FROZEN) == isinstance(expected, splits.Frozen)

    def freeze(self, rank):
        incarnation = self.connections[rank]._incarnation
        answer = self.connections[rank].freeze()
        try:
            self.rules, expected = splits.freeze(self.rules, rank, incarnation)
        except SplitLostError:
            expected = None
        if expected is None:
            assert answer.code == table.REPLACED
        else:
            assert answer.code == (table.GRANTED if expected.by_rank == rank else table.FROZEN)

    def unfreeze(self, rank):
        incarnation = self.connections[rank]._incarnation
        answer = self.connections[rank].unfreeze()
        try:
            self.rules = splits.unfreeze(self.rules, rank, incarnation, now=next(self._clock))
        except SplitLostError:
            assert answer.code == table.REPLACED
        else:
            assert answer.code == table.GRANTED

    def begin_epoch(self, epoch):
        order = epoch_order(len(self.plan.splits), self.plan.seed, epoch)
        in_order = [self.plan.splits[index] for index in order]
        self.connections[0].begin_epoch(epoch, in_order)
        self.rules = splits.begin_epoch(self.rules, epoch)

    def recover(self):
        self.connections[0].recover()
        self.rules = splits.recover(self.rules, len(self.connections))

    def compare(self, answer, expected):
        codes = {
            splits.Lease: table.GRANTED,
            splits.Wait: table.WAIT,
            splits.Frozen: table.FROZEN,
            splits.Over: table.OVER,
        }
        if expected is None:
            assert answer.code in (table.REPLACED, table.LOST, table.NOT_RESERVED)
        else:
            assert answer.code == codes[type(expected)]
        if isinstance(expected, splits.Lease):
            assert answer[1:5] == expected[2:]
        rules, found = self.rules, self.connections[0].snapshot()
        for field in ("starts", "stops", "offsets", "states", "retries"):
            assert tuple(found[field].tolist()) == getattr(rules, field), field
        columns = found["ranks"].T.tolist()
        assert tuple(columns[0]) == rules.incarnations
        assert tuple(columns[1]) == rules.held
        assert tuple(columns[2]) == rules.attempts
        held = [at for row, at in zip(rules.held, columns[3], strict=True) if row >= 0]
        assert held == [at for row, at in zip(rules.held, rules.reserved, strict=True) if row >= 0]
        *counts, cursor = found["counts"].tolist()
        assert counts == [rules.epoch, rules.first_epoch, rules.leases, rules.frozen_by]
        assert splits.TODO not in rules.states[:cursor]
        assert tuple(map(tuple, found["lost"].tolist())) == rules.lost


@pytest.mark.rotates(2)
@pytest.mark.parametrize("lease_us", [HOUR_US, 1])
@pytest.mark.parametrize("seed", range(20))
def test_after_any_calls_the_table_on_the_ps_equals_that_of_the_rules(trainers, seed, lease_us):
    chance = random.Random(seed)
    edges = [0, *itertools.accumulate(chance.randint(1, 15) for _ in range(4))]
    ranges, retries = tuple(itertools.pairwise(edges)), chance.randint(0, 2)
    twins = Twins(trainers, ranges, retries, lease_us)
    incarnation, incarnations, leases, epoch = 0, itertools.count(1), [], 0
    for rank in range(3):
        twins.enter(rank, next(incarnations))
    for _ in range(80):
        rank, what = chance.randrange(3), chance.random()
        if what < 0.05:
            twins.enter(rank, incarnation := next(incarnations))
        elif what < 0.07:
            twins.leave(rank, chance.choice([incarnation, twins.rules.incarnations[rank]]))
        elif what < 0.09:
            twins.recover()
            for other in range(3):
                twins.enter(other, next(incarnations))
        elif what < 0.12:
            twins.freeze(rank)
        elif what < 0.2:
            twins.unfreeze(chance.choice([rank, max(twins.rules.frozen_by, 0)]))
        elif what < 0.23 and leases:
            twins.release(chance.choice(leases[-4:]))
        elif what < 0.26 or twins.rules.over:
            twins.begin_epoch(epoch + 1)  # changes nothing unless the present epoch is over
            epoch = twins.rules.epoch
        elif what < 0.6 or not leases:
            if lease := twins.claim(rank, chance.choice([epoch, epoch, epoch, max(epoch - 1, 0)])):
                leases.append(lease)
        else:
            lease = chance.choice(leases[-4:])
            offset = chance.choice([lease.reserved] * 5 + [lease.offset, lease.reserved + 1])
            if after := twins.commit(lease, offset):
                leases[leases.index(lease)] = after
    twins.close()


# The queue as a trainer uses it.


@pytest.fixture
def make(trainers, request):
    """Makes a queue for each trainer."""
    made = []

    def make_all(ranges, **options):
        name = f"queue{next(_names)}"
        options = {"batch_size": BATCH, "timeout": TIMEOUT, **options}
        queues = [
            initialized(
                task, lambda task=task: tfdist.splits.SplitQueue(task, name, ranges, **options)
            )
            if task.is_chief
            else built(lambda task=task: tfdist.splits.SplitQueue(task, name, ranges, **options))
            for task in trainers
        ]
        made.extend(queues)
        return queues

    yield make_all
    for queue in made:
        queue.close()


def built(build):
    with tf.Graph().as_default():
        return build()


def read(queue, reads, claimed=lambda: None):
    for split in queue:
        claimed()
        while not split.finished:
            reads.extend(split.next_batch)
            split.commit()


def test_each_record_is_read_exactly_once_in_each_epoch(make):
    queues = make([(0, 10), (10, 37), (37, 40), (40, 101)])
    for epoch in (1, 2, 3):
        reads = [[], [], []]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(read, queues, reads))
        assert sorted(itertools.chain(*reads)) == [*range(101)]
        report = queues[0].report()
        assert report == tfdist.splits.SplitReport(epoch, ((0, 101),), (), (), done=True)


def test_an_idle_trainer_takes_a_part_of_the_last_split(make):
    slow, fast, _ = make([(0, 100)])
    reads = [[], []]
    split, taken = next(iter(slow)), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(read, fast, reads[1], taken.set)
        assert taken.wait(TIMEOUT)
        while not split.finished:
            reads[0].extend(split.next_batch)
            split.commit()
        others.result(TIMEOUT)
    assert sorted(reads[0] + reads[1]) == [*range(100)]
    assert reads[1]


def test_an_expired_lease_goes_to_another_trainer_and_its_holder_is_fenced(make):
    zombie, other, _ = make([(0, 8)], lease_secs=0.05)
    split = next(iter(zombie))
    split.commit()
    reads = []
    read(other, reads)
    assert reads == [4, 5, 6, 7]
    with pytest.raises(SplitLostError, match="lease_secs"):
        split.commit()
    assert other.report().possible_duplicates == ((4, 8),)


def test_a_replaced_process_that_leaves_does_not_remove_its_successor(make, trainers):
    before, _, _ = make([(0, 8)])
    next(iter(before))
    name, options = before.name, {"batch_size": BATCH, "timeout": TIMEOUT}
    after = built(lambda: tfdist.splits.SplitQueue(trainers[0], name, [(0, 8)], **options))
    split = next(iter(after))
    before.close()
    while not split.finished:
        split.commit()
    after.close()


def test_a_restarted_seeded_script_has_another_incarnation(trainers):
    incarnations = []
    for _ in range(2):
        random.seed(1)
        queue = built(
            lambda: tfdist.splits.SplitQueue(trainers[0], "seeded", [(0, 8)], batch_size=4)
        )
        incarnations.append(queue._incarnation)
    assert incarnations[0] != incarnations[1]


def test_a_commit_that_finds_the_table_in_use_is_repeated(trainers):
    task, name = trainers[0], f"queue{next(_names)}"
    with tf.Graph().as_default() as graph:
        queue = tfdist.splits.SplitQueue(task, name, [(0, 8)], batch_size=BATCH)
        commit = queue.commit_after([])
        with tf.device("/job:ps/task:0"):
            come, go = exclusive(name).take(), exclusive(name).open()
        config = tf.compat.v1.ConfigProto(device_filters=["/job:ps"])
        target = f"grpc://{task.cluster_spec['ps'][0]}"
        with tf.compat.v1.Session(target, graph=graph, config=config) as session:
            session.run(tf.compat.v1.global_variables_initializer())
            split = next(iter(queue))
            assert session.run(come)
            answer = session.run(commit, split.feed)  # the update has been applied by now
            assert (answer[0], split.offset) == (table.BUSY, 0)
            with ThreadPoolExecutor(1) as pool:
                committed = pool.submit(split.committed, answer)
                with pytest.raises(TimeoutError):
                    committed.result(0.2)
                session.run(go)
                committed.result(TIMEOUT)
            assert split.offset == BATCH
            queue.close()


def test_a_trainer_that_dies_while_it_sends_a_commit_does_not_block_the_table(trainers):
    task, name = trainers[0], f"queue{next(_names)}"
    with tf.Graph().as_default() as graph:
        queue = tfdist.splits.SplitQueue(task, name, [(0, 8)], batch_size=BATCH)
        with tf.device("/job:ps/task:0"):
            attempts = tf.queue.FIFOQueue(1, tf.int64, [], shared_name=f"{name}_attempts")
            attempt, fill = attempts.dequeue(), attempts.enqueue(tf.constant(0, tf.int64))
            offset = tf.constant(BATCH, tf.int64)
        commit = queue._ops.commit(np.int64(1), attempt, offset, np.int64(BATCH))
        config = tf.compat.v1.ConfigProto(device_filters=["/job:ps"])
        target = f"grpc://{task.cluster_spec['ps'][0]}"
        with tf.compat.v1.Session(target, graph=graph, config=config) as session:
            session.run(tf.compat.v1.global_variables_initializer())
            # The first run of a graph takes long on a busy machine, and TensorFlow 2.21 loses a
            # timeout that ends before the run has begun: the run would never end.
            session.run(fill)
            answer = session.run(commit)
            assert answer[0] == table.REPLACED
            with pytest.raises(tf.errors.DeadlineExceededError):
                session.run(commit, options=tf.compat.v1.RunOptions(timeout_in_ms=500))
            split = next(iter(queue))
            split.commit()
            assert split.offset == BATCH
            queue.close()


def test_unfreezing_renews_all_leases(make):
    chief, other, _ = make([(0, 8)])
    next(iter(other))
    before = chief.connection.snapshot()["ranks"]
    with chief.frozen():
        pass
    after = chief.connection.snapshot()["ranks"]
    assert after[1][4] > before[1][4]


def test_a_split_that_is_lost_too_often_is_a_reported_dead_letter(make):
    first, second, _ = make([(0, 8), (8, 12)], lease_secs=0.05, max_retries=0)
    stuck = next(iter(first))
    reads = []
    read(second, reads)
    assert second.report().dead_letters == ((stuck.offset, stuck.stop),)
    assert sorted(reads) == [n for n in range(12) if not stuck.offset <= n < stuck.stop]


def test_a_timed_out_wait_names_the_trainers_and_their_records(make):
    slow, waiting, _ = make([(0, 4)], timeout=0.2)
    next(iter(slow))
    with pytest.raises(
        EpochError, match=r"waited \d+\.\d s for the splits of worker:0 \(records \[0, 4\)\)"
    ) as caught:
        next(iter(waiting))
    assert caught.value.missing == ((0, 4),)


def test_a_long_wait_is_logged_with_the_trainers_and_their_records(make, monkeypatch, caplog):
    monkeypatch.setattr("tfdist.deadline.FIRST_NOTICE_SECS", 0.01)
    slow, waiting, _ = make([(0, 4)])
    split, reads = next(iter(slow)), []
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(read, waiting, reads)
        poll_until(lambda: caplog.records, "the wait is logged")
        split.commit()
        done.result(TIMEOUT)
    assert {(record.name, record.levelname) for record in caplog.records} == {
        ("tfdist.splits.queue", "WARNING")
    }
    first = caplog.records[0].getMessage()
    assert "s for the splits of worker:0 (records [0, 4))" in first
    assert reads == []


def test_lost_leases_dead_letters_and_freezes_are_logged(make, caplog):
    caplog.set_level("INFO", "tfdist.splits")
    first, second, _ = make([(0, 8)], lease_secs=0.05, max_retries=1)
    next(iter(first)).commit()
    for split in second:
        split.release()
    with second.frozen():
        pass
    lost, claimed, dead, *frozen = [
        (record.levelname, record.getMessage().removeprefix("epoch 1 of splits "))
        for record in caplog.records
    ]
    name = repr(second.name)
    assert lost == (
        "INFO",
        f"{name}: worker:0 lost its lease of records [4, 8); it may have read up to 8",
    )
    assert claimed == ("INFO", f"{name}: claimed records [4, 8), the rest of a split begun before")
    assert dead[0] == "WARNING"
    assert "records [4, 8) are a dead letter" in dead[1]
    assert "lost 2 times without a commit, the last time by worker:1" in dead[1]
    assert [level for level, _ in frozen] == ["INFO", "INFO"]


def test_the_commit_is_in_the_run_of_the_update_and_the_checkpoint_has_both(trainers, tmp_path):
    task, name = trainers[0], f"queue{next(_names)}"
    single = tfdist.Task("worker", 0, {**task.cluster_spec, "worker": [task.address]})

    def train(restore, stop_after):
        with tf.Graph().as_default() as graph:
            queue = tfdist.splits.SplitQueue(
                single, name, [(0, 10), (10, 20)], batch_size=BATCH, seed=1
            )
            with tf.device("/job:ps/task:0"):
                total = tf.compat.v1.get_variable(
                    f"total_{name}", [], tf.int64, tf.zeros_initializer(), use_resource=True
                )
            amount = tf.compat.v1.placeholder(tf.int64, [])
            commit = queue.commit_after([total.assign_add(amount)])
            saver = tf.compat.v1.train.Saver()
            config = tf.compat.v1.ConfigProto(device_filters=["/job:ps"])
            target = f"grpc://{task.cluster_spec['ps'][0]}"
            with tf.compat.v1.Session(target, graph=graph, config=config) as session:
                session.run(tf.compat.v1.global_variables_initializer())
                if restore:
                    saver.restore(session, restore)
                    queue.recover()
                steps = 0
                for split in queue:
                    while not split.finished:
                        batch = sum(split.next_batch)
                        split.run(session, commit, feed_dict={amount: batch})
                        steps += 1
                        if steps == stop_after:
                            path = saver.save(session, str(tmp_path / "model"))
                            queue.connection.close()  # as if this trainer died
                            return path
                found = int(session.run(total))
                queue.close()
                return found

    path = train(None, stop_after=2)
    assert train(path, stop_after=None) == sum(range(20))


def test_no_trainer_claims_or_commits_while_the_table_is_frozen(make):
    chief, other, _ = make([(0, 8), (8, 16)])
    split, reads = next(iter(other)), []
    with ThreadPoolExecutor(1) as pool:
        with chief.frozen():
            before = chief.connection.snapshot()
            done = pool.submit(split.commit)
            with pytest.raises(TimeoutError):
                done.result(0.2)
            after = chief.connection.snapshot()
        done.result(TIMEOUT)
    assert all((before[name] == after[name]).all() for name in before)
    assert split.offset == split.stop - BATCH
    split.commit()
    read(chief, reads)
    assert len(reads) == 8


def test_an_epoch_begins_by_its_number_once_the_one_before_is_over(make):
    first, second, _ = make([(0, 8)])
    split = next(first.splits(1))
    with pytest.raises(ConfigError, match="the previous epoch has not ended"):
        next(second.splits(2))
    while not split.finished:
        split.commit()
    with pytest.raises(ConfigError, match="epoch: got 0"):
        next(second.splits(0))
    reads = []
    for number in (1, 2, 2):
        for split in second.splits(number):
            while not split.finished:
                reads.extend(split.next_batch)
                split.commit()
    assert reads == [*range(8)]
    assert first.report().epoch == 2


def test_a_job_continues_in_the_saved_epoch_or_after_its_end_in_the_next(make):
    chief, _, _ = make([(0, 8)])
    read(chief, [])
    chief.connection.freeze()
    chief.recover()  # as if the table were saved now
    assert chief.first_epoch == 1
    chief.recover()
    assert chief.first_epoch == 2


def test_a_wait_for_a_frozen_queue_does_not_block_another_queue_of_the_process(make):
    chief, other, _ = make([(0, 8)])
    second, _, _ = make([(0, 8)])
    with ThreadPoolExecutor(1) as pool:
        with chief.frozen():
            reads = pool.submit(read, other, [])
            poll_until(lambda: "connection" in vars(other), "the trainer asks the ps")
            with second.frozen():
                pass
        reads.result(TIMEOUT)


def test_a_timed_out_wait_names_the_trainer_that_froze_the_table(make):
    chief, other, _ = make([(0, 8)], timeout=0.2)
    with (
        chief.frozen(),
        pytest.raises(EpochError, match=r"waited \d+\.\d s for worker:0, which has frozen"),
    ):
        next(iter(other))


def test_a_trainer_that_was_replaced_while_it_saved_must_not_restore(make):
    chief, other, _ = make([(0, 8)])

    def save():
        chief.connection._incarnation += 1
        chief.connection.enter()  # as if by another process
        chief.connection._incarnation -= 1

    with pytest.raises(SplitLostError, match="do not restore it"), chief.frozen():
        save()
    read(other, reads := [])
    assert reads == [*range(8)]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "a/b"}, "name"),
        ({"batch_size": 0}, "batch_size"),
        ({"lease_secs": 0.0}, "lease_secs"),
        ({"lease_secs": float("inf")}, "lease_secs"),
        ({"splits": []}, "splits"),
        ({"splits": [(0, 5), (4, 6)]}, "splits"),
        ({"max_retries": -1}, "max_retries"),
    ],
)
def test_a_config_error_names_the_argument(trainers, changes, field):
    values = {"name": "q", "splits": [(0, 5)], "batch_size": 4, **changes}
    name, ranges = values.pop("name"), values.pop("splits")
    with tf.Graph().as_default(), pytest.raises(ConfigError) as caught:
        tfdist.splits.SplitQueue(trainers[0], name, ranges, **values)
    assert caught.value.field == field


def test_a_silent_or_lost_ps_is_named(make_cluster, monkeypatch):
    monkeypatch.setattr("tfdist.splits.connection._ANSWER_SECS", 1.0)
    cluster = make_cluster(1, 1, backend="processes")
    task = cluster.trainers[0]
    queue = initialized(task, lambda: tfdist.splits.SplitQueue(task, "all", [(0, 4)], batch_size=1))
    assert queue.report().committed == ()
    cluster.pause("ps:0")
    with pytest.raises(tf.errors.DeadlineExceededError, match=r"ps:0 .* not answered for 1 s"):
        queue.report()
    cluster.resume("ps:0")
    assert queue.report().committed == ()
    cluster.kill("ps:0")
    with pytest.raises(tf.errors.UnavailableError, match="ps:0, where the splits are kept, was"):
        for _ in queue:
            pass
    with pytest.raises(tf.errors.UnavailableError, match="nothing listens at"):
        queue.report()
    cluster.restart("ps:0")

    def has_lost_its_state():
        try:
            queue.report()
        except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError):
            return False  # it listens before it answers
        except tf.errors.AbortedError as error:
            return "ps:0, where the splits are kept, was" in str(error)

    poll_until(has_lost_its_state, "the ps answers again")
    queue.close()
