"""The fix of most cases: data without an end, and an end that all agree on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfdist.data.padding import endless_batches
from tfdist.repro.actor import Actor
from tfdist.repro.toy import BATCH, global_step, share
from tfdist.train.epoch import Epoch, EpochResult


class PaddedShare:
    """This trainer's examples, in batches that never end; make it in the graph.

    Args:
        actor: the trainer.
        batches: how many batches each rank has.

    Attributes:
        number: the examples of a batch.
        weight: 1 for each that is one, and 0 for padding.
        has_value: whether there is one.
    """

    def __init__(self, actor: Actor, batches: Sequence[int]) -> None:
        self._actor, self._expected = actor, BATCH * sum(batches)
        data = endless_batches(share(actor.task, batches), BATCH)
        self._iterator = tf.compat.v1.data.make_initializable_iterator(data)
        self.number, self.weight, self.has_value = self._iterator.get_next()
        self._count = global_step(actor.task)

    def train(
        self,
        session: Any,
        step: Any,
        *,
        together: bool = False,
        ended: Callable[[], object] = lambda: None,
    ) -> None:
        """Trains until all have ended; then the chief saves.

        Args:
            session: in which the variables have their values.
            step: the operation that trains on a batch.
            together: whether all take as many steps as the one that has most.
            ended: called when this trainer has nothing left.
        """

        def save(result: EpochResult) -> None:
            result.check()
            self._actor.saved(session.run(self._count))

        task, has = self._actor.task, True
        with Epoch(task, "epoch", expected=self._expected, action=save, timeout=30) as epoch:
            session.run(self._iterator.initializer)
            while epoch.should_continue(has) if together else has:
                fetches = [step, self.number, self.weight, self.has_value]
                _, number, weight, has = session.run(fetches)
                self._actor.step(number[weight > 0])
                epoch.read(number[weight > 0])
            ended()
            epoch.finish()
            self._actor.steps_in_all(session.run(self._count))
