"""Makes a model without parameters, c = a x b, which product.cc loads.

    python make_model.py
    cmake -S . -B build && cmake --build build
    build/product model/1 3 4

The model is a function of TensorFlow 2. Another run of this program makes model/2.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import, which logs

import tensorflow as tf

import tfdist

NUMBERS = tf.TensorSpec([None], tf.float32)  # a list of any length


@tf.function(input_signature=[NUMBERS, NUMBERS])
def product(a, b):
    return {"c": a * b}


exported = tfdist.export.export_model(product, "model")
print(f"{exported.path}: {', '.join(exported.inputs)} -> {', '.join(exported.outputs)}")
