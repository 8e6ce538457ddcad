"""The peak memory that `plan_keras` predicts, against that of a real training step."""

import ctypes
from pathlib import Path

import pytest

BATCHES = (8, 40)
M_MMAP_THRESHOLD = -3  # of <malloc.h>
SEQUENCE, HIDDEN, MLP = 128, 256, 1024


def test_one_more_example_costs_what_the_plan_says(make_cluster):
    # A process for each batch size: the peak of a process never falls.
    cluster = make_cluster(0, len(BATCHES), backend="processes")
    (plan, peak), (more_plan, more_peak) = cluster.run(planned_and_real, timeout=60)
    measured = more_peak - peak
    planned, saved = (more - one for one, more in zip(plan, more_plan, strict=True))
    assert measured == pytest.approx(planned, rel=0.25)
    # A plan of saved tensors alone is wrong.
    assert measured != pytest.approx(saved, rel=0.25)


def planned_and_real(task):
    """Bytes of a step with the batch of this task: the plan's peak and saved ones, and the peak."""
    import tensorflow as tf

    from tfdist.planner import plan_keras

    # Each large tensor has pages of its own, which the kernel takes back when it is freed. Without
    # this, glibc holds freed memory for later and the peak is that of its heap.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)

    weights = [
        tf.Variable(tf.random.normal(shape, stddev=0.05))
        for shape in [(HIDDEN, 3 * HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, MLP), (MLP, HIDDEN)]
    ]
    slots = [tf.Variable(tf.zeros_like(each)) for each in weights]

    def loss(x):
        """A layer of a Transformer with one head, and the mean of its squares."""
        queries, keys, values = tf.split(x @ weights[0], 3, axis=-1)
        scores = tf.nn.softmax(tf.einsum("bth,bsh->bts", queries, keys))
        x += (scores @ values) @ weights[1]
        x += tf.nn.gelu(x @ weights[2]) @ weights[3]
        return tf.reduce_mean(tf.square(x))

    @tf.function(reduce_retracing=False)
    def step(x):
        with tf.GradientTape() as tape:
            result = loss(x)
        for weight, slot, gradient in zip(
            weights, slots, tape.gradient(result, weights), strict=True
        ):
            slot.assign(0.9 * slot + gradient)
            weight.assign_sub(0.01 * slot)

    shape = (BATCHES[task.rank], SEQUENCE, HIDDEN)
    plan = plan_keras(loss, tf.TensorSpec(shape), optimizer="momentum", per_example=False)
    step(tf.random.normal((1, *shape[1:])))  # imports modules and starts threads
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    batch = tf.random.normal(shape)
    for _ in range(2):
        step(batch)
    return (plan.peak_bytes.value, plan.saved_bytes.value), status("VmHWM")


def status(name):
    """Bytes, from the lines of /proc/self/status."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
