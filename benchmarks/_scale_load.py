"""The messages of a trainer as TensorFlow operations, and the session that runs them.

Each run makes new values to send, so that TensorFlow cannot treat them as constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tfdist
from tfdist.ps.session import retry_duplicate_request
from tfdist.task import ClusterSpec, session_target

ROW_FLOATS = 32
ROW_BYTES = 4 * ROW_FLOATS
_TABLE_ROWS = 50_000
_PS = "/job:ps/task:0/device:CPU:0"

BATCH = 8  # records between two commits
_LEASE_SECS = 600.0


def split_queue(
    task: tfdist.Task, name: str, splits: int, batches: int
) -> tfdist.splits.SplitQueue:
    """A queue with `splits` splits of `batches` batches, in the default graph."""
    length = batches * BATCH
    ranges = [(start, start + length) for start in range(0, splits * length, length)]
    return tfdist.splits.SplitQueue(task, name, ranges, batch_size=BATCH, lease_secs=_LEASE_SECS)


def named(cluster_spec: ClusterSpec, parties: int, present: int) -> list[tfdist.Task]:
    """The first `present` of `parties` trainers; the addresses are invalid and never used."""
    workers = [f"trainer{rank}.invalid:2222" for rank in range(parties)]
    spec = {"ps": cluster_spec["ps"], "worker": workers}
    return [tfdist.Task("worker", rank, spec) for rank in range(present)]


class Variables:
    """Variables on ps 0, and the messages that a trainer exchanges with them.

    Args:
        name: prefix of their names, the same on every trainer.
        device: of the trainer's server.
        sizes: bytes of the dense variables.
    """

    def __init__(self, name: str, device: str, sizes: Sequence[int]) -> None:
        import tensorflow as tf

        self._device = device
        with tf.device(_PS):
            self._dense = [
                _zeros(f"{name}_dense{number}", [size // 4]) for number, size in enumerate(sizes)
            ]
            self._table = _zeros(f"{name}_table", [_TABLE_ROWS, ROW_FLOATS])
            self._counter = _zeros(f"{name}_counter", [])

    def pull(self, number: int) -> Any:
        """Fetches a dense variable to the trainer."""
        import tensorflow as tf

        variable = self._dense[number]
        with tf.device(_PS):
            value = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=tf.float32)
        with tf.device(self._device):
            return tf.identity(value).op

    def push(self, number: int) -> Any:
        """Sends a gradient of a dense variable, which updates it."""
        import tensorflow as tf

        variable = self._dense[number]
        gradient = self._made(variable.shape)
        with tf.device(_PS):
            return tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.handle, alpha=tf.constant(0.01), delta=gradient
            )

    def lookup(self, ids: Any) -> Any:
        """Fetches rows of the table."""
        import tensorflow as tf

        with tf.device(_PS):
            rows = tf.raw_ops.ResourceGather(
                resource=self._table.handle, indices=ids, dtype=tf.float32
            )
        with tf.device(self._device):
            return tf.identity(rows).op

    def scatter(self, ids: Any) -> Any:
        """Sends gradients of rows, which update them."""
        import tensorflow as tf

        gradient = self._made([ids.shape[0], ROW_FLOATS])
        with tf.device(_PS):
            return tf.raw_ops.ResourceScatterSub(
                resource=self._table.handle, indices=ids, updates=gradient
            )

    def ids(self, rows: int) -> Any:
        """Random row numbers, drawn on the trainer."""
        import tensorflow as tf

        with tf.device(self._device):
            return tf.random.uniform([rows], maxval=_TABLE_ROWS, dtype=tf.int64)

    def count(self) -> Any:
        """The smallest update."""
        import tensorflow as tf

        with tf.device(_PS):
            return tf.raw_ops.AssignAddVariableOp(
                resource=self._counter.handle, value=tf.constant(1.0)
            )

    def step(self, rows: int) -> list[Any]:
        """A whole step: pulls all variables, looks up rows, then pushes and scatters."""
        import tensorflow as tf

        numbers, ids = range(len(self._dense)), self.ids(rows)
        pulled = [*map(self.pull, numbers), self.lookup(ids)]
        with tf.control_dependencies(pulled):
            return [*map(self.push, numbers), self.scatter(ids)]

    def _made(self, shape: Any) -> Any:
        import tensorflow as tf

        with tf.device(self._device):
            return tf.fill(shape, tf.random.uniform([]))


def nothing_on(ps: int, device: str) -> list[Any]:
    """An empty operation on each of `ps` ps and on the trainer, as in a real run."""
    import tensorflow as tf

    operations = []
    for place in (*(f"/job:ps/task:{index}" for index in range(ps)), device):
        with tf.device(f"{place}/device:CPU:0"):
            operations.append(tf.no_op())
    return operations


class StraightToPs:
    """Runs an empty operation on a ps, in the same way as barriers and splits do.

    Args:
        address: of the ps.
    """

    def __init__(self, address: str) -> None:
        import tensorflow as tf

        with tf.Graph().as_default(), tf.device(_PS):
            operation = tf.no_op()
            config = tf.compat.v1.ConfigProto(device_filters=["/job:ps/task:0"])
            config.graph_options.rewrite_options.disable_meta_optimizer = True
            self._session = tf.compat.v1.Session(session_target(address), config=config)
        self._run = self._session.make_callable(operation)

    def run(self) -> None:
        """Sends one message and waits for its answer."""
        retry_duplicate_request(self._run)

    def close(self) -> None:
        """Closes the session."""
        self._session.close()


def open_session(target: str, device: str) -> Any:
    """A session for the default graph, which shares the state of the ps with other sessions."""
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(device_filters=["/job:ps", device])
    return tf.compat.v1.Session(target, config=config)


def _zeros(name: str, shape: Sequence[int]) -> Any:
    import tensorflow as tf

    zeros = tf.compat.v1.zeros_initializer()
    return tf.compat.v1.get_variable(name, shape, initializer=zeros, use_resource=True)
