"""Tasks as threads of this process: up at once, for tests and notebooks.

TensorFlow cannot stop a server inside its process. The servers, their threads and their ports
stay until the process ends; a cluster that runs again starts new ones, at new ports.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace

import tensorflow as tf

from tfdist.cluster import server
from tfdist.cluster.dispatch import learn_types
from tfdist.cluster.environment import SERVER_ENVIRONMENT
from tfdist.errors import ClusterError, StartTimeout
from tfdist.runs.outcome import Outcome
from tfdist.task import Task

_START_SECS = 10.0
_LEAVE_SECS = 1.0


class ThreadTask:
    """A task whose function runs in a thread."""

    def __init__(
        self,
        task: Task,
        function: Callable[..., object],
        ended: Callable[[ThreadTask, Outcome], None],
        *,
        serves: bool,
    ) -> None:
        self.task, self._serves = task, serves
        self._function, self._ended = function, ended
        learn_types()
        os.environ.update(SERVER_ENVIRONMENT)  # TensorFlow reads it when a server starts
        if serves:
            # Here rather than in the thread, so that trainers find it.
            server.start_server(task, server_config(task))
            serving = threading.Event()
            self._function = functools.partial(function, serving=serving.set)
        self._terminated = False
        self._thread = threading.Thread(target=self._run, name=task.name, daemon=True)
        self._thread.start()
        if serves and not serving.wait(_START_SECS):
            raise StartTimeout([task.name], _START_SECS, "Its server is up, but it does not serve.")

    def send_signal(self, number: signal.Signals) -> None:
        """Raises ClusterError: a thread gets no signals."""
        raise ClusterError(f"{self.task.name}: a thread cannot be paused; use the processes")

    def wait(self, timeout: float) -> bool:
        """Whether it has ended; blocks until then, for `timeout` seconds at most."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def kill(self) -> None:
        """Makes one that serves leave; a trainer has to end by itself.

        Raises:
            ClusterError: it still runs; a thread cannot be killed.
        """
        self._terminated = True
        if self._serves and self._thread.is_alive():
            server.dismiss(self.task)
        if not self.wait(_LEAVE_SECS):
            raise ClusterError(f"{self.task.name} still runs; a thread cannot be killed")

    def _run(self) -> None:
        try:
            outcome = Outcome(result=self._function(self.task))
        except SystemExit as error:
            outcome = Outcome.of_exit(error)
        except BaseException as error:
            outcome = Outcome.of_error(error)
        self._ended(self, replace(outcome, terminated=self._terminated))


def server_config(task: Task) -> tf.compat.v1.ConfigProto:
    """Threads enough for each trainer to block in an operation, and one more to free them."""
    return tf.compat.v1.ConfigProto(inter_op_parallelism_threads=len(task.trainers) + 1)
