"""Tasks as threads of this process, which start immediately: for tests and notebooks.

TensorFlow cannot stop a server inside its process. The servers, their threads and their ports
stay until the process ends; a second run of a cluster starts new servers at new ports.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import tensorflow as tf
from tensorflow.python.util import dispatch

from tfdist.cluster import server
from tfdist.cluster.server import SERVER_ENVIRONMENT
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
            # Here rather than in the thread, so that trainers find a listening server.
            server.start_server(task, server_config(task))
            serving = threading.Event()
            self._function = functools.partial(function, serving=serving.set)
        self._terminated = False
        self._thread = threading.Thread(target=self._run, name=task.name, daemon=True)
        self._thread.start()
        if serves and not serving.wait(_START_SECS):
            raise StartTimeout(
                [task.name], _START_SECS, "Its server listens, but serves no requests yet."
            )

    def send_signal(self, number: signal.Signals) -> None:
        """Raises ClusterError: a thread receives no signals."""
        raise ClusterError(
            f'{self.task.name} is a thread, which cannot be paused; use backend="processes"'
        )

    def wait(self, timeout: float) -> bool:
        """True once the thread has ended; blocks until then, for `timeout` seconds at most."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def kill(self) -> None:
        """Dismisses a server; waits 1 s for a trainer to end by itself.

        Raises:
            ClusterError: the task still runs; a thread cannot be killed.
        """
        self._terminated = True
        if self._serves and self._thread.is_alive():
            server.dismiss(self.task)
        if not self.wait(_LEAVE_SECS):
            raise ClusterError(f"{self.task.name} is still running; a thread cannot be killed")

    def _run(self) -> None:
        try:
            outcome = Outcome(result=self._function(self.task))
        except SystemExit as error:
            outcome = Outcome.of_exit(error)
        except BaseException as error:
            outcome = Outcome.of_error(error)
        self._ended(self, replace(outcome, terminated=self._terminated))


def server_config(task: Task) -> tf.compat.v1.ConfigProto:
    """One thread for each trainer, which may block in an operation, and one to release them."""
    return tf.compat.v1.ConfigProto(inter_op_parallelism_threads=len(task.trainers) + 1)


@functools.cache
def learn_types() -> None:
    """Makes TensorFlow cache its dispatch of the usual types, before there are threads.

    Most TensorFlow functions first check whether the types of their arguments select another
    implementation. They store the arguments, which they do not own, where all threads share them,
    and cache the answer for each type. For a new type they run Python code; meanwhile another
    thread may store its own arguments there and release them. Then the first thread reads freed
    memory, and the process ends with a segmentation fault. (TensorFlow 2.21: 18 of some 3,300
    processes in which two threads made their first barrier. `PythonAPIDispatcher::Dispatch` in
    python/framework/python_api_dispatcher.cc; tensorflow#125641 concerns the same place.)

    Other types remain a risk, and so does an eager tensor, which cannot be made without starting
    the eager runtime.
    """
    with tf.Graph().as_default():
        values = _values()
        # A private name, because the public functions reach only some of the checkers. If it is
        # missing nothing can be done, and a test fails.
        for checker in getattr(dispatch, "_is_instance_checker_cache", {}).values():
            for value in values:
                checker.Check(value)


def _values() -> list[object]:
    """A value of each usual type."""
    tensor = tf.constant([1.0])
    return [
        *(None, True, 1, 1.0, 1j, "", b"", [], (), {}, np.zeros(1)),
        *(kind(0) for kind in (np.bool_, np.int32, np.int64, np.float32, np.float64, np.str_)),
        *(tf.float32, tf.TensorShape([]), tensor, tensor.op),
        tf.Variable(tensor),
        tf.compat.v1.get_variable("one", [1], use_resource=False),
        tf.compat.v1.get_variable("parts", [2], partitioner=tf.compat.v1.fixed_size_partitioner(2)),
        tf.IndexedSlices(tensor, tf.constant([0])),
        tf.SparseTensor([[0]], tensor, [1]),
        tf.RaggedTensor.from_row_lengths(tensor, [1]),
    ]
