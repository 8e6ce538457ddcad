"""A cluster on this machine: the same tasks as threads or as processes."""

from __future__ import annotations

import contextlib
import errno
import logging
import queue
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tfdist.cluster.ports import HeldPorts
from tfdist.cluster.processes import ProcessTask, Surroundings
from tfdist.cluster.script import GRACE_SECS
from tfdist.cluster.shape import Shape
from tfdist.deadline import Deadline
from tfdist.errors import (
    ClusterError,
    ConfigError,
    RunTimeout,
    TaskFailed,
    checked_action,
    checked_choice,
    checked_integer,
    checked_secs,
)
from tfdist.lazy import require_tensorflow
from tfdist.runs.outcome import Outcome, RunningTask
from tfdist.task import Task

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

BACKENDS = ("threads", "processes")
# Time for an evaluator to end after the trainers.
EVALUATOR_SECS = 60.0
_NOTICE_SECS = 1.0
_LEAVE_SECS = 2.0
_OWN_SECS = 0.5
_EXIT_SECS = 10.0  # for a ps that exits, on a busy machine
_LOOK_SECS = 0.25


class LocalCluster:
    """A cluster of ps and trainers on this machine, made by `tfdist.local_cluster`.

    Attributes:
        tasks: all tasks. (With threads, a second run has new ports.)
        trainers: the tasks that train, by rank; with a coordinator only the chief.
    """

    def __init__(
        self,
        shape: Shape,
        backend: str,
        surroundings: Surroundings,
        serve: Callable[[Task], object] | None = None,
        addresses: Sequence[str] | None = None,
        *,
        grace: float = GRACE_SECS,
    ) -> None:
        """See `local_cluster`.

        Args:
            shape: the tasks of the cluster.
            backend: one of BACKENDS.
            surroundings: the environment of the tasks.
            serve: the function of the servers; None for tfdist's own server.
            addresses: `shape.num_servers` addresses, if each task has a network of its own; None
                for ports of this machine, which are reserved.
            grace: seconds between SIGTERM and SIGKILL; 0 sends SIGKILL alone.
        """
        checked_choice("backend", backend, BACKENDS)
        grace = checked_secs("grace", grace, most=1e9)
        self._shape, self._backend, self._surroundings = shape, backend, surroundings
        self._grace = grace if backend == "processes" else 0.0
        self._serve = serve or _serve
        self._addresses = addresses
        self._hold_ports()
        self._has_run = self._is_closed = False
        self._run_lock = threading.Lock()  # held by `run`
        self._running: dict[str, RunningTask] = {}
        self._functions: dict[str, Callable[[Task], object]] = {}
        self._attempts: dict[str, int] = {}
        self._restarts: dict[str, int] = {}  # how many restarts each task has left
        self._most_restarts = 0
        self._ended: queue.SimpleQueue[tuple[RunningTask, Outcome]] = queue.SimpleQueue()
        self._killed: set[str] = set()  # by `kill`, until they are restarted
        self._lock = threading.RLock()  # kill and restart come from other threads than run

    def __enter__(self) -> LocalCluster:
        try:
            self._start_servers()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(
        self,
        function: Callable[[Task], Result],
        *,
        timeout: float | None = None,
        restarts: int = 0,
        watch: Callable[[], None] | None = None,
    ) -> list[Result]:
        """Calls `function(task)` on every trainer and returns the results by rank.

        Blocks until all trainers and all ps have ended. A second run has new ps. With a
        coordinator only the chief trains. An evaluator runs the function too; it has
        EVALUATOR_SECS to end after the trainers, and its result is dropped.

        Args:
            function: with processes it must be importable, as for `multiprocessing`.
            timeout: seconds for the whole run; None for no limit.
            restarts: how often each failed task is restarted (processes only). A restarted ps
                has lost its variables.
            watch: called at least once a second while the trainers run. If it raises, the run
                ends with that error, unless a task has ended meanwhile.

        Raises:
            TaskFailed: the earliest failure of a task that was not restarted; the other tasks
                have been terminated. Threads cannot be: a RuntimeWarning names those that still
                run. A task that `kill` ended fails the run only if it has not been restarted
                when all others have ended.
            ConfigError: a task raised it, or a parameter is wrong.
            RunTimeout: the timeout is over; the tasks that still ran have been terminated.
            ClusterError: the cluster is closed, is closed meanwhile, or runs a function already.
        """
        checked_action("function", function, "that takes the task", may_be_none=False)
        checked_action("watch", watch)
        restarts = checked_integer("restarts", restarts, 0)
        if restarts and self._backend == "threads":
            raise ConfigError(
                "restarts", restarts, "must be 0, because a thread cannot be restarted"
            )
        deadline = Deadline(timeout)
        if not self._run_lock.acquire(blocking=False):
            raise ClusterError(
                "this cluster runs a function already; wait for its end, or make another cluster"
            )
        try:
            return self._run(function, deadline, restarts, watch)
        finally:
            self._run_lock.release()

    def _run(
        self,
        function: Callable[[Task], Result],
        deadline: Deadline,
        restarts: int,
        watch: Callable[[], None] | None,
    ) -> list[Result]:
        with self._lock:
            self._check_open()
            if self._has_run and self._backend == "threads":
                # The servers of the earlier run stay at their ports until this process ends.
                self._held.close()
                self._hold_ports()
            self._has_run = True
            self._restarts = {task.name: restarts for task in self.tasks}
            self._most_restarts = restarts
        outcomes: dict[str, Outcome] = {}
        try:
            self._start_servers()
            for task in self.tasks:
                if not self._shape.serves(task):
                    self._start(task, function)
            while not all(task.name in outcomes for task in self.trainers):
                self._check_killed(done=set(outcomes))
                ended = self._next_end(deadline)
                if ended is not None:
                    outcomes[ended[0].name] = ended[1]
                elif watch is not None:
                    self._look(watch)
            if "evaluator:0" in self._running:
                self._let_evaluator_end(deadline)
            self._let_servers_leave(
                have_reported=all(outcomes[task.name].has_reported for task in self.trainers)
            )
        except BaseException:
            self._stop()
            raise
        return [outcomes[task.name].result for task in self.trainers]  # type: ignore[misc]

    def kill(self, name: str) -> None:
        """Kills a task, such as "worker:1", as a crash would. `restart` can start it again."""
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
        """Stops a task with SIGSTOP, as a frozen machine would (processes only)."""
        self._find(name).send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Continues a paused task with SIGCONT."""
        self._find(name).send_signal(signal.SIGCONT)

    def restart(self, name: str) -> None:
        """Starts a killed task again, with the same function."""
        _check_name(name)
        with self._lock:
            if name not in self._killed:
                raise ClusterError(f"{name} was not ended by kill(), so it cannot be restarted")
            self._killed.remove(name)
            task = next(task for task in self.tasks if task.name == name)
            self._start(task, self._functions[name])

    def close(self) -> None:
        """Ends every task and releases the ports; a `run` in another thread raises ClusterError."""
        self._is_closed = True
        self._stop()
        self._held.close()

    def _hold_ports(self) -> None:
        count = 0 if self._addresses is not None else self._shape.num_servers
        with _no_os_error(f"cannot reserve {count} ports"):
            self._held = HeldPorts(count)
        here = [f"127.0.0.1:{port}" for port in self._held.ports]
        self.tasks = self._shape.tasks(here if self._addresses is None else list(self._addresses))
        self.trainers = tuple(
            task for task in self.tasks if task.is_trainer and not self._shape.serves(task)
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClusterError("this cluster is closed, so it runs no task; make another cluster")

    def _start_servers(self) -> None:
        for task in self.tasks:
            if self._shape.serves(task) and task.name not in self._running:
                self._start(task, self._serve)

    def _start(self, task: Task, function: Callable[[Task], object]) -> None:
        with self._lock:
            self._check_open()
            self._functions[task.name] = function
            self._attempts[task.name] = self._attempts.get(task.name, 0) + 1
            if used := self._most_restarts - self._restarts.get(task.name, self._most_restarts):
                total = self._most_restarts + 1
                _log.debug("restarting %s (attempt %d of %d)", task.name, used + 1, total)
            else:
                _log.info("starting %s", task.name)
            with _no_os_error(f"cannot start {task.name}"):
                self._running[task.name] = self._started(task, function)

    def _started(self, task: Task, function: Callable[[Task], object]) -> RunningTask:
        if self._backend == "threads":
            from tfdist.cluster.in_process import ThreadTask  # the launcher needs no TensorFlow

            return ThreadTask(task, function, self._note_end, serves=self._shape.serves(task))
        return ProcessTask(
            task,
            function,
            self._note_end,
            self._surroundings,
            self._attempts[task.name],
            grace=self._grace,
        )

    def _note_end(self, running: RunningTask, outcome: Outcome) -> None:
        self._ended.put((running, outcome))

    def _next_end(self, deadline: Deadline) -> tuple[Task, Outcome] | None:
        """The next task that has succeeded; None if none has within a moment.

        Returns so often because Python runs no signal handler during a long wait for a lock, and
        so that `watch` is called.
        """
        self._check_open()
        try:
            running, outcome = self._ended.get(timeout=min(deadline.remaining, _LOOK_SECS))
        except queue.Empty:
            if deadline.expired:
                raise RunTimeout(sorted(self._running), deadline.elapsed) from None
            return None
        task = running.task
        _log.info("%s has ended with exit code %s", task.name, outcome.exit_code)
        with self._lock:
            if self._running.get(task.name) is not running:
                return None
            del self._running[task.name]
            if self._may_start_again(task, outcome):
                self._restarts[task.name] -= 1
                self._start(task, self._functions[task.name])
                return None
        outcome.raise_for(task)
        return task, outcome

    def _look(self, watch: Callable[[], None]) -> None:
        try:
            watch()
        except Exception:
            # A task that has ended meanwhile comes first: its failure may be the cause. If it did
            # not fail, `watch` will raise again.
            if self._ended.empty():
                raise

    def _may_start_again(self, task: Task, outcome: Outcome) -> bool:
        # A restart does not correct wrong input.
        is_wrong = isinstance(outcome.error, ConfigError)
        return outcome.failed and not is_wrong and self._restarts.get(task.name, 0) > 0

    def _check_killed(self, done: set[str]) -> None:
        """Raises TaskFailed if every trainer without a result was killed and not restarted."""
        with self._lock:
            left = [task for task in self.trainers if task.name not in done]
            if all(task.name in self._killed for task in left):
                killed = "kill() ended it, and restart() was not called"
                raise TaskFailed(left[0].name, -signal.SIGKILL, killed)

    def _let_evaluator_end(self, deadline: Deadline) -> None:
        """Waits until the evaluator has evaluated the last checkpoint; at most EVALUATOR_SECS."""
        own = Deadline(min(EVALUATOR_SECS, deadline.remaining))
        while "evaluator:0" in self._running and not own.expired:
            with contextlib.suppress(RunTimeout):
                self._next_end(own)

    def _let_servers_leave(self, have_reported: bool) -> None:
        """Waits for the servers to exit, and terminates those that do not.

        Args:
            have_reported: whether all trainers have reported to them that they are done.
        """
        if self._shape.coordinator:
            patience = 0.0
        elif self._serve is not _serve:
            patience = _LEAVE_SECS  # a script that serves may have something left to do
        else:
            patience = _EXIT_SECS if have_reported else _OWN_SECS
        deadline = Deadline(patience)
        with contextlib.suppress(RunTimeout):
            while self._running:
                self._next_end(deadline)
        if self._running:  # not in an `except`, where a Ctrl-C would have RunTimeout as its context
            self._stop()

    def _find(self, name: str) -> RunningTask:
        _check_name(name)
        if name not in self._running:
            running = ", ".join(sorted(self._running)) or "none"
            raise ClusterError(f"{name} is not running; running tasks: {running}")
        return self._running[name]

    def _stop(self) -> None:
        """Ends all running tasks: the servers after the trainers, which may save what a ps has."""
        with self._lock:
            try:
                self._end_all()
            except BaseException:  # such as Ctrl-C during the grace
                self._grace = 0.0
                self._end_all()
                raise
            finally:
                self._running.clear()
                self._killed.clear()
        while not self._ended.empty():
            self._ended.get()

    def _end_all(self) -> None:
        failures = []
        for serves in (False, True):
            part = [
                each for each in self._running.values() if self._shape.serves(each.task) == serves
            ]
            if part and self._grace > 0:
                self._terminate(part)
            for each in part:
                try:
                    each.kill()
                except ClusterError as error:
                    failures.append(str(error))
        if failures:  # a warning, because an error would hide the reason for this end
            warnings.warn("; ".join(failures), RuntimeWarning, stacklevel=4)

    def _terminate(self, running: list[RunningTask]) -> None:
        """Sends SIGTERM and waits until all tasks have ended, or the grace is over."""
        deadline, soon = Deadline(self._grace), Deadline(min(self._grace, _NOTICE_SECS))
        for each in running:
            _log.info("sending SIGTERM to %s", each.task.name)
            each.send_signal(signal.SIGTERM)
        left = [each for each in running if not each.wait(soon.remaining)]
        if left and not deadline.expired:
            _log.warning(
                "%s: still running after SIGTERM; SIGKILL follows in %.0f s, or on the next Ctrl-C",
                _names(left),
                deadline.remaining,
            )
            left = [each for each in left if not each.wait(deadline.remaining)]
        if left:
            _log.warning("killing %s, %g s after SIGTERM", _names(left), self._grace)


@contextlib.contextmanager
def _no_os_error(what: str) -> Iterator[None]:
    """Raises ClusterError if this machine lacks a resource, such as descriptors or processes."""
    try:
        yield
    except OSError as error:
        hint = "; raise the limit with ulimit -n" if error.errno == errno.EMFILE else ""
        raise ClusterError(f"{what}: {error.strerror or error}{hint}") from error


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise ConfigError("name", name, 'must be the name of a task, such as "worker:1"')


def _names(running: list[RunningTask]) -> str:
    return ", ".join(each.task.name for each in running)


def _serve(task: Task, serving: Callable[[], object] | None = None) -> None:
    from tfdist.cluster.server import serve  # the launcher needs no TensorFlow

    serve(task, serving=serving)


def local_cluster(
    num_ps: int = 1,
    num_workers: int = 2,
    *,
    backend: str = "threads",
    chief: bool = False,
    evaluator: bool = False,
    coordinator: bool = False,
    surroundings: Surroundings | None = None,
    grace: float = GRACE_SECS,
) -> LocalCluster:
    """A cluster on this machine, as a context manager; leaving the block ends every task.

    The cluster shares the network of this process, so other processes can reach its ports.

    Args:
        num_ps: number of parameter servers.
        num_workers: number of workers, at least 1.
        backend: "threads" of this process start immediately, but cannot be killed, and TensorFlow
            keeps their servers and ports until this process ends. "processes" start one process
            for each task; none outlives this process.
        chief: whether there is a task `chief`; otherwise worker 0 is the chief.
        evaluator: whether there is an evaluator.
        coordinator: for a ClusterCoordinator: there is a chief, only the chief runs your function,
            and the workers are servers.
        surroundings: the environment of the processes.
        grace: seconds between SIGTERM and SIGKILL when tfdist ends a process; and for the threads
            and exit handlers of a process whose function has returned.

    Raises:
        ConfigError: a parameter is wrong.
        ModuleNotFoundError: TensorFlow is not installed.
    """
    require_tensorflow("tfdist.local_cluster")
    shape = Shape(num_ps, num_workers, chief, evaluator, coordinator)
    if surroundings is None:
        surroundings = Surroundings()
    elif not isinstance(surroundings, Surroundings):
        raise ConfigError("surroundings", surroundings, "must be Surroundings, or None")
    return LocalCluster(shape, backend, surroundings, grace=grace)
