"""A barrier with very many parties in one process: all but a few have resigned."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

import tfdist
from tfdist.barrier import vector
from tfdist.barrier.rules import RESIGNED
from tfdist.ps.session import PS_DEVICE
from tfdist.task import session_target

_WAIT_SECS = 60.0


def barriers(tasks: Sequence[tfdist.Task], name: str, kind: str, opened: ExitStack) -> list[Any]:
    """A barrier for each of the tasks, which have the lowest ranks; all other ranks have resigned.

    Their resignation is written in one assignment, because each `resign` would need a session. The
    cost of an arrival depends on the length of the state, not on how many parties have resigned.
    """
    made = [
        opened.enter_context(tfdist.Barrier(task, name, kind=kind, timeout=_WAIT_SECS))
        for task in tasks
    ]
    if len(tasks[0].trainers) > len(tasks):
        _resign_rest(tasks[0], name, len(tasks))
    return made


def _resign_rest(task: tfdist.Task, name: str, present: int) -> None:
    import tensorflow as tf

    parties = len(task.trainers)
    with tf.Graph().as_default() as graph, tf.device(PS_DEVICE):
        state = tf.raw_ops.VarHandleOp(
            dtype=tf.int64, shape=None, shared_name=f"tfdist/barrier/{name}/state"
        )
        value = tf.raw_ops.ReadVariableOp(resource=state, dtype=tf.int64)
        fed = tf.compat.v1.placeholder(tf.int64)
        store = tf.raw_ops.AssignVariableOp(resource=state, value=fed)
    config = tf.compat.v1.ConfigProto(device_filters=["/job:ps/task:0"])
    target = session_target(task.cluster_spec["ps"][0])
    with tf.compat.v1.Session(target, graph=graph, config=config) as session:
        after = session.run(value)
        for rank in range(present, parties):
            after[vector.place("arrived", rank, parties)] = RESIGNED
            after[vector.place("keys", rank, parties)] = 0
        for field in ("expected", "missing"):
            after[vector.place(field, 0, parties)] = present
        session.run(store, {fed: np.array(after, np.int64)})
