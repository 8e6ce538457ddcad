"""What the trainers of tests/chaos/test_split_queue_faults.py run."""

import json
import pathlib
import random
import time

import tensorflow as tf

import tfdist
from tfdist.train import checkpoint, graph

RECORDS, BATCH, EPOCHS = 2000, 7, 2
SLOW_SECS = 0.02  # per batch
START_SECS = 20.0  # that a trainer waits at its start for a ps, which may be lost
SPLITS = [(start, min(start + 100, RECORDS)) for start in range(0, RECORDS, 100)]


def read_all(task, folder, seed, lease_secs, slow=None):
    """Trains a model that counts how often each record was read, in the run of the commit.

    Continues from the last checkpoint in `folder`. The chief saves at the end of each epoch and
    sometimes in between. Writes to `folder`, for each epoch, `epoch-N.json` with the counts and the
    report of the queue, and a file for each trainer that has claimed a split. The trainer `slow`
    waits before the update of each batch.
    """
    folder, chance = pathlib.Path(folder), random.Random(f"{seed} {task.name}")
    with tfdist.worker_server(task, timeout=START_SECS) as target, tf.Graph().as_default():
        queue = tfdist.splits.SplitQueue(
            task,
            "all",
            SPLITS,
            batch_size=BATCH,
            seed=seed,
            lease_secs=lease_secs,
            max_retries=100,
            timeout=60,
        )
        with tf.device("/job:ps/task:0"):
            tf.compat.v1.train.get_or_create_global_step()
            reads = tf.compat.v1.get_variable(
                "reads", [EPOCHS * RECORDS], tf.int32, tf.zeros_initializer(), use_resource=True
            )
        begin, end = (tf.compat.v1.placeholder(tf.int32, []) for _ in range(2))
        with tf.device(task.device):
            batch = tf.range(late(begin) if task.name == slow else begin, end)
        update = reads.scatter_add(tf.IndexedSlices(tf.ones_like(batch), batch))
        commit = queue.commit_after([update])
        saver = checkpoint.Checkpointer(folder / "model")

        def restore(session):
            saver.restore(session)
            queue.recover()

        with graph.session(task, target, restore=restore, timeout=START_SECS) as session:

            def end_epoch(result):
                report, counts = queue.report(), session.run(reads).reshape(EPOCHS, RECORDS)
                note = {"reads": counts[report.epoch - 1].tolist(), **vars(report)}
                draft = folder / "draft"
                draft.write_text(json.dumps(note))
                draft.rename(folder / f"epoch-{result.number}.json")
                saver.save(session)

            first = queue.first_epoch
            epoch = tfdist.train.Epoch(task, "all", first=first, action=end_epoch, timeout=60)
            while epoch.number <= EPOCHS:
                before = (epoch.number - 1) * RECORDS
                for split in queue.splits(epoch.number):
                    (folder / task.name).touch()
                    try:
                        while not split.finished:
                            fed = {begin: before + split.offset, end: before + split.reserved}
                            split.run(session, commit, feed_dict=fed)
                    except tfdist.SplitLostError:
                        continue  # the fenced trainer claims another split
                    if task.is_chief and chance.random() < 0.2:
                        with queue.frozen():
                            saver.save(session)
                epoch.finish()
            epoch.close()
            queue.close()


def late(value):
    """Delays the value. A process that is killed meanwhile never applies the update."""

    def wait(given):
        time.sleep(SLOW_SECS)
        return given

    return tf.ensure_shape(tf.numpy_function(wait, [value], value.dtype), [])
