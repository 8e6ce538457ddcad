"""Synchronous training with a `MultiWorkerMirroredStrategy`: an all-reduce in each step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import tensorflow as tf

from tfdist.data.padding import any_replica_has_value, endless_batches
from tfdist.repro.case import Actor
from tfdist.repro.toy import BATCH, share

_UNEVEN, _EVEN = [2, 4], [4, 4]  # batches of each trainer
_FAULT_AFTER = 2  # steps


class _Model:
    """A model that all trainers train together."""

    def __init__(self, **options: Any) -> None:
        communication = tf.distribute.experimental.CommunicationOptions(**options)
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=communication
        )
        with self.strategy.scope():
            self.slope = tf.Variable(0.0)
            self.steps = tf.Variable(0, dtype=tf.int64)

    def update(self, number: Any, weight: Any = 1.0) -> None:
        """Takes a step; call it in `strategy.run`."""
        x = tf.cast(number, tf.float32) / 64
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(weight * tf.square(self.slope * x - 3 * x))
        replica = tf.distribute.get_replica_context()
        gradient = replica.all_reduce("SUM", tape.gradient(loss, self.slope))
        self.slope.assign_sub(0.01 * gradient)
        self.steps.assign_add(1)

    def train(self, actor: Actor, batches: Any, after: Callable[[int], None] | None = None) -> None:
        """Trains until this trainer's own iterator ends."""
        step = tf.function(lambda number: self.strategy.run(self.update, args=(number,)))
        for count, number in enumerate(batches, 1):
            step(number)
            actor.step(self.strategy.experimental_local_results(number)[0].numpy())
            if after is not None:
                after(count)

    def train_padded(
        self,
        actor: Actor,
        data: tf.data.Dataset,
        after: Callable[[int], None] | None = None,
        steps: int | None = None,
    ) -> None:
        """Trains until no trainer has data left."""
        batches = endless_batches(data, BATCH, steps=steps)
        iterator = iter(self.strategy.distribute_datasets_from_function(lambda _: batches))

        def step(number: Any, weight: Any, has_value: Any) -> Any:
            self.update(number, weight)
            return number, weight, any_replica_has_value(has_value)

        run = tf.function(lambda: self.strategy.run(step, args=next(iterator)))
        more = True
        while more:
            number, weight, more = run()
            actor.step(number.numpy()[weight.numpy() > 0])
            if after is not None:
                after(int(self.steps.numpy()))
        # A step may end for one trainer while the other still receives its result. If the first
        # exits then, the other fails ("Socket closed", 2 of 40 runs). So both take one more step,
        # whose end may be lost.
        with suppress(tf.errors.UnavailableError):
            run()


def short_one_stays(actor: Actor) -> None:
    """The chief has 2 batches and the worker 4; the chief leaves the loop, but does not exit."""
    _leave_early(actor, _Model())


def short_one_stays_fixed(actor: Actor) -> None:
    """Both trainers take 4 steps."""
    _Model().train_padded(actor, share(actor.task, _UNEVEN))


def with_timeout(actor: Actor) -> None:
    """The same job, with a timeout of 2 s for each all-reduce."""
    _leave_early(actor, _Model(timeout_seconds=2))


def with_timeout_fixed(actor: Actor) -> None:
    """Both trainers take 4 steps, and a timeout can only mean that a trainer is lost."""
    _Model(timeout_seconds=20).train_padded(actor, share(actor.task, _UNEVEN))


def distributed_dataset(actor: Actor) -> None:
    """TensorFlow itself checks before each step whether any trainer has data left."""
    model = _Model()
    data = share(actor.task, _UNEVEN).batch(BATCH)
    model.train(actor, model.strategy.distribute_datasets_from_function(lambda _: data))
    actor.announce(
        f"finished {actor.task.name}"
    )  # else the other may miss the end of the last step
    for name in actor.task.trainers:
        actor.wait_for(f"finished {name}")


def distributed_dataset_fixed(actor: Actor) -> None:
    """The step itself checks whether any trainer has data left; all batches have one size."""
    _Model().train_padded(actor, share(actor.task, _UNEVEN))


def infinite_and_finite(actor: Actor) -> None:
    """TensorFlow checks the worker's finite dataset for its end, but not the infinite one."""
    model = _Model()
    data = share(actor.task, _UNEVEN).batch(BATCH)
    if actor.task.is_chief:
        data = data.repeat()
    model.train(actor, model.strategy.distribute_datasets_from_function(lambda _: data))


def infinite_and_finite_fixed(actor: Actor) -> None:
    """Both check in each step; `steps` says how many batches of the infinite dataset count."""
    model = _Model()
    data, steps = share(actor.task, _UNEVEN), None
    if actor.task.is_chief:
        data, steps = data.repeat(), _UNEVEN[0]
    model.train_padded(actor, data, steps=steps)


def peer_killed(actor: Actor) -> None:
    """Worker 1 is killed after 2 steps; TensorFlow raises after 10 s without its heartbeat."""
    _train_with_fault(actor, "kill")


def peer_killed_fixed(actor: Actor) -> None:
    """Both are started again, as by `tfdist run --restart`, and resume from the checkpoint."""
    folder = actor.folder / "model"
    saved = tf.train.latest_checkpoint(str(folder / "worker:0"))
    if saved and not actor.task.is_chief:
        actor.fault("kill", "worker:0")
        actor.fault("restart", "worker:0")
    model = _Model()
    checkpoint = tf.train.Checkpoint(slope=model.slope, steps=model.steps)
    if saved:
        checkpoint.restore(saved).assert_consumed()
    # All trainers must take part in saving, each in a folder of its own.
    saver = tf.train.CheckpointManager(checkpoint, str(folder / actor.task.name), max_to_keep=1)

    def save(step: int) -> None:
        saver.save()
        if step == _FAULT_AFTER and not saved:
            actor.announce(f"saved {actor.task.name}")
            if actor.task.is_chief:
                actor.wait_for("saved worker:1")
                actor.fault("kill", "worker:1")

    data = share(actor.task, _EVEN).skip(BATCH * model.steps.numpy())
    try:
        model.train_padded(actor, data, save)
    except tf.errors.UnavailableError:
        actor.fault("restart", "worker:1")
        actor.wait_for("kill worker:0")


def peer_stopped(actor: Actor) -> None:
    """Worker 1 is stopped after 2 steps."""
    _train_with_fault(actor, "pause")


def peer_stopped_fixed(actor: Actor) -> None:
    """Worker 1 is resumed before its heartbeat is missed."""

    def resume(step: int) -> None:
        if step == _FAULT_AFTER and actor.task.is_chief:
            actor.fault("pause", "worker:1")
            actor.fault("resume", "worker:1")

    _Model().train_padded(actor, share(actor.task, _EVEN), resume)


def _leave_early(actor: Actor, model: _Model) -> None:
    model.train(actor, share(actor.task, _UNEVEN).batch(BATCH))
    actor.leave()
    actor.wait_for("ended worker:1")


def _train_with_fault(actor: Actor, fault: str) -> None:
    def after(step: int) -> None:
        if step == _FAULT_AFTER and not actor.task.is_chief:
            actor.fault(fault, actor.task.name)

    _Model().train(actor, share(actor.task, _EVEN).batch(BATCH), after)
