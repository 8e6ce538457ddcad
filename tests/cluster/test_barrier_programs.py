"""The barrier in Keras, MonitoredTrainingSession and tf.function."""

import numpy as np
import pytest
import tensorflow as tf

import tfdist
import tfdist.train.graph
from tfdist.train.hooks import WaitAtEnd, WaitEverySteps


def train_keras(task):
    """An eager loop over a Keras model; the barrier has a private graph."""
    model = tf.keras.Sequential([tf.keras.layers.Input([2]), tf.keras.layers.Dense(1)])
    optimizer = tf.keras.optimizers.SGD(0.1)
    features, target = np.ones([4, 2], np.float32), np.ones([4, 1], np.float32)
    with tfdist.Barrier(task, "epoch", timeout=20) as barrier:
        losses = []
        for _ in range(3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(features) - target))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            losses.append(float(loss))
            assert barrier.wait() == task.rank
            assert tf.executing_eagerly()
    return losses


def test_an_eager_keras_loop_waits_and_stays_eager(make_cluster):
    for losses in make_cluster(1, 2, backend="processes").run(train_keras, timeout=60):
        assert losses[-1] < losses[0]


def train_monitored(task, ends, steps):
    """Counts on the ps in a MonitoredTrainingSession, for `ends[rank]` steps."""
    with tfdist.worker_server(task) as target, tf.Graph().as_default():
        with tf.compat.v1.device(tfdist.train.graph.device_setter(task)):
            counter = tf.compat.v1.train.get_or_create_global_step()
            count = counter.assign_add(1)
        together = tfdist.Barrier(task, "steps", timeout=20)
        end = tfdist.Barrier(task, "end", timeout=20)
        initialized = tfdist.Barrier(task, "initialized", timeout=20)
        if not task.is_chief:
            initialized.wait()  # else TensorFlow looks again only after 30 s
        config = tf.compat.v1.ConfigProto(device_filters=task.device_filters)
        with tf.compat.v1.train.MonitoredTrainingSession(
            target,
            is_chief=task.is_chief,
            config=config,
            hooks=[WaitEverySteps(together, steps), WaitAtEnd(end)],
        ) as session:
            if task.is_chief:
                initialized.wait()
            for _ in range(ends[task.rank]):
                session.run(count)
            # Without the hooks a fast trainer would leave long before a slow one.
        return int(end.generation), together.generation


def test_monitored_sessions_stay_together_and_leave_together(make_cluster):
    cluster = make_cluster(1, 2, backend="threads")
    results = cluster.run(lambda task: train_monitored(task, ends=(4, 6), steps=2), timeout=80)
    # Both passed the end once; only the trainer with more steps passed the steps' barrier again.
    assert [end for end, _ in results] == [2, 2]
    assert max(generation for _, generation in results) == 4


def test_a_wait_every_0_steps_is_refused():
    with pytest.raises(tfdist.ConfigError, match="at least 1"):
        WaitEverySteps(None, 0)


def test_a_wait_inside_a_function_is_refused_with_the_reason(make_cluster):
    cluster = make_cluster(1, 1, backend="threads")
    with tfdist.Barrier(cluster.trainers[0], "inside") as barrier:

        @tf.function
        def step():
            barrier.wait(1)

        with pytest.raises(tfdist.BarrierError, match=r"use coordinator.join\(\)"):
            step()
