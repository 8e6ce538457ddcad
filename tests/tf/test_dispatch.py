"""Threads that build graphs at the same time do not mix up their arguments."""

import subprocess
import sys
import threading

from tfdist.barrier import vector
from tfdist.barrier.operations import Crossing, Transitions
from tfdist.barrier.state import resource_names

COUNT = """
import sys
import numpy as np
import tensorflow as tf
import tfdist
from tfdist.barrier.operations import Crossing
from tfdist.barrier.state import resource_names

seen = []

def note(frame, event, argument):
    # Python that runs within the dispatch: there other threads may come in between.
    if event == "call" and frame.f_back.f_code.co_name == "op_dispatch_handler":
        if frame.f_code.co_name.startswith("__"):
            seen.append((frame.f_code.co_name, frame.f_back.f_locals["args"]))

def build():
    names = resource_names("state")
    Crossing(2, 0, has_action=False, names=names, incarnation=4).cross
    with tf.Graph().as_default():
        step = tf.compat.v1.train.get_or_create_global_step()
        partitioner = tf.compat.v1.fixed_size_partitioner(2)
        table = tf.compat.v1.get_variable("table", [9, 4], partitioner=partitioner)
        ids = tf.compat.v1.placeholder(tf.int64, [None])
        rows = tf.nn.embedding_lookup(table, ids)
        mask = tf.sequence_mask([1, 2], 3)
        sparse = tf.SparseTensor([[0, 0]], [1.0], [2, 2])
        ragged = tf.RaggedTensor.from_row_lengths([1, 2, 3], [1, 2])
        loss = tf.reduce_mean(rows * np.float32(2)) + 1.5 * tf.reduce_sum(tf.cast(mask, tf.float32))
        loss += tf.sparse.reduce_sum(sparse) + tf.cast(tf.reduce_sum(ragged), tf.float32)
        tf.compat.v1.train.AdagradOptimizer(0.1).minimize(loss, global_step=step)

def noted(run):
    sys.setprofile(note)
    run()
    sys.setprofile(None)

with tfdist.local_cluster(1, 1, backend="threads") as cluster:
    cluster.run(lambda task: noted(build))
print(len(seen), *seen[:5])
with tf.Graph().as_default():
    noted(lambda: tf.add(np.uint16(1), np.uint16(1)))
print(len(seen))
"""


def test_the_threads_of_a_cluster_begin_when_tensorflow_knows_the_usual_types():
    # In a process of its own, since each type is new to TensorFlow only once.
    ended = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    usual, unusual = ended.stdout.splitlines()
    assert usual == "0"
    assert int(unusual) > 0  # else nothing would have been noticed


def test_two_barriers_are_not_built_at_the_same_time(monkeypatch):
    together = threading.Barrier(2)
    met = []

    def meet(record, parity):
        try:
            together.wait(1)
            met.append(parity)
        except threading.BrokenBarrierError:
            pass
        return key(record, parity)

    key = vector.arrival_key
    monkeypatch.setattr(vector, "arrival_key", meet)
    names = resource_names("state")
    one = Crossing(2, 0, has_action=False, names=names, incarnation=4)
    other = Transitions(2, 0, has_action=False)
    threads = [
        threading.Thread(target=getattr, args=(graph, operation))
        for graph, operation in ((one, "cross"), (other, "arrive"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not met
