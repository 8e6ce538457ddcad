"""A cluster on this machine: the same tasks as threads or as processes."""

from __future__ import annotations

import queue
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from tfdist.cluster.outcome import Outcome, RunningTask
from tfdist.cluster.ports import HeldPorts
from tfdist.cluster.processes import ProcessTask, Surroundings
from tfdist.deadline import Deadline
from tfdist.errors import ClusterError, ConfigError, StartTimeout
from tfdist.task import Task, cluster_tasks

Result = TypeVar("Result")

BACKENDS = ("threads", "processes")
_LEAVE_SECS = 5.0


class LocalCluster:
    """Some ps and some trainers on this machine; make it with `tfdist.local_cluster`.

    Attributes:
        trainers: the trainers' tasks by rank.
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
        self._held = HeldPorts(num_ps + num_workers)
        addresses = [f"127.0.0.1:{port}" for port in self._held.ports]
        spec = {"ps": addresses[:num_ps], "worker": addresses[num_ps:]}
        tasks = cluster_tasks({key: value for key, value in spec.items() if value})
        self._ps = [task for task in tasks if not task.is_trainer]
        self.trainers = tuple(task for task in tasks if task.is_trainer)
        self._running: dict[str, RunningTask] = {}
        self._functions: dict[str, Callable[[Task], object]] = {}
        self._ended: queue.SimpleQueue[tuple[Task, Outcome]] = queue.SimpleQueue()

    def __enter__(self) -> LocalCluster:
        try:
            self._start_ps()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
            ConfigError: a task raised it.
            StartTimeout: the time was over; the tasks named have been stopped.
        """
        deadline = Deadline(timeout)
        self._start_ps()
        for task in self.trainers:
            self._start(task, function)
        results: dict[str, Result] = {}
        try:
            while len(results) < len(self.trainers):
                task, outcome = self._next_outcome(deadline)
                outcome.raise_for(task)
                if task.is_trainer:
                    results[task.name] = outcome.result  # type: ignore[assignment]
            self._wait_for_ps_to_leave()
        except BaseException:
            self._stop()
            raise
        return [results[task.name] for task in self.trainers]

    def kill(self, name: str) -> None:
        """Ends the task at once, as a crash would: "worker:1"."""
        self._find(name).kill()

    def pause(self, name: str) -> None:
        """Stops the task as a frozen machine would (processes only)."""
        self._find(name).pause()

    def resume(self, name: str) -> None:
        """Wakes a paused task."""
        self._find(name).resume()

    def restart(self, name: str) -> None:
        """Starts a task that has ended once more, with its function."""
        for task in (*self._ps, *self.trainers):
            if task.name == name and name not in self._running and name in self._functions:
                self._start(task, self._functions[name])
                return
        raise ClusterError(f"{name} has not ended, or was never started")

    def close(self) -> None:
        """Ends every task and gives the ports back."""
        self._stop()
        self._held.close()

    def _start_ps(self) -> None:
        for task in self._ps:
            if task.name not in self._running:
                self._start(task, _serve_ps)

    def _start(self, task: Task, function: Callable[[Task], object]) -> None:
        self._functions[task.name] = function
        if self._backend == "threads":
            from tfdist.cluster.in_process import ThreadTask  # the launcher needs no TensorFlow

            self._running[task.name] = ThreadTask(task, function, self._note_end)
        else:
            self._running[task.name] = ProcessTask(
                task, function, self._note_end, self._surroundings
            )

    def _note_end(self, task: Task, outcome: Outcome) -> None:
        self._ended.put((task, outcome))

    def _next_outcome(self, deadline: Deadline) -> tuple[Task, Outcome]:
        while True:
            # In slices: a wait without end in a lock would be deaf to signals on some systems.
            try:
                task, outcome = self._ended.get(timeout=min(deadline.remaining, 1.0))
            except queue.Empty:
                if deadline.expired:
                    raise StartTimeout(
                        sorted(self._running), deadline.elapsed, "They did not end in time."
                    ) from None
                continue
            self._running.pop(task.name, None)
            return task, outcome

    def _wait_for_ps_to_leave(self) -> None:
        deadline = Deadline(_LEAVE_SECS)
        while any(task.name in self._running for task in self._ps):
            task, outcome = self._next_outcome(deadline)
            outcome.raise_for(task)

    def _find(self, name: str) -> RunningTask:
        if name not in self._running:
            raise ClusterError(f"{name} does not run; running: {', '.join(sorted(self._running))}")
        return self._running[name]

    def _stop(self) -> None:
        # Trainers first: they must not see their ps go and report that as the failure.
        order = [task.name for task in (*self.trainers, *self._ps)]
        failures = []
        for name in sorted(self._running, key=order.index):
            try:
                self._running[name].kill()
            except ClusterError as error:
                failures.append(str(error))
        while not self._ended.empty():
            self._ended.get()
        self._running.clear()
        if failures:  # no error: it would hide the one on account of which they are stopped
            warnings.warn("; ".join(failures), RuntimeWarning, stacklevel=3)


def _serve_ps(task: Task) -> None:
    from tfdist.cluster.server import serve_ps  # the launcher needs no TensorFlow

    serve_ps(task)


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
