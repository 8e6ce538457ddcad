"""A custom training loop with MultiWorkerMirroredStrategy; knows nothing of tfdist.

All workers take each step together, each on its part of the batch. The chief keeps the checkpoint.
"""

import argparse
import os
import shutil

import tensorflow as tf

GLOBAL_BATCH, EPOCHS, STEPS_PER_EPOCH = 32, 3, 10


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", required=True, help="the folder for them")
    arguments = parser.parse_args()

    # Before any other operation.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    resolver = strategy.cluster_resolver
    me, my_id = resolver.task_type, resolver.task_id
    is_chief = me == "chief" or (
        me == "worker" and my_id == 0 and "chief" not in resolver.cluster_spec().jobs
    )

    with strategy.scope():
        weights = tf.Variable(tf.zeros([2, 1]), name="weights")
        bias = tf.Variable(tf.zeros([1]), name="bias")
        steps = tf.Variable(0, dtype=tf.int64, name="steps", trainable=False)
    dataset = strategy.experimental_distribute_dataset(make_dataset())

    @tf.function
    def step(iterator):
        def replica_step(inputs, targets):
            with tf.GradientTape() as tape:
                error = inputs @ weights + bias - targets
                loss = tf.reduce_sum(tf.square(error)) / GLOBAL_BATCH
            gradients = tape.gradient(loss, [weights, bias])
            context = tf.distribute.get_replica_context()
            sums = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            weights.assign_sub(0.2 * sums[0])
            bias.assign_sub(0.2 * sums[1])
            steps.assign_add(1)
            return loss

        losses = strategy.run(replica_step, args=next(iterator))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    iterator = iter(dataset)
    means = []
    for _ in range(EPOCHS):
        means.append(sum(float(step(iterator)) for _ in range(STEPS_PER_EPOCH)) / STEPS_PER_EPOCH)

    # Every worker takes part in saving; what the others have written is of no use.
    folder = arguments.checkpoints
    if not is_chief:
        folder = os.path.join(folder, f"of_worker_{my_id}")
    checkpoint = tf.train.Checkpoint(weights=weights, bias=bias, steps=steps)
    saved = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=1).save()
    if not is_chief:
        shutil.rmtree(folder)
    print(
        f"{me} {my_id} of {strategy.num_replicas_in_sync}: {steps.numpy()} steps; "
        f"loss {means[0]:.6f} to {means[-1]:.6f}; saved {os.path.basename(saved)}"
    )


def make_dataset():
    inputs = tf.random.stateless_uniform([256, 2], seed=[1, 2], minval=-1.0)
    targets = inputs @ tf.constant([[2.0], [-3.0]]) + 0.5
    return tf.data.Dataset.from_tensor_slices((inputs, targets)).repeat().batch(GLOBAL_BATCH)


if __name__ == "__main__":
    main()
