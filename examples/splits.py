"""Splits that follow the fast workers: three workers read the same files, one of them slowly.

    python examples/splits.py

Each worker claims splits of the files' records from a queue on the ps, and commits each batch in
the run of its update. So who is slow reads less, all end together, and every record counts once.
"""

import os
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow says what it has not found

import tensorflow as tf

import tfdist
from tfdist.train import graph

RECORDS, BATCH, SPLIT = 5_000, 20, 200
SLOW, SLEEP_SECS = "worker:1", {True: 0.08, False: 0.01}  # a batch


def write_files(folder: str) -> None:
    """Three files of very different sizes."""
    number = 0
    for part, share in enumerate([0.1, 0.3, 0.6]):
        with tf.io.TFRecordWriter(f"{folder}/part-{part}") as writer:
            for _ in range(int(share * RECORDS)):
                writer.write(b"%d" % number)
                number += 1


def train(task: tfdist.Task, index: str) -> tuple[int, float, tfdist.splits.SplitReport]:
    """Reads until nothing is left; returns how much, when it ended, and what the queue knows."""
    files = tfdist.data.FileSet.load(index)
    with tfdist.worker_server(task) as target, tf.Graph().as_default():
        queue = tfdist.splits.SplitQueue(
            task, "train", files.splits(SPLIT), batch_size=BATCH, timeout=60
        )
        batches = tfdist.splits.SplitBatches(task, queue, files)
        with tf.compat.v1.device(graph.device_setter(task)):
            _, record = batches.batch
            total = tf.compat.v1.get_variable("total", initializer=0.0, use_resource=True)
            number = tf.strings.to_number(tf.where(batches.weight > 0, record, "0"))
            update = total.assign_add(tf.reduce_sum(number))
        commit = queue.commit_after([update])
        with graph.session(task, target) as session:
            tfdist.Barrier(task, "start", timeout=60).wait()
            read = 0
            for split in batches.splits(session):
                while not split.finished:
                    before = split.offset
                    split.committed(session.run(commit, split.feed))
                    read += split.offset - before
                    time.sleep(SLEEP_SECS[task.name == SLOW])
            return read, time.time(), queue.report()


def main() -> None:
    folder = tempfile.mkdtemp(prefix="splits-")
    write_files(folder)
    index = str(Path(folder, "index.json"))
    tfdist.data.FileSet.scan(f"{folder}/part-*").save(index)
    with tfdist.local_cluster(1, 3, backend="processes") as cluster:
        results = cluster.run(partial(train, index=index), timeout=120)
    for task, (read, _, _) in zip(cluster.trainers, results, strict=True):
        print(f"{task.name} read {read} records" + (", slowly" if task.name == SLOW else ""))
    ends = [end for _, end, _ in results]
    print(f"all ended within {max(ends) - min(ends):.2f} s")
    print(tfdist.data.Ledger(results[0][2].read).audit(RECORDS))


if __name__ == "__main__":
    main()
