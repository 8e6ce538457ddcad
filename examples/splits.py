"""Dynamic sharding: three workers read the same files, one of them slowly.

    python examples/splits.py

Each worker claims splits of the files' records from a queue on the ps, and commits each batch in
the same run as its update. So the slow worker reads less, all workers end together, and every
record counts once.
"""

import os
import tempfile
import time
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import, which logs

import tensorflow as tf

import tfdist

RECORDS, BATCH, SPLIT = 5_000, 20, 200
SLOW, SLEEP_SECS = "worker:1", {True: 0.08, False: 0.01}  # per batch


def write_files(folder: str) -> None:
    """Writes three files of very different sizes."""
    number = 0
    for part, share in enumerate([0.1, 0.3, 0.6]):
        with tf.io.TFRecordWriter(f"{folder}/part-{part}") as writer:
            for _ in range(int(share * RECORDS)):
                writer.write(b"%d" % number)
                number += 1


def train(task: tfdist.Task, index: str) -> tuple[int, float, tfdist.splits.SplitReport]:
    """Reads until no split is left; returns the records read, the end time, the queue's report."""
    files = tfdist.data.FileSet.load(index)
    with tfdist.worker_server(task) as target, tfdist.train.replica_graph(task):
        queue = tfdist.splits.SplitQueue(
            task, "train", files.splits(SPLIT), batch_size=BATCH, timeout=60
        )
        batches = tfdist.splits.SplitBatches(queue, files)
        _, record = batches.batch
        total = tf.compat.v1.get_variable("total", initializer=0.0)
        number = tf.strings.to_number(tf.where(batches.weight > 0, record, "0"))
        commit = queue.commit_after([total.assign_add(tf.reduce_sum(number))])
        with tfdist.train.session(task, target) as session:
            tfdist.Barrier(task, "start", timeout=60).wait()
            read = 0
            for split in batches.splits(session):
                while not split.finished:
                    read += len(split.next_batch)
                    split.run(session, commit)
                    time.sleep(SLEEP_SECS[task.name == SLOW])
            return read, time.time(), queue.report()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="splits-") as folder:
        write_files(folder)
        index = f"{folder}/index.json"
        tfdist.data.FileSet.scan(f"{folder}/part-*").save(index)
        with tfdist.local_cluster(num_ps=1, num_workers=3, backend="processes") as cluster:
            results = cluster.run(partial(train, index=index), timeout=120)
    for task, (read, _, _) in zip(cluster.trainers, results, strict=True):
        print(f"{task.name} read {read} records" + (", slowly" if task.name == SLOW else ""))
    ends = [end for _, end, _ in results]
    print(f"all ended within {max(ends) - min(ends):.2f} s")
    print(tfdist.data.Ledger(results[0][2].committed).audit(RECORDS))


if __name__ == "__main__":
    main()
