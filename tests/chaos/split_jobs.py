"""What the trainers of tests/chaos/test_split_queue_faults.py run."""

import pathlib

import tensorflow as tf

import tfdist
from tfdist.train import graph

RECORDS, BATCH = 9000, 7
SPLITS = [(start, min(start + 100, RECORDS)) for start in range(0, RECORDS, 100)]


def visit_all(task, folder, lease_secs):
    """Counts the visits of each record on the ps, in the run of the commit; returns what came out.

    Leaves a file in `folder` when it has its first split.
    """
    with tfdist.trainer_server(task) as target, tf.Graph().as_default():
        queue = tfdist.SplitQueue(
            task, "all", SPLITS, batch_size=BATCH, lease_secs=lease_secs, max_retries=100
        )
        tf.compat.v1.train.get_or_create_global_step()
        with tf.device("/job:ps/task:0"):
            visits = tf.compat.v1.get_variable(
                "visits", [RECORDS], tf.int32, tf.zeros_initializer(), use_resource=True
            )
        begin, end = (tf.compat.v1.placeholder(tf.int32, []) for _ in range(2))
        batch = tf.range(begin, end)
        update = visits.scatter_add(tf.IndexedSlices(tf.ones_like(batch), batch))
        commit = queue.commit_after([update])
        with graph.session(task, target) as session:
            for split in queue:
                pathlib.Path(folder, task.name).touch()
                try:
                    while not split.finished:
                        fed = {begin: split.offset, end: split.reserved, **split.feed}
                        split.committed(session.run(commit, fed))
                except tfdist.SplitLost:
                    continue  # the zombie claims another one
            report = queue.report()
            result = session.run(visits).tolist(), report
            queue.close()
            return result
