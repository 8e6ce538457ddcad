"""Seeded schedules of faults at a real ps, with threads as the processes of trainers.

The trained model counts on the ps how often each record was read. A process that dies is a thread
that ends without releasing anything. A process that is stopped between update and commit runs the
update alone, and the commit when it wakes. A lost ps is a restore, after which the sessions of all
processes count as broken.

To replay a seed: `scripts/test chaos -k "thread_schedules and [17]"`. The schedule is the same;
the threads may interleave differently.
"""

import functools
import itertools
import threading

import pytest
import tensorflow as tf

import tfdist
from tests.chaos.split_schedule import (
    DIES,
    DIES_SAVING,
    EPOCHS,
    IS_REPLACED,
    IS_SLOW,
    PS_IS_LOST,
    RESTARTS,
    SAVES,
    STOPS,
    Schedule,
    check,
)
from tfdist.errors import SplitLostError
from tfdist.ps.session import DirectSession, retry_duplicate_request
from tfdist.splits.rules import Loss
from tfdist.testing import poll_until

TRAINERS, BATCH = 3, 4
SIZES = [30, 9, 4, 1, 17, 40, 2, 25, 12]
EDGES = [0, *itertools.accumulate(SIZES)]
RECORDS = EDGES[-1]
BATCHES = sum(-(-size // BATCH) for size in SIZES)
LEASE_SECS = 0.1
TIMEOUT = 20.0


class Process:
    """The queue, graph and session of a trainer. They are reused, since building them is slow."""

    def __init__(self, task):
        with tf.Graph().as_default() as graph:
            self.queue = tfdist.splits.SplitQueue(
                task,
                "all",
                list(itertools.pairwise(EDGES)),
                batch_size=BATCH,
                lease_secs=LEASE_SECS,
                timeout=TIMEOUT,
            )
            with tf.device("/job:ps/task:0"):
                self.reads = tf.compat.v1.get_variable(
                    "reads",
                    [EPOCHS * RECORDS],
                    tf.int32,
                    tf.zeros_initializer(),
                    use_resource=True,
                )
            self.begin, self.end = (tf.compat.v1.placeholder(tf.int32, []) for _ in range(2))
            batch = tf.range(self.begin, self.end)
            self.update = self.reads.scatter_add(tf.IndexedSlices(tf.ones_like(batch), batch))
            self.commit = self.queue.commit_after([self.update])
            self.initialize = tf.compat.v1.global_variables_initializer()
            rest = [v for v in tf.compat.v1.global_variables() if v is not self.reads]
            self.savers = [tf.compat.v1.train.Saver(part) for part in (rest, [self.reads])]
            self.session = DirectSession(task.cluster_spec["ps"][0], graph, timeout=0).session
            self.session.run = functools.partial(retry_duplicate_request, self.session.run)

    def forget(self):
        """Makes the queue act like one of a new process."""
        self.queue._has_entered = False

    def fed(self, split, epoch):
        before = epoch * RECORDS
        return {self.begin: before + split.offset, self.end: before + split.reserved}

    def save(self, path):
        """Saves the table first, and the model after the other trainers had time to train on."""
        with self.session.graph.as_default():
            for number, saver in enumerate(self.savers):
                threading.Event().wait(number * LEASE_SECS / 2)
                saver.save(self.session, f"{path}-{number}", write_meta_graph=False)

    def restore(self, path):
        with self.session.graph.as_default():
            for number, saver in enumerate(self.savers):
                saver.restore(self.session, f"{path}-{number}")
        self.queue.recover()

    def close(self):
        self.queue.close()
        self.session.close()


class Processes:
    """A pool of processes for each trainer, which the next job reuses."""

    def __init__(self, tasks):
        self._tasks, self._made = tasks, [[] for _ in tasks]
        self.put_back()

    def take(self, rank):
        number = next(self._numbers[rank])
        if number == len(self._made[rank]):
            self._made[rank].append(Process(self._tasks[rank]))
        process = self._made[rank][number]
        process.forget()
        return process

    def put_back(self):
        self._numbers = [itertools.count() for _ in self._tasks]

    def close(self):
        for process in itertools.chain(*self._made):
            process.close()


@pytest.fixture(scope="module")
def processes():
    with tfdist.local_cluster(1, TRAINERS, backend="threads") as cluster:
        made = Processes(cluster.trainers)
        yield made
        made.close()


class Job:
    """Trains in threads until all have ended, with the faults of a schedule."""

    def __init__(self, seed, processes, folder):
        self.schedule, self._processes = Schedule(seed, TRAINERS, BATCHES), processes
        self._prefix, self._saves = str(folder / "model"), itertools.count()
        self._lock, self._batches = threading.Lock(), itertools.count(1)
        self._threads, self._stopped, self._errors = [], set(), []
        self._losses_of_ps, self._ps_is_lost = 0, False
        self.chief = processes.take(0)
        self.chief.session.run(self.chief.initialize)
        self._save(self.chief)

    def run(self):
        """Starts all trainers, and after each loss of the ps restarts them from the checkpoint."""
        self._begin_all()
        while self._wait():
            with self._lock:  # a process that wakes meanwhile finds the restored ps
                self.chief = self._processes.take(0)
                self.chief.restore(self._checkpoint)
                self._ps_is_lost = False
            self._begin_all()
        assert not self._errors, f"{self._errors} of {self.schedule}"

    def results(self):
        """The counts of reads by epoch, and all recorded losses."""
        reads = self.chief.session.run(self.chief.reads).reshape(EPOCHS, RECORDS)
        lost = self.chief.queue.connection.snapshot()["lost"]
        return reads.tolist(), [Loss(*loss) for loss in lost.tolist()]

    def _wait(self):
        """Waits until all threads have ended, or all but the stopped ones if the ps is lost.

        Returns True if the ps is lost.
        """

        def is_over():
            with self._lock:
                alive = {thread for thread in self._threads if thread.is_alive()}
                return alive <= self._stopped if self._ps_is_lost else not alive

        poll_until(is_over, f"all threads have ended: {self.schedule}", timeout=2 * TIMEOUT)
        return self._ps_is_lost

    def _begin_all(self):
        for rank in range(TRAINERS):
            process = self._processes.take(rank) if rank else self.chief
            self._begin(rank, process, self._losses_of_ps)

    def _begin(self, rank, process, ps, after_leases=0):
        args = (rank, process, ps, after_leases)
        thread = threading.Thread(target=self._train, args=args, name=f"trainer {rank}")
        self._threads.append(thread)
        thread.start()

    def _train(self, rank, process, ps, after_leases):
        threading.Event().wait(after_leases * LEASE_SECS)
        try:
            for epoch in range(EPOCHS):
                for split in process.queue.splits(epoch + 1):
                    try:
                        is_alive = self._read(split, epoch, rank, process, ps)
                    except SplitLostError:
                        continue
                    if not is_alive:
                        return
        except SplitLostError:
            return  # another process acts for the trainer
        except Exception as error:
            self._errors.append(error)

    def _read(self, split, epoch, rank, process, ps):
        """Trains on a split; False if the process has died, or has lost its ps."""
        slow = 0
        while not split.finished:
            threading.Event().wait(LEASE_SECS * 1.25 * (slow > 0))
            with self._lock:
                if ps != self._losses_of_ps:
                    return False
                fault = self.schedule.take(rank, next(self._batches))
                what, after_update = (fault.what, fault.after_update) if fault else (None, False)
                if what == PS_IS_LOST:
                    self._losses_of_ps, self._ps_is_lost = ps + 1, True
                    return False
            slow = 3 if what == IS_SLOW else slow - 1
            if what == SAVES:
                self._save(process)
            if what == DIES_SAVING:
                process.queue.connection.freeze()
            if after_update:
                process.session.run(process.update, process.fed(split, epoch))
            if what in (RESTARTS, IS_REPLACED, DIES_SAVING):
                late = self.schedule.chance.choice([0, 0.5, 2])
                # The ps may be lost by now; then the session of the new process is broken too.
                self._begin(rank, self._processes.take(rank), ps, late)
            if what in (DIES, RESTARTS, DIES_SAVING):
                return False
            if what in (STOPS, IS_REPLACED) and not self._stop(ps) and not after_update:
                return False  # its session broke before the update
            if after_update:
                split.commit()
            else:
                fed = process.fed(split, epoch)
                split.run(process.session, process.commit, feed_dict=fed)
        return True

    def _stop(self, ps):
        """Stops for longer than a lease; returns True if the ps is still the same."""
        with self._lock:
            self._stopped.add(threading.current_thread())
        threading.Event().wait(1.5 * LEASE_SECS)
        with self._lock:
            self._stopped.remove(threading.current_thread())
            return ps == self._losses_of_ps

    def _save(self, process):
        path = f"{self._prefix}-{next(self._saves)}"
        with process.queue.frozen():
            process.save(path)
        self._checkpoint = path


@pytest.mark.rotates(20)
@pytest.mark.parametrize("seed", range(200))
def test_every_record_is_read_and_again_only_after_a_recorded_loss(processes, tmp_path, seed):
    processes.put_back()
    job = Job(seed, processes, tmp_path)
    job.run()
    reads, losses = job.results()
    assert job.chief.queue.report().done, job.schedule
    check(reads, losses, job.schedule)
