"""A stress test of the barrier: random timeouts and kills, with a count outside the barrier.

Early releases are found without the barrier's help. Before a trainer waits for a generation, it
writes the generation's number into shared memory. When it has passed, it checks there that all
other trainers have come as far.
"""

from __future__ import annotations

import math
import mmap
import os
import random
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tfdist
from benchmarks._barrier_peers import QUIET
from tfdist.deadline import Deadline

LATE_SECS = 1.0
# A trainer that is released this long after the last arrival is counted, but is no error.
SLOW_SECS = 1.0
_SHORTEST_WAIT_SECS, _LONGEST_WAIT_SECS = 0.005, 2.0
_PAUSE_SECS, _LONG_PAUSE_SECS, _LONG_PAUSE_RATE = 0.01, 0.4, 0.02
_KILL_EVERY_SECS = (0.3, 1.5)
_DEAD_SECS = (0.0, 2.5)
_COUNTER_RATE = 0.25
# A generation that takes longer is an error.
_STALL_SECS = 60.0
_LEFT = 2**62  # published by a trainer that takes no further part

_WORD = 8


class Board:
    """Numbers in a file that all trainers map into memory; each trainer writes only its own.

    They survive a killed trainer. Each number is written by one store of the processor.
    """

    FIELDS = (
        "published",  # the generation that the trainer has reached, or is about to
        "arrived_even",  # time of arrival, in microseconds, at the last even and odd generation
        "arrived_odd",
        "passed",  # the last generation that the trainer has passed
        "incarnations",
        "waits",
        "timeouts",
        "early",
        "overdue",
        "longest_over",  # microseconds by which a wait exceeded its timeout
        "slow",
        "longest_release",  # microseconds from the last arrival to the release
    )

    def __init__(self, folder: str, parties: int) -> None:
        size = (1 + parties * len(self.FIELDS)) * _WORD
        descriptor = os.open(os.path.join(folder, "board"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, size)
            self._numbers = memoryview(mmap.mmap(descriptor, size)).cast("q")
        finally:
            os.close(descriptor)
        self._folder, self._parties = folder, parties

    @property
    def stopping(self) -> bool:
        return bool(self._numbers[0])

    def stop(self) -> None:
        self._numbers[0] = 1

    def get(self, rank: int, field: str) -> int:
        return self._numbers[self._place(rank, field)]

    def set(self, rank: int, field: str, value: int) -> None:
        self._numbers[self._place(rank, field)] = value

    def add(self, rank: int, field: str) -> int:
        self.set(rank, field, self.get(rank, field) + 1)
        return self.get(rank, field)

    def raise_to(self, rank: int, field: str, value: int) -> None:
        self.set(rank, field, max(self.get(rank, field), value))

    def column(self, field: str) -> list[int]:
        return [self.get(rank, field) for rank in range(self._parties)]

    def note(self, text: str) -> None:
        with open(os.path.join(self._folder, "notes"), "a") as notes:
            notes.write(f"{text}\n")

    def notes(self) -> list[str]:
        path = Path(self._folder, "notes")
        return path.read_text().splitlines() if path.exists() else []

    def _place(self, rank: int, field: str) -> int:
        return 1 + rank * len(self.FIELDS) + self.FIELDS.index(field)


@dataclass(frozen=True)
class Stress:
    """What to run, as plain data for the trainers.

    Attributes:
        backend: "processes", some of which are killed, or "threads".
        parties: number of trainers.
        seconds: duration, from the first generation on.
        seed: of everything random. (The run also depends on the timing of the machine.)
        folder: of the board.
    """

    backend: str
    parties: int
    seconds: float
    seed: int
    folder: str = ""

    @property
    def limit_secs(self) -> float:
        return self.seconds + 3 * _STALL_SECS

    def rng(self, *whose: object) -> random.Random:
        return random.Random(f"{self.seed}/{self.backend}/{self.parties}/{whose}")


def run_stress(backend: str, parties: int, seconds: float, seed: int) -> dict[str, Any]:
    """Runs the stress test; returns its row, with the error of a trainer that failed."""
    with tempfile.TemporaryDirectory(prefix="barrier-") as folder:
        stress = Stress(backend, parties, seconds, seed, folder)
        board = Board(folder, parties)
        kills, error = 0, None
        try:
            if backend == "threads":
                # In a new process, which ends threads that hang.
                with tfdist.local_cluster(0, 1, backend="processes", surroundings=QUIET) as shell:
                    shell.run(partial(_threads, stress), timeout=stress.limit_secs)
            else:
                kills = _processes(stress, board)
        except tfdist.TfdistError as failure:
            error = str(failure)
        return {
            "backend": backend,
            "parties": parties,
            "seed": seed,
            "generations": max(board.column("passed")),
            "waits": sum(board.column("waits")),
            "timeouts": sum(board.column("timeouts")),
            "kills": kills,
            "early_releases": sum(board.column("early")),
            "overdue_waits": sum(board.column("overdue")),
            "longest_overrun_ms": max(board.column("longest_over")) / 1000,
            "slow_releases": sum(board.column("slow")),
            "longest_release_ms": max(board.column("longest_release")) / 1000,
            "notes": board.notes(),
            "error": error,
        }


def _processes(stress: Stress, board: Board) -> int:
    """Runs with processes; returns the number of kills."""
    with tfdist.local_cluster(
        1, stress.parties, backend="processes", surroundings=QUIET
    ) as cluster:
        killer = _Killer(cluster, stress, board)
        killer.start()
        try:
            cluster.run(partial(_trainer, stress), timeout=stress.limit_secs)
        finally:
            killer.ended.set()
            killer.join()
        if killer.error is not None:
            raise killer.error
        return killer.kills


def _threads(stress: Stress, _: tfdist.Task) -> None:
    board = Board(stress.folder, stress.parties)
    with tfdist.local_cluster(1, stress.parties, backend="threads") as cluster:
        timer = _Killer(None, stress, board)
        timer.start()
        try:
            cluster.run(partial(_trainer, stress), timeout=stress.limit_secs - 5)
        finally:
            timer.ended.set()
            timer.join()


class _Killer(threading.Thread):
    """Kills and restarts the trainers of a cluster, if given, and stops all of them at the end."""

    def __init__(self, cluster: Any, stress: Stress, board: Board) -> None:
        super().__init__(name="killer", daemon=True)
        self.kills = 0
        self.error: tfdist.TfdistError | None = None
        self.ended = threading.Event()
        self._cluster, self._stress, self._board = cluster, stress, board

    def run(self) -> None:
        try:
            if self._all_have_passed():
                deadline = Deadline(self._stress.seconds)
                if self._cluster is None:
                    self.ended.wait(deadline.remaining)
                else:
                    self._kill_until(deadline)
        except tfdist.TfdistError as error:
            # Killing a failed trainer is an error, but `run` then has the better one.
            if not self.ended.wait(5):
                self.error = error
        finally:
            self._board.stop()

    def _all_have_passed(self) -> bool:
        deadline = Deadline(_STALL_SECS)
        while not all(self._board.column("passed")):
            if self.ended.wait(0.05) or deadline.expired:
                return False
        return True

    def _kill_until(self, deadline: Deadline) -> None:
        rng = self._stress.rng("killer")
        names = [task.name for task in self._cluster.trainers]
        while True:
            self.ended.wait(min(rng.uniform(*_KILL_EVERY_SECS), deadline.remaining))
            if self.ended.is_set() or deadline.expired:
                return
            name = rng.choice(names)
            self._cluster.kill(name)
            self.kills += 1
            self.ended.wait(rng.uniform(*_DEAD_SECS))
            if self.ended.is_set():
                return
            self._cluster.restart(name)


def _trainer(stress: Stress, task: tfdist.Task) -> None:
    board, rank = Board(stress.folder, stress.parties), task.rank
    rng = stress.rng(rank, board.add(rank, "incarnations"))
    kind = "counter" if rng.random() < _COUNTER_RATE else "queue"
    barrier, generation = _joined(task, kind)
    with barrier:
        while not board.stopping:
            long = rng.random() < _LONG_PAUSE_RATE
            time.sleep(rng.uniform(0, _LONG_PAUSE_SECS if long else _PAUSE_SECS))
            _publish(board, rank, generation)
            _pass(barrier, board, rank, generation, rng)
            _check(board, rank, generation)
            board.set(rank, "passed", generation)
            generation += 1
        _publish(board, rank, _LEFT)
        barrier.resign()


def _joined(task: tfdist.Task, kind: str) -> tuple[tfdist.Barrier, int]:
    """A barrier, and the first generation at which this trainer arrives.

    If an earlier incarnation had arrived already, a generation may end while the barrier is made.
    So the generation is read before and after.
    """
    barrier = tfdist.Barrier(task, "stress", kind=kind)
    while True:
        before = barrier.generation
        barrier.close()
        barrier = tfdist.Barrier(task, "stress", kind=kind)
        if barrier.generation == before:
            return barrier, before


def _pass(
    barrier: tfdist.Barrier, board: Board, rank: int, generation: int, rng: random.Random
) -> None:
    """Waits with random timeouts until the trainer has passed."""
    stall = Deadline(_STALL_SECS)
    while True:
        timeout = math.exp(rng.uniform(math.log(_SHORTEST_WAIT_SECS), math.log(_LONGEST_WAIT_SECS)))
        board.add(rank, "waits")
        deadline = Deadline(timeout)
        try:
            barrier.wait(timeout)
            passed = True
        except tfdist.BarrierTimeout as error:
            passed = False
            last_error = error
        over = deadline.elapsed - timeout
        board.raise_to(rank, "longest_over", int(over * 1e6))
        if over > LATE_SECS:
            board.add(rank, "overdue")
            how = "passed" if passed else "timed out"
            board.note(
                f"overdue: rank {rank} {how} in generation {generation} "
                f"{over:.2f} s after its timeout of {timeout:.3f} s ({barrier!r})"
            )
        if passed:
            return
        board.add(rank, "timeouts")
        if stall.expired:
            raise TimeoutError(
                f"generation {generation} has not ended after {stall.elapsed:.0f} s; "
                f"published: {board.column('published')}"
            ) from last_error


def _publish(board: Board, rank: int, generation: int) -> None:
    board.set(rank, _arrival_field(generation), time.monotonic_ns() // 1000)
    board.set(rank, "published", generation)


def _arrival_field(generation: int) -> str:
    """No trainer is two generations ahead of another, so two fields are enough."""
    return "arrived_odd" if generation % 2 else "arrived_even"


def _check(board: Board, rank: int, generation: int) -> None:
    published = board.column("published")
    behind = [other for other, number in enumerate(published) if number < generation]
    if behind:
        board.add(rank, "early")
        board.note(
            f"early: rank {rank} passed generation {generation} before the ranks {behind} had "
            f"arrived; published: {published}"
        )
    if _LEFT in published:
        return  # a trainer that left released the others, but did not arrive
    late_by = time.monotonic_ns() // 1000 - max(board.column(_arrival_field(generation)))
    board.raise_to(rank, "longest_release", late_by)
    if late_by > SLOW_SECS * 1e6:
        board.add(rank, "slow")
