"""Threads that build graphs at the same time, and what TensorFlow's dispatch does to them.

Most functions of TensorFlow look first whether the types of their arguments ask for another
implementation. They keep the arguments where all threads share them, without owning them, and an
answer for each type. For a type without an answer they run Python code, during which another
thread may come in, put its own arguments there, and let them go: the first one goes on with freed
memory, and the process ends with a segmentation fault. (Seen on TensorFlow 2.21: 18 of some 3,300
processes in which two threads made their first barrier. `PythonAPIDispatcher::Dispatch` in
python/framework/python_api_dispatcher.cc; tensorflow#125641 is about the same place.)
"""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf
from tensorflow.python.util import dispatch


@functools.cache
def learn_types() -> None:
    """Has TensorFlow find its answers for the usual types, before there are threads.

    Types that are not among them remain a risk, as does an eager tensor: there is none without
    starting the eager runtime.
    """
    with tf.Graph().as_default():
        values = _values()
        # A private name, for the public functions reach only some of what lies behind them. Where
        # it is missing there is nothing to be done, and the test says so.
        for checker in getattr(dispatch, "_is_instance_checker_cache", {}).values():
            for value in values:
                checker.Check(value)


def _values() -> list[object]:
    """A value of each usual type."""
    tensor = tf.constant([1.0])
    return [
        *(None, True, 1, 1.0, 1j, "", b"", [], (), {}, np.zeros(1)),
        *(kind(0) for kind in (np.bool_, np.int32, np.int64, np.float32, np.float64, np.str_)),
        *(tf.float32, tf.TensorShape([]), tensor, tensor.op),
        tf.Variable(tensor),
        tf.compat.v1.get_variable("one", [1], use_resource=False),
        tf.compat.v1.get_variable("parts", [2], partitioner=tf.compat.v1.fixed_size_partitioner(2)),
        tf.IndexedSlices(tensor, tf.constant([0])),
        tf.SparseTensor([[0]], tensor, [1]),
        tf.RaggedTensor.from_row_lengths(tensor, [1]),
    ]
