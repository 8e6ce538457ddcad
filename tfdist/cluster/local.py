"""A cluster on this machine: the same tasks as threads or as processes."""

from __future__ import annotations

import queue
import signal
import threading
import warnings
from collections.abc import Callable
from typing import TypeVar

from tfdist.cluster.outcome import Outcome, RunningTask
from tfdist.cluster.ports import HeldPorts
from tfdist.cluster.processes import ProcessTask, Surroundings
from tfdist.deadline import Deadline
from tfdist.errors import ClusterError, ConfigError, RunTimeout, TaskFailed
from tfdist.task import Task, cluster_tasks

Result = TypeVar("Result")

BACKENDS = ("threads", "processes")
_LEAVE_SECS = 2.0


class LocalCluster:
    """Some ps and some trainers on this machine; make it with `tfdist.local_cluster`.

    Attributes:
        trainers: the trainers' tasks by rank. (A second run on threads is at new ports.)
    """

    def __init__(
        self,
        num_ps: int,
        num_workers: int,
        backend: str,
        surroundings: Surroundings,
    ) -> None:
        if num_ps < 0:
            raise ConfigError("num_ps", num_ps, "at least 0")
        if num_workers < 1:
            raise ConfigError("num_workers", num_workers, "at least 1")
        if backend not in BACKENDS:
            raise ConfigError("backend", backend, f"one of {', '.join(BACKENDS)}")
        self._backend, self._surroundings = backend, surroundings
        self._num_ps, self._num_workers = num_ps, num_workers
        self._hold_ports()
        self._has_run = False
        self._running: dict[str, RunningTask] = {}
        self._functions: dict[str, Callable[[Task], object]] = {}
        self._ended: queue.SimpleQueue[tuple[RunningTask, Outcome]] = queue.SimpleQueue()
        self._killed: set[str] = set()  # on purpose, until they are restarted
        self._lock = threading.RLock()  # kill and restart come from other threads than run

    def __enter__(self) -> LocalCluster:
        try:
            self._start_ps()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(
        self, function: Callable[[Task], Result], *, timeout: float | None = None
    ) -> list[Result]:
        """Calls `function(task)` on every trainer and returns their results by rank.

        Blocks until all have ended, and the ps with them. The ps of a second run are new ones.

        Args:
            function: for the processes it must be importable there, as for `multiprocessing`.
            timeout: in seconds for the whole run; None waits without end.

        Raises:
            TaskFailed: the earliest failure of a task; the others have been stopped. Threads
                cannot be: those that still wait for something are named in a RuntimeWarning.
                A task that was ended by `kill` is a failure only if nobody restarts it before
                all others have ended.
            ConfigError: a task raised it.
            RunTimeout: the time was over; the tasks named have been stopped.
        """
        deadline = Deadline(timeout)
        if self._has_run and self._backend == "threads":
            # The servers of this process stay at the old ones, with all that they keep.
            self._held.close()
            self._hold_ports()
        self._has_run = True
        self._start_ps()
        for task in self.trainers:
            self._start(task, function)
        results: dict[str, Result] = {}
        try:
            while len(results) < len(self.trainers):
                self._check_killed(done=set(results))
                ended = self._next_end(deadline)
                if ended is not None and ended[0].is_trainer:
                    results[ended[0].name] = ended[1].result  # type: ignore[assignment]
            self._let_ps_leave()
        except BaseException:
            self._stop()
            raise
        return [results[task.name] for task in self.trainers]

    def kill(self, name: str) -> None:
        """Ends the task at once, as a crash would: "worker:1". `restart` may start it again."""
        with self._lock:
            running = self._find(name)
            del self._running[name]
            self._killed.add(name)
        try:
            running.kill()
        except ClusterError:
            with self._lock:
                self._running[name] = running
                self._killed.remove(name)
            raise

    def pause(self, name: str) -> None:
        """Stops the task as a frozen machine would (processes only)."""
        self._find(name).pause()

    def resume(self, name: str) -> None:
        """Wakes a paused task."""
        self._find(name).resume()

    def restart(self, name: str) -> None:
        """Starts a task that was killed once more, with the same function."""
        with self._lock:
            if name not in self._killed:
                raise ClusterError(f"{name} was not killed, so it cannot be restarted")
            self._killed.remove(name)
            task = next(task for task in (*self._ps, *self.trainers) if task.name == name)
            self._start(task, self._functions[name])

    def close(self) -> None:
        """Ends every task and gives the ports back."""
        self._stop()
        self._held.close()

    def _hold_ports(self) -> None:
        self._held = HeldPorts(self._num_ps + self._num_workers)
        addresses = [f"127.0.0.1:{port}" for port in self._held.ports]
        spec = {"ps": addresses[: self._num_ps], "worker": addresses[self._num_ps :]}
        tasks = cluster_tasks({key: value for key, value in spec.items() if value})
        self._ps = [task for task in tasks if not task.is_trainer]
        self.trainers = tuple(task for task in tasks if task.is_trainer)

    def _start_ps(self) -> None:
        for task in self._ps:
            if task.name not in self._running:
                self._start(task, _serve_ps)

    def _start(self, task: Task, function: Callable[[Task], object]) -> None:
        with self._lock:
            self._functions[task.name] = function
            self._running[task.name] = self._started(task, function)

    def _started(self, task: Task, function: Callable[[Task], object]) -> RunningTask:
        if self._backend == "threads":
            from tfdist.cluster.in_process import ThreadTask  # the launcher needs no TensorFlow

            return ThreadTask(task, function, self._note_end)
        return ProcessTask(task, function, self._note_end, self._surroundings)

    def _note_end(self, running: RunningTask, outcome: Outcome) -> None:
        self._ended.put((running, outcome))

    def _next_end(self, deadline: Deadline) -> tuple[Task, Outcome] | None:
        """The next task that has ended well; None after a second, or if it was killed on purpose.

        The second is for signals, to which a wait without end in a lock may be deaf.
        """
        try:
            running, outcome = self._ended.get(timeout=min(deadline.remaining, 1.0))
        except queue.Empty:
            if deadline.expired:
                raise RunTimeout(sorted(self._running), deadline.elapsed) from None
            return None
        task = running.task
        with self._lock:
            if self._running.get(task.name) is not running:
                return None
            del self._running[task.name]
        outcome.raise_for(task)
        return task, outcome

    def _check_killed(self, done: set[str]) -> None:
        """Raises TaskFailed if nobody is left to wait for but those that were killed."""
        with self._lock:
            left = [task for task in self.trainers if task.name not in done]
            if all(task.name in self._killed for task in left):
                killed = "kill() ended it, and nobody restarted it"
                raise TaskFailed(left[0].name, -signal.SIGKILL, killed)

    def _let_ps_leave(self) -> None:
        """Waits for the ps, and ends those to which no trainer has said that it is done."""
        deadline = Deadline(_LEAVE_SECS)
        while self._running:
            try:
                self._next_end(deadline)
            except RunTimeout:
                self._stop()

    def _find(self, name: str) -> RunningTask:
        if name not in self._running:
            raise ClusterError(f"{name} does not run; running: {', '.join(sorted(self._running))}")
        return self._running[name]

    def _stop(self) -> None:
        # Trainers first: they must not see their ps go and report that as the failure.
        order = [task.name for task in (*self.trainers, *self._ps)]
        failures = []
        with self._lock:
            for name in sorted(self._running, key=order.index):
                try:
                    self._running[name].kill()
                except ClusterError as error:
                    failures.append(str(error))
            self._running.clear()
            self._killed.clear()
        while not self._ended.empty():
            self._ended.get()
        if failures:  # no error: it would hide the one on account of which they are stopped
            warnings.warn("; ".join(failures), RuntimeWarning, stacklevel=3)


def _serve_ps(task: Task, serving: Callable[[], object] | None = None) -> None:
    from tfdist.cluster.server import serve_ps  # the launcher needs no TensorFlow

    serve_ps(task, serving=serving)


def local_cluster(
    num_ps: int = 1,
    num_workers: int = 2,
    *,
    backend: str = "threads",
    surroundings: Surroundings | None = None,
) -> LocalCluster:
    """A cluster on this machine, as a context manager; leaving it ends every task.

    Args:
        num_ps: how many parameter servers.
        num_workers: how many workers, at least 1; worker 0 is the chief.
        backend: "threads" of this process: up at once, but nothing can be killed, and
            TensorFlow keeps the servers' threads and ports until the process ends. "processes":
            one for each task; none outlives this one.
        surroundings: environment and output of the processes.

    Raises:
        ConfigError: a parameter is wrong.
    """
    return LocalCluster(num_ps, num_workers, backend, surroundings or Surroundings())
