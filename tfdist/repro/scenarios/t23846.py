"""The job of tensorflow#23846, as its author described it in 2018, on today's TensorFlow.

It has part files of examples, a sloppy parallel interleave, prefetch, batch, a parallel map of
`parse_example`, two embeddings partitioned over the ps, asynchronous updates and many epochs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.cluster.server import start_server, worker_server
from tfdist.data.padding import endless_batches
from tfdist.repro.case import Actor
from tfdist.repro.toy import in_graph
from tfdist.train import graph
from tfdist.train.epoch import Epoch

FILES_EACH, RECORDS_EACH, BATCH = 4, 24, 8  # files of a trainer, records of a file
_USERS, _ITEMS, _DIM = 200, 300, 8
_FEATURES = {
    name: tf.io.FixedLenFeature([], tf.int64) for name in ("number", "user_id", "item_id", "label")
}


@in_graph
def end_of_epoch(actor: Actor) -> None:
    """Each epoch ends with the OutOfRangeError of an iterator, as in 2018."""
    task, settings = actor.task, actor.settings
    _write_files(actor)
    place = "/job:ps/task:0" if settings.iterator_on_ps else task.device
    with tf.device(place):
        data = tf.compat.v1.data.make_initializable_iterator(
            _parsed(_records(actor).prefetch(64).batch(BATCH)), shared_name=task.name
        )
        batch = data.get_next()
    step = _updates(actor, batch, None)
    config = _config(actor)
    target = start_server(task, config).target
    # Not the session of 2018, which checks only every 30 s whether the chief is ready.
    with graph.session(task, target) as session:
        for epoch in range(settings.epochs):
            session.run(data.initializer)
            while True:
                try:
                    _, numbers = session.run([step, batch["number"]])
                except tf.errors.OutOfRangeError:
                    break
                actor.step(numbers + epoch * _examples(actor))


@in_graph
def end_of_epoch_fixed(actor: Actor) -> None:
    """Padded batches, local iterators, and epochs that all trainers end together."""
    task, settings = actor.task, actor.settings
    _write_files(actor)
    with tf.device(task.device):
        batches = endless_batches(_records(actor).map(_parse_one), BATCH)
        data = tf.compat.v1.data.make_initializable_iterator(batches)
        batch, weight, has_value = data.get_next()
    step = graph.apply_if(has_value, lambda: _updates(actor, batch, weight))
    with (
        worker_server(task, config=_config(actor)) as target,
        graph.session(task, target) as session,
        Epoch(task, "epoch", expected=_examples(actor), timeout=60) as epoch,
    ):
        for past in range(settings.epochs):
            session.run(data.initializer)
            has = True
            while has:
                _, numbers, real, has = session.run([step, batch["number"], weight, has_value])
                epoch.read(numbers[real > 0])
                actor.step(numbers[real > 0] + past * _examples(actor))
            epoch.finish().check()


def _examples(actor: Actor) -> int:
    return FILES_EACH * RECORDS_EACH * len(actor.task.trainers)


def _config(actor: Actor) -> Any:
    return tf.compat.v1.ConfigProto(inter_op_parallelism_threads=actor.settings.inter_op)


def _write_files(actor: Actor) -> None:
    """Writes this trainer's part files; the records are numbered across all trainers."""
    chance = np.random.default_rng(actor.random.randrange(2**32))
    number = actor.task.rank * FILES_EACH * RECORDS_EACH
    for part in range(FILES_EACH):
        path = actor.folder / f"{actor.task.name.replace(':', '-')}-part-{part}"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(RECORDS_EACH):
                values = {
                    "number": number,
                    "user_id": int(chance.integers(_USERS)),
                    "item_id": int(chance.integers(_ITEMS)),
                    "label": int(chance.integers(2)),
                }
                features = {
                    name: tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
                    for name, value in values.items()
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
                number += 1


def _records(actor: Actor) -> tf.data.Dataset:
    pattern = str(actor.folder / f"{actor.task.name.replace(':', '-')}-part-*")
    return tf.data.Dataset.list_files(pattern).interleave(
        tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=4, deterministic=False
    )


def _parsed(batches: tf.data.Dataset) -> tf.data.Dataset:
    return batches.map(
        lambda records: tf.io.parse_example(records, _FEATURES), num_parallel_calls=4
    )


def _parse_one(record: Any) -> Any:
    return tf.io.parse_single_example(record, _FEATURES)


def _updates(actor: Actor, batch: Any, weight: Any) -> Any:
    task = actor.task
    with tf.compat.v1.device(graph.device_setter(task)):
        step = tf.compat.v1.train.get_or_create_global_step()
        partitioner = tf.compat.v1.fixed_size_partitioner(task.num_ps)
        rows = [
            tf.nn.embedding_lookup(
                tf.compat.v1.get_variable(
                    name, [size, _DIM], partitioner=partitioner, use_resource=True
                ),
                batch[f"{name}_id"],
            )
            for name, size in (("user", _USERS), ("item", _ITEMS))
        ]
        logits = tf.reduce_sum(rows[0] * rows[1], axis=-1)
        losses = tf.nn.sigmoid_cross_entropy_with_logits(
            labels=tf.cast(batch["label"], tf.float32), logits=logits
        )
        loss = tf.reduce_sum(losses if weight is None else losses * weight)
        return tf.compat.v1.train.AdagradOptimizer(0.1).minimize(loss, global_step=step)
