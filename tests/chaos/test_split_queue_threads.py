"""Schedules like those of tests/unit/test_split_schedules.py with threads at a real ps: they come
at the same time, and a lease ends by the clock of the ps."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
import tensorflow as tf

import tfdist
from tests.chaos.runs import TIMES
from tests.ps_session import ps_session

RECORDS, SPLIT, BATCH, EPOCHS = 400, 50, 7, 2
SPLITS = [(start, start + SPLIT) for start in range(0, RECORDS, SPLIT)]
LEASE_SECS = 0.1
_names = count()


@pytest.fixture(scope="module")
def trainers():
    with tfdist.local_cluster(1, 3, backend="threads") as cluster:
        yield cluster.trainers


class Job:
    """Three threads that read; the model that they train is a list of counters in this process."""

    def __init__(self, trainers, seed, folder):
        self._trainers, self._folder, self._seed = trainers, str(folder / "model"), seed
        self._chances = [random.Random(f"{seed} {rank}") for rank in range(len(trainers))]
        self._goes_back = random.Random(seed).random() < 0.5
        self._name = f"threads{next(_names)}"
        self._lock = threading.Lock()
        self._slept = threading.Event()  # which nobody sets
        self._visits = [[0] * RECORDS for _ in range(EPOCHS)]
        self._saved = None
        self.log, self.reports = [], {}
        graph = tf.Graph()
        with graph.as_default():
            self._make(trainers[0])
            self._saver = tf.compat.v1.train.Saver()
            initialize = tf.compat.v1.global_variables_initializer()
        self._session = ps_session(trainers[0].cluster_spec["ps"][0], graph)
        self._session.run(initialize)

    def _make(self, task):
        options = {"batch_size": BATCH, "lease_secs": LEASE_SECS, "max_retries": 1000}
        return tfdist.SplitQueue(task, self._name, SPLITS, seed=self._seed, timeout=30, **options)

    def run(self):
        number = 1
        while number <= EPOCHS:
            with ThreadPoolExecutor(len(self._trainers)) as pool:
                ends = [pool.submit(self._read, task, number) for task in self._trainers]
                reports = [end.result() for end in ends]
            self.reports[number] = reports[0]
            number += 1
            if self._goes_back and self._saved:
                number = self._go_back()
        self._session.close()

    def _read(self, task, number):
        chance, queue = self._chances[task.rank], self._connected(task)
        while True:
            try:
                for split in queue.of_epoch(number):
                    while not split.finished:
                        self._visit(split, number)
                        if chance.random() < 0.01:
                            raise Killed
                        if chance.random() < 0.03:
                            self._note(task, "stopped")
                            self._slept.wait(2 * LEASE_SECS)
                        split.commit()
                    if task.is_chief and chance.random() < 0.3:
                        self._save(queue)
                report = queue.report()
                queue.close()
                return report
            except tfdist.SplitLost:
                self._note(task, "lost its split")
            except Killed:
                self._note(task, "killed")
                queue.connection.close()
                queue = self._connected(task)

    def _visit(self, split, number):
        with self._lock:
            for record in range(split.offset, split.reserved):
                self._visits[number - 1][record] += 1

    def _connected(self, task):
        with self._lock, tf.Graph().as_default():
            return self._make(task)

    def _save(self, queue):
        with queue.held():
            with self._session.graph.as_default():
                self._saver.save(self._session, self._folder, write_meta_graph=False)
            with self._lock:
                self._saved = [list(counts) for counts in self._visits]

    def _go_back(self):
        """As if the ps had been lost: the last checkpoint counts, and the job begins anew."""
        self._goes_back = False
        self.log.append("back to the checkpoint")
        with self._session.graph.as_default():
            self._saver.restore(self._session, self._folder)
        self._visits = [list(counts) for counts in self._saved]
        queue = self._connected(self._trainers[0])
        queue.recover()
        first = queue.first_epoch
        queue.connection.close()
        return first

    def _note(self, task, what):
        self.log.append(f"{task.name} {what}")

    def wrong(self):
        """The visits that no report explains."""
        found = []
        for number, report in self.reports.items():
            again = [0] * RECORDS
            for start, stop in report.visited_again:
                for record in range(start, stop):
                    again[record] += 1
            pairs = zip(self._visits[number - 1], again, strict=True)
            found += [
                (number, record, *pair)
                for record, pair in enumerate(pairs)
                if not 1 <= pair[0] <= 1 + pair[1]
            ]
        return found


class Killed(Exception):
    """What a thread raises that ends between an update and its commit."""


@pytest.mark.parametrize("seed", range(8 * TIMES))
def test_every_record_is_visited_and_twice_only_as_the_report_says(trainers, tmp_path, seed):
    job = Job(trainers, seed, tmp_path)
    job.run()
    print(job.log)
    assert job.wrong() == []
    for number, report in job.reports.items():
        told = (report.epoch, report.visited, report.given_up, report.over)
        assert told == (number, ((0, RECORDS),), (), True)
