"""Between-graph replication, as trainers of TensorFlow 1 have it; knows nothing of tfdist.

Each worker builds the same graph with its variables on the ps, and trains on its own data until
the steps of all together are enough.
"""

import numpy as np
import tensorflow.compat.v1 as tf

tf.disable_v2_behavior()

flags = tf.app.flags
flags.DEFINE_string("ps_hosts", "", "host:port of each ps, with commas between them")
flags.DEFINE_string("worker_hosts", "", "host:port of each worker, with commas between them")
flags.DEFINE_string("job_name", "", "ps or worker")
flags.DEFINE_integer("task_index", 0, "which of them")
flags.DEFINE_integer("steps", 200, "of all workers together")
FLAGS = flags.FLAGS

TRUE_WEIGHTS = np.array([[2.0], [-3.0]], np.float32)
TRUE_BIAS = 0.5


def batches(seed):
    random = np.random.RandomState(seed)
    while True:
        inputs = random.uniform(-1, 1, [32, 2]).astype(np.float32)
        yield inputs, inputs @ TRUE_WEIGHTS + TRUE_BIAS


def main(_):
    cluster = tf.train.ClusterSpec(
        {"ps": FLAGS.ps_hosts.split(","), "worker": FLAGS.worker_hosts.split(",")}
    )
    server = tf.train.Server(cluster, job_name=FLAGS.job_name, task_index=FLAGS.task_index)
    if FLAGS.job_name == "ps":
        server.join()
    else:
        train(cluster, server)


def train(cluster, server):
    me = f"/job:worker/task:{FLAGS.task_index}"
    with tf.device(tf.train.replica_device_setter(worker_device=me, cluster=cluster)):
        inputs = tf.placeholder(tf.float32, [None, 2])
        labels = tf.placeholder(tf.float32, [None, 1])
        weights = tf.get_variable("weights", [2, 1], initializer=tf.zeros_initializer())
        bias = tf.get_variable("bias", [1], initializer=tf.zeros_initializer())
        loss = tf.reduce_mean(tf.square(inputs @ weights + bias - labels))
        step = tf.train.get_or_create_global_step()
        minimize = tf.train.GradientDescentOptimizer(0.1).minimize(loss, global_step=step)

    # Otherwise a worker that comes late waits for one that has left.
    config = tf.ConfigProto(device_filters=["/job:ps", me])
    with tf.train.MonitoredTrainingSession(
        master=server.target,
        is_chief=(FLAGS.task_index == 0),
        hooks=[tf.train.StopAtStepHook(last_step=FLAGS.steps)],
        config=config,
    ) as session:
        losses = []
        for batch, targets in batches(seed=FLAGS.task_index):
            if session.should_stop():
                break
            feed = {inputs: batch, labels: targets}
            losses.append(session.run([loss, minimize], feed)[0])
    print(
        f"worker {FLAGS.task_index}: {len(losses)} steps; loss {losses[0]:.6f} to {losses[-1]:.6f}"
    )


if __name__ == "__main__":
    tf.app.run()
