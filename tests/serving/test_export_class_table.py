"""A table of classes over several ps is exported as one matrix, and answers without its cluster."""

import numpy as np
import tensorflow as tf

from tfdist import nn
from tfdist.export import export_model
from tfdist.export.verify import served

v1 = tf.compat.v1

NUM_CLASSES, DIM = 50, 4
INPUTS = np.eye(DIM, dtype=np.float32)


def build(devices):
    """The graph of a trainer; returns its table."""
    with v1.device(devices):
        inputs = v1.placeholder(tf.float32, [None, DIM], name="inputs")
        labels = v1.placeholder(tf.int64, [None])
        table = nn.ClassTable(NUM_CLASSES, DIM, num_shards=3)
        candidates = nn.UniformSampler(NUM_CLASSES).sample(8, labels)
        losses = nn.sampled_softmax(table, inputs, labels, candidates)
        nn.Adagrad(0.1).minimize(tf.reduce_mean(losses))
        tf.identity(nn.top_k(table, inputs, 5)[1], name="best")
    return table


def test_a_sharded_table_becomes_one_matrix(tmp_path):
    prefix = str(tmp_path / "model-1")
    with tf.Graph().as_default(), v1.Session() as session:
        table = build(None)
        weights = tf.concat([shard.weights for shard in table.shards], 0)
        session.run(v1.global_variables_initializer())
        wanted = np.argsort(-session.run(weights).T, 1)[:, :5]
        v1.train.Saver().save(session, prefix, write_meta_graph=False)
    cluster = tf.train.ClusterSpec({"ps": ["a:1", "b:1"], "worker": ["c:1"]})
    with tf.Graph().as_default():
        build(v1.train.replica_device_setter(cluster=cluster, worker_device="/job:worker/task:0"))
        v1.train.export_meta_graph(f"{prefix}.meta", saver_def=v1.train.Saver().as_saver_def())
    exported = export_model(prefix, tmp_path / "exported", outputs=["best"])
    shapes = dict(tf.train.list_variables(f"{exported.path}/variables/variables"))
    assert shapes == {"class_table/weights": [NUM_CLASSES, DIM], "class_table/bias": [NUM_CLASSES]}
    with served(exported.path) as model:
        np.testing.assert_array_equal(model.run({"inputs": INPUTS})["best"], wanted)
