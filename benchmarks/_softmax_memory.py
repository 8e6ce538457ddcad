"""Peak memory of a process: training with the largest table, and exact evaluation.

Each measurement has a process of its own. The kernel's VmHWM is the peak of this process alone; the
peak of `getrusage` would begin with that of the process that started it.
"""

from __future__ import annotations

from pathlib import Path

import psutil

import tfdist
from benchmarks._barrier_peers import QUIET
from benchmarks._softmax_peers import BATCH, DIM, FEW

TRAINING_CLASSES, EVALUATION_CLASSES = 10_000_000, 1_000_000
# The table, its slots, a temporary tensor, TensorFlow, and some air for others.
_BYTES_NEEDED = 9e9
_FLOAT_BYTES = 4
_WARM_UP_CLASSES = 1_000


def fits() -> bool:
    """Whether the machine has enough memory for the largest table now."""
    return psutil.virtual_memory().available >= _BYTES_NEEDED


def table_bytes(classes: int) -> int:
    """Bytes of the weights and the bias of a table; Adagrad's slots have as many."""
    return classes * (DIM + 1) * _FLOAT_BYTES


def measure(limit_secs: float) -> tuple[float, float | None]:
    """Both at the same time, each in a process.

    Returns:
        Megabytes that the exact evaluation of a table needs, above the table itself. And the peak
        of a process that trains the largest table, by the table and its slots; None if the machine
        has not enough memory for it now.

    Raises:
        TfdistError: a process failed, or it took longer than `limit_secs`.
    """
    num_processes = 2 if fits() else 1
    with tfdist.local_cluster(0, num_processes, backend="processes", surroundings=QUIET) as shell:
        (peak, before), *training = shell.run(_measured, timeout=limit_secs)
    above = (peak - before - table_bytes(EVALUATION_CLASSES)) / 1e6
    if not training:
        return above, None
    return above, training[0][0] / (2 * table_bytes(TRAINING_CLASSES))


def _measured(task: tfdist.Task) -> tuple[int, int]:
    """Bytes of memory: the peak, and what the process had before the table."""
    work, classes = ((_evaluate, EVALUATION_CLASSES), (_train, TRAINING_CLASSES))[task.rank]
    work(_WARM_UP_CLASSES)  # imports modules and starts threads
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    work(classes)
    return _status("VmHWM"), before


def _train(classes: int) -> None:
    """Steps of a tf.function, as in TensorFlow 2."""
    import tensorflow as tf

    from tfdist.nn import Adagrad, ClassTable, LogUniformSampler, sampled_softmax

    table = ClassTable(classes, DIM)
    sampler, optimizer = LogUniformSampler(classes), Adagrad(0.1)
    optimizer.build([table])
    inputs = tf.random.normal([BATCH, DIM])

    @tf.function
    def step(labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            losses = sampled_softmax(table, inputs, labels, sampler.sample(FEW, labels))
            loss = tf.reduce_mean(losses)
        variables = table.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    for number in range(20):
        step(sampler.draw(BATCH, tf.constant([number, 1], tf.int64)))


def _evaluate(classes: int) -> None:
    import tensorflow as tf

    from tfdist.nn import ClassTable, LogUniformSampler, perplexity

    table = ClassTable(classes, DIM)
    labels = LogUniformSampler(classes).draw(BATCH, tf.constant([1, 1], tf.int64))
    perplexity(table, [(tf.random.normal([BATCH, DIM]), labels)])


def _status(name: str) -> int:
    """Bytes, from the lines of /proc/self/status."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")
