"""Trainers that follow a test's orders step by step, so that a fault can hit any step.

Orders, answers and the record of arrivals are files, which survive a killed process.
"""

import ctypes
import functools
import json
import os
import pathlib
import random
import resource
import signal
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import psutil
import pytest
import tensorflow as tf

import tfdist
from tfdist.barrier.state import VARIABLES, handle_of, resource_names
from tfdist.deadline import Deadline
from tfdist.ps.session import PS_DEVICE, DirectSession
from tfdist.testing import poll_until
from tfdist.train.checkpoint import Checkpointer

KINDS = ("queue", "counter")
PAIRS = 4  # barriers that race at the same time
ORDER_SECS = 60.0  # within these an order arrives, or the test that sends it has failed
HALF_A_FILE = 2**22  # bytes, half a checkpoint


class Desk:
    """The numbered orders to a trainer and its answers, as files in a folder.

    A restarted trainer continues with the order that its killed process has not answered.
    """

    def __init__(self, folder, name):
        self._folder = pathlib.Path(folder, name)
        self._folder.mkdir(parents=True, exist_ok=True)

    def order(self, what, **options):
        number = len(list(self._folder.glob("order-*")))
        self._write(f"order-{number}", {"what": what, **options})
        return number

    def answer(self, number, answer):
        self._write(f"answer-{number}", answer)

    def read_answer(self, number, timeout):
        path = self._folder / f"answer-{number}"
        order = self._folder / f"order-{number}"
        poll_until(path.exists, f"{self._folder}: {order.read_text()}", timeout=timeout)
        return json.loads(path.read_text())

    def has_answer(self, number):
        return (self._folder / f"answer-{number}").exists()

    def next_order(self):
        number = 0
        while self.has_answer(number):
            number += 1
        path = self._folder / f"order-{number}"
        poll_until(path.exists, "there is an order", timeout=ORDER_SECS)
        return number, json.loads(path.read_text())

    def sign_in(self):
        self._write(f"incarnation-{os.getpid()}", None)

    @property
    def incarnations(self):
        """How many processes of the trainer have started so far."""
        return len(list(self._folder.glob("incarnation-*")))

    def _write(self, name, value):
        draft = self._folder / f"draft-{name}-{os.getpid()}"
        draft.write_text(json.dumps(value))
        draft.rename(self._folder / name)


def evidence(folder, parties):
    """The last round that each trainer has begun, written before each wait.

    It has a row by rank for the barrier, and one for each racing barrier. The file has to exist.
    """
    return np.memmap(pathlib.Path(folder, "rounds"), np.int64, "r+", shape=(1 + PAIRS, parties))


class Model:
    """A global step, and weights that equal it in every complete checkpoint."""

    def __init__(self, folder):
        self._graph = tf.Graph()
        with self._graph.as_default():
            self._step = tf.compat.v1.train.create_global_step()
            ones = np.ones(2 * HALF_A_FILE // 4, np.float32)
            self._weights = tf.compat.v1.get_variable("weights", initializer=0 * ones)
            self._train = tf.group(self._step.assign_add(1), self._weights.assign_add(ones))
            self._saver = Checkpointer(folder)
            self._session = tf.compat.v1.Session()
            self._session.run(tf.compat.v1.global_variables_initializer())
            self._saver.restore(self._session)

    def train_and_save(self, folder):
        """An action: waits for the file `go`, then saves one more step."""
        self._session.run(self._train)
        pathlib.Path(folder, "acting").touch()
        poll_until(pathlib.Path(folder, "go").exists, "the test says go", timeout=ORDER_SECS)
        with self._graph.as_default():
            self._saver.save(self._session)

    def state(self):
        step, weights = self._session.run([self._step, self._weights])
        return [int(step), float(weights.min()), float(weights.max())]


def obey(task, folder, *, desk=None, saves=False, **options):
    """Makes a barrier of each kind, and follows the orders for each until it is killed."""
    job = functools.partial(_obey, task, folder, desk or task.name, saves and task.is_chief)
    with ThreadPoolExecutor(len(KINDS)) as pool:
        list(pool.map(lambda kind: job(kind, {**options, "kind": kind}), KINDS))


def _obey(task, folder, desk, saves, kind, options):
    folder = pathlib.Path(folder, kind)
    desk = Desk(folder, desk)
    model = Model(folder / "model") if saves else None
    action = functools.partial(model.train_and_save, folder) if model else None
    with tfdist.Barrier(task, kind, action=action, **options) as barrier:
        desk.sign_in()
        trainer = Trainer(task, folder, barrier, model, options)
        while True:
            number, order = desk.next_order()
            try:
                answer = getattr(trainer, order.pop("what"))(**order)
            except Exception:
                answer = traceback.format_exc()
            desk.answer(number, answer)


class Trainer:
    """Each public method is an order."""

    def __init__(self, task, folder, barrier, model, options):
        self._task, self._barrier, self._model, self._options = task, barrier, model, options
        self._rank, self._rounds = task.rank, evidence(folder, len(task.trainers))

    def wait(self, round, timeout):
        """Waits once; returns the result and whether it came early, or the error."""
        self._rounds[0, self._rank] = round
        begin = time.monotonic()
        try:
            answer = {"result": self._barrier.wait(timeout)}
            answer["early"] = bool(self._rounds[0].min() < round)
        except tfdist.BarrierError as error:
            missing = getattr(error, "missing", ())
            answer = {"error": type(error).__name__, "text": str(error), "missing": [*missing]}
        return {**answer, "late": time.monotonic() - begin - timeout}

    def run(self, first, last, timeout):
        """Waits round after round; returns the wrong answers."""
        answers = [self.wait(round, timeout) for round in range(first, last + 1)]
        return [
            answer for answer in answers if answer.get("result") != self._rank or answer["early"]
        ]

    def see(self, n_waiting, timeout):
        """Polls until that many trainers wait."""
        condition = lambda: self._barrier.n_waiting == n_waiting  # noqa: E731
        poll_until(condition, f"{n_waiting} wait", timeout=timeout)

    def missing(self):
        return list(self._barrier.missing())

    def generation(self):
        return self._barrier.generation

    def reset(self):
        self._barrier.reset()

    def state(self):
        return self._model.state()

    def hang_in_the_next_save(self):
        """Makes this process hang in the call that writes the second half of a checkpoint."""
        libc = ctypes.CDLL(None)
        libc.signal(signal.SIGXFSZ, ctypes.cast(libc.pause, ctypes.c_void_p))
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (HALF_A_FILE, most))

    def race(self, phases, seed):
        """Races at PAIRS barriers at a time.

        The trainers arrive late in turn, and wait with random timeouts.
        """
        race = functools.partial(self._race, phases, seed)
        with ThreadPoolExecutor(PAIRS) as pool:
            return list(pool.map(race, range(1, PAIRS + 1)))

    def _race(self, phases, seed, pair):
        chance = random.Random(f"{seed} {pair} {self._rank}")
        timed_out = early = 0
        rounds = [phase[1:] for phase in phases for _ in range(phase[0])]
        with self._other_barrier(f"race {pair}") as barrier:
            for round, (timeouts, delays) in enumerate(rounds, start=1):
                if (round + self._rank) % 2:
                    _be_late(barrier, chance.uniform(*delays))
                self._rounds[pair, self._rank] = round
                while True:
                    try:
                        barrier.wait(chance.uniform(*timeouts))
                        break
                    except tfdist.BarrierTimeout:
                        timed_out += 1
                early += int(self._rounds[pair].min() < round)
            return {"timed_out": timed_out, "early": early, "generation": barrier.generation}

    def race_to_break(self, rounds, timeouts, delays, seed):
        """Waits at a barrier that a timeout breaks; returns (passed, broken) by round.

        Between the rounds all trainers meet at another barrier, and the chief mends this one.
        """
        chance = random.Random(f"{seed} {self._rank}")
        answers = []
        with ExitStack() as stack:
            between = stack.enter_context(self._other_barrier("between"))
            barrier = stack.enter_context(self._other_barrier("breaks", break_on_timeout=True))
            for _ in range(rounds):
                _be_late(barrier, chance.uniform(*delays))
                passed = None
                while passed is None:
                    passed = _passes(barrier, chance.uniform(*timeouts))
                between.wait(ORDER_SECS)
                answers.append([passed, barrier.broken])
                between.wait(ORDER_SECS)
                if self._task.is_chief and not passed:
                    barrier.reset()
                between.wait(ORDER_SECS)
        return answers

    def _other_barrier(self, name, **options):
        return tfdist.Barrier(
            self._task, f"{name} {self._options['kind']}", **self._options, **options
        )


def _passes(barrier, timeout):
    """Whether the wait passes; None if the ps did not answer."""
    try:
        barrier.wait(timeout)
    except tfdist.BarrierTimeout as error:
        return None if error.missing == ("ps:0",) else False
    except tfdist.BrokenBarrierError:
        return False
    return True


def _be_late(barrier, seconds):
    """Keeps asking the ps for that long, as a trainer in its steps would."""
    late = Deadline(seconds)
    while not late.expired:
        barrier.missing()


class SecondPs:
    """A ps that gets as many other runs as a barrier sends to the first ps, for two trainers.

    It grows by what TensorFlow keeps of each run, which depends on what the run does, and on its
    timing if another run wakes it. So the trainers wait for each other here too, by the plainest
    means that serve: a count under a lock, and tokens that the last one enqueues. Such a run has
    about as many operations as one of a barrier, which is some 90.
    """

    def __init__(self, task):
        self._graph = tf.Graph()
        with self._graph.as_default(), tf.compat.v1.device("/job:ps/task:1"):
            self._lock = tf.raw_ops.MutexV2(shared_name="lock")
            self._count = tf.raw_ops.VarHandleOp(dtype=tf.int64, shape=[], shared_name="count")
            zero = tf.zeros([], tf.int64)
            start = tf.raw_ops.AssignVariableOp(resource=self._count, value=zero)
            self._meetings = [self._meeting(parity) for parity in (0, 1)]
            self._nothing = tf.no_op()
            self._never = tf.queue.FIFOQueue(1, [tf.int64]).dequeue().op
        self._session = DirectSession(
            task.cluster_spec["ps"][1], self._graph, timeout=0, task_device="/job:ps/task:1"
        )
        if task.is_chief:
            self._session.run(start)

    def ask(self, times):
        """Runs that often; in the first run the trainers wait for each other.

        The trainers have to cross a barrier between its construction and the first call.
        """
        self._session.run(self._meetings[0], timeout=ORDER_SECS)
        self._meetings.reverse()
        for _ in range(times - 1):
            self._session.run(self._nothing)

    def time_out(self, seconds):
        try:
            self._session.run(self._never, timeout=seconds)
        except tf.errors.DeadlineExceededError:
            return
        raise AssertionError("an empty queue had an element")

    def _meeting(self, parity):
        tokens = tf.queue.FIFOQueue(2, [tf.int64], [[]], shared_name=f"tokens {parity}")
        lock = tf.raw_ops.MutexLock(mutex=self._lock)
        with tf.control_dependencies([lock]):
            arrived = tf.raw_ops.ReadVariableOp(resource=self._count, dtype=tf.int64) + 1
        work = tf.cast(arrived, tf.float64)
        for _ in range(30):
            work += tf.sin(work)
        with tf.control_dependencies([work]):
            stored = tf.raw_ops.AssignVariableOp(resource=self._count, value=arrived)
        with tf.control_dependencies([stored]):
            unlocked = tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)
        is_last = tf.cast(tf.equal(arrived % 2, 0), tf.int64)
        with tf.control_dependencies([unlocked]):
            released = tokens.enqueue_many(tf.fill([2 * is_last], arrived))
        with tf.control_dependencies([released]):
            token = tokens.dequeue()
        with tf.control_dependencies([token]):
            now = tf.raw_ops.ReadVariableOp(resource=self._count, dtype=tf.int64)
        return tf.raw_ops.Assert(condition=now >= token, data=[token], summarize=1)


def many_generations(task, kind, generations, warm_up, ps):
    """Passes that often; returns the growth of it and both ps in bytes, and the tokens left."""
    second = SecondPs(task)
    with tfdist.Barrier(task, "many", kind=kind, timeout=ORDER_SECS) as barrier:
        barrier.wait()  # opens its sessions
        runs = _count_runs(barrier)

        def cross(times):
            for _ in range(times):
                barrier.wait()
                second.ask(len(runs))
                runs.clear()

        cross(warm_up)
        before = _sizes(ps)
        cross(generations - warm_up)
        growth = _growth(before, ps)
        barrier.wait()  # no trainer leaves while another measures
        with tfdist.Barrier(task, "counted", timeout=ORDER_SECS) as counted:
            counted.wait()  # all have taken their tokens
        return [*growth, num_tokens(task, "many")]


def many_timeouts(task, kind, rounds, timeout, ps):
    """The chief times out that often at several barriers; returns the growth of it and both ps."""
    with ExitStack() as stack:
        most = ORDER_SECS + 3 * rounds * timeout
        end = stack.enter_context(tfdist.Barrier(task, "end", timeout=most))
        growth = None
        if task.is_chief:
            growth = _time_out_at_many(stack, task, kind, rounds, timeout, ps)
        end.wait()
    return growth


def _time_out_at_many(stack, task, kind, rounds, timeout, ps):
    names = [f"late {number}" for number in range(2 * PAIRS)]
    barriers = [stack.enter_context(tfdist.Barrier(task, name, kind=kind)) for name in names]
    seconds = [SecondPs(task) for _ in names]

    def time_out(barrier, second):
        with pytest.raises(tfdist.BarrierTimeout):
            barrier.wait(timeout)
        second.time_out(timeout)

    with ThreadPoolExecutor(len(names)) as pool:
        for round in range(rounds):
            if round == rounds // 4:
                before = _sizes(ps)
            list(pool.map(time_out, barriers, seconds))
    return _growth(before, ps)


def _count_runs(barrier):
    """A list that gets an entry for each run that the barrier sends to its ps."""
    connection, runs = barrier._participant.connection, []

    def count(ask):
        def counted(*args, **options):
            runs.append(args)
            return ask(*args, **options)

        return counted

    connection._session._ask = count(connection._session._ask)
    if connection.can_block:
        connection._blocking._ask = count(connection._blocking._ask)
    return runs


def num_tokens(task, barrier):
    """How many tokens are in the barrier's queues on the ps."""
    with tf.Graph().as_default() as graph, tf.compat.v1.device(PS_DEVICE):
        names = resource_names(barrier)._asdict()
        queues = [handle_of(part, name) for part, name in names.items() if part not in VARIABLES]
        sizes = [tf.raw_ops.QueueSizeV2(handle=queue) for queue in queues]
    with DirectSession(task.cluster_spec["ps"][0], graph, timeout=0) as ps:
        return int(sum(ps.run(sizes)))


def _growth(before, ps):
    return [after - start for start, after in zip(before, _sizes(ps), strict=True)]


def _sizes(ps):
    return [psutil.Process(pid).memory_info().rss for pid in (os.getpid(), *ps)]
