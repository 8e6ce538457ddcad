"""A cluster's trainers and ps: a test sends them orders, kills, stops and restarts them."""

import functools
import multiprocessing
import threading

import psutil

import tfdist
from tests.chaos import barrier_jobs
from tests.chaos.barrier_jobs import KINDS
from tfdist.deadline import Deadline
from tfdist.testing import poll_until

START = 60.0
LONG = 30.0  # for what is expected to end; far more than it takes
LATE = 2.0  # how long after its timeout a wait may end on a busy machine


class Crew(threading.Thread):
    """The trainers of a cluster, each with one `Desk` for each kind of barrier."""

    def __init__(self, cluster, folder, options):
        super().__init__(name="crew")
        self.cluster, self.folder, self._options = cluster, folder, options
        self.caught = None
        self.names = [task.name for task in cluster.trainers]
        self._desks = {}
        self._second = {}
        self.rounds = []
        for kind in KINDS:
            (folder / kind).mkdir()
            (folder / kind / "rounds").write_bytes(
                bytes(8 * len(self.names) * (1 + barrier_jobs.PAIRS))
            )
            self.rounds.append(barrier_jobs.evidence(folder / kind, len(self.names)))
        for name in self.names:
            self._add_desks(name)
        self.start()

    def run(self):
        job = functools.partial(barrier_jobs.obey, folder=str(self.folder), **self._options)
        try:
            self.cluster.run(job, timeout=3 * START)
        except tfdist.TfdistError as error:
            self.caught = error

    def wait_for_incarnations(self, number, names=None):
        """Blocks until that many processes of each trainer have made their barriers."""
        for name in names or self.names:
            poll_until(
                lambda name=name: self.caught or min(self._incarnations(name)) >= number,
                f"{name} has made its barriers",
                timeout=START,
            )
        if self.caught:
            raise self.caught

    def order(self, name, what, **options):
        """Sends an order for each kind of barrier."""
        desks = self._desks[name]
        return Order(name, [(desk, desk.order(what, **options)) for desk in desks])

    def ask(self, name, what, **options):
        """Sends an order, and returns the answer, which has to be the same for each kind."""
        answers = self.order(name, what, **options).answers()
        assert answers[0] == answers[1], f"{name} {what}: {dict(zip(KINDS, answers, strict=True))}"
        return answers[0]

    def order_wait(self, name, round, timeout=LONG):
        return self.order(name, "wait", round=round, timeout=timeout)

    def all_pass(self, round, names=None):
        waits = [self.order_wait(name, round) for name in names or self.names]
        for wait in waits:
            wait.passes()

    def all_reset(self, names):
        for order in [self.order(name, "reset") for name in names]:
            assert order.answers() == [None, None]

    def see(self, name, n_waiting):
        """Blocks until that trainer sees that many waiting."""
        assert self.ask(name, "see", n_waiting=n_waiting, timeout=LONG) is None

    def kill(self, name):
        self.cluster.kill(name)

    def restart(self, name):
        if name not in self._desks:
            self.cluster.restart(name)
            return
        incarnations = max(self._incarnations(name))
        self.cluster.restart(name)
        self.wait_for_incarnations(incarnations + 1, [name])

    def stop(self, name):
        """Sends SIGSTOP; returns once the process is stopped."""
        process = psutil.Process(self.cluster._running[name].pid)
        self.cluster.pause(name)
        poll_until(lambda: process.status() == psutil.STATUS_STOPPED, f"{name} is stopped")

    def wake(self, name):
        self.cluster.resume(name)

    def stop_for_a_while(self, name, seconds):
        """Lets it run for that long, and then stops it for that long."""
        for change in (self.stop, self.wake):
            phase = Deadline(seconds)
            poll_until(lambda phase=phase: phase.expired, "the time is over", timeout=LONG)
            change(name)

    def start_second(self, name):
        """Starts a second process of a trainer; returns the name of its desks."""
        desk = f"{name} again"
        self._add_desks(desk)
        task = self.cluster.trainers[self.names.index(name)]
        self._second[desk] = multiprocessing.get_context("forkserver").Process(
            target=barrier_jobs.obey,
            args=(task, str(self.folder)),
            kwargs={**self._options, "desk": desk},
            daemon=True,
        )
        self._second[desk].start()
        self.wait_for_incarnations(1, [desk])
        return desk

    def close(self):
        for process in self._second.values():
            process.kill()
            process.join(LONG)
        for name in self.names:
            try:
                self.cluster.kill(name)
            except tfdist.ClusterError:
                continue  # it was killed already
        self.join(LONG)

    def _add_desks(self, name):
        self._desks[name] = [barrier_jobs.Desk(self.folder / kind, name) for kind in KINDS]

    def _incarnations(self, name):
        return [desk.incarnations for desk in self._desks[name]]


class Order:
    """An order to a trainer, for each kind of barrier."""

    def __init__(self, name, given):
        self._rank, self._name, self._given = int(name.split()[0].partition(":")[2]), name, given

    @property
    def pending(self):
        """Whether there is no answer for either kind."""
        return not any(desk.has_answer(number) for desk, number in self._given)

    def answers(self, timeout=LONG + LATE):
        return [desk.read_answer(number, timeout) for desk, number in self._given]

    def withdraw(self):
        for desk, number in self._given:
            desk.answer(number, "withdrawn")

    def passes(self):
        for about, answer in self._outcomes():
            assert answer.get("result") == self._rank, about
            assert not answer["early"], about

    def times_out(self, *missing, text="", late=LATE):
        for about, answer in self._outcomes():
            assert answer.get("error") == "BarrierTimeout", about
            assert answer["missing"] == list(missing), about
            assert all(part in answer["text"] for part in (*missing, text)), about
            assert answer["late"] < late, about

    def breaks(self, text):
        for about, answer in self._outcomes():
            assert answer.get("error") == "BrokenBarrierError", about
            assert text in answer["text"], about
            assert answer["late"] < LATE, about

    def _outcomes(self):
        answers = self.answers()
        assert all(isinstance(answer, dict) for answer in answers), answers
        return [(f"{self._name} {kind}: {a}", a) for kind, a in zip(KINDS, answers, strict=True)]
