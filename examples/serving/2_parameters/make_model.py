"""Trains a regression, and writes it in the three forms that regression.cc loads.

    python make_model.py
    cmake -S . -B build && cmake --build build
    build/regression model/1 model/1/frozen.pb checkpoint/graph.pb checkpoint/model

The parameters of a TensorFlow 1 model are variables. A checkpoint contains their values, the graph
contains the computation.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import, which logs

import numpy as np
import tensorflow as tf

import tfdist

v1 = tf.compat.v1
CHECKPOINT = "checkpoint/model"


def predict(x):
    weights = v1.get_variable("weights", [2])
    bias = v1.get_variable("bias", [])
    return tf.add(tf.reduce_sum(x * weights, axis=1), bias, name="y")


v1.logging.set_verbosity(v1.logging.ERROR)  # the Saver warns of its age
with tf.Graph().as_default(), v1.Session() as session:
    rows = np.random.default_rng(1).normal(size=[100, 2]).astype(np.float32)
    wanted = rows @ np.float32([3, -2]) + 1  # what the regression has to find
    loss = tf.reduce_mean(tf.square(predict(rows) - wanted))
    step = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
    session.run(v1.global_variables_initializer())
    for _ in range(200):
        session.run(step)
    v1.train.Saver().save(session, CHECKPOINT, write_meta_graph=False)

# The graph to serve reads a placeholder instead of the training data.
with tf.Graph().as_default() as graph:
    y = predict(v1.placeholder(tf.float32, [None, 2], "x"))
    # A graph may have more than a request needs: y is computed without the label.
    tf.reduce_mean(tf.square(y - v1.placeholder(tf.float32, [None], "label")), name="loss")
    v1.train.Saver()  # adds the operations that restore the variables
    tf.io.write_graph(graph, "checkpoint", "graph.pb", as_text=False)
exported = tfdist.export.export_model(
    graph, "model", outputs={"y": y}, checkpoint=CHECKPOINT, freeze=True
)
print(f"SavedModel: {exported.path}")
print(f"frozen GraphDef: {exported.frozen}")
print(f"graph and checkpoint: checkpoint/graph.pb {CHECKPOINT}")
