"""A session straight to a ps, for what no barrier asks of it."""

import tensorflow as tf

from tfdist.task import session_target


def ps_session(address, graph, index=0):
    """Waits for no other task of the cluster."""
    config = tf.compat.v1.ConfigProto(device_filters=[f"/job:ps/task:{index}"])
    return tf.compat.v1.Session(session_target(address), graph=graph, config=config)
