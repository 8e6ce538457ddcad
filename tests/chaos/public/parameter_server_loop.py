"""A custom training loop with ParameterServerStrategy and a coordinator; knows nothing of tfdist.

The chief trains a sharded table of numbers: it schedules the steps, which the workers run.
"""

import os

import tensorflow as tf

ROWS, WIDTH = 64, 4
EPOCHS, STEPS_PER_EPOCH = 3, 20

# A worker that has gone shall be an error and not a wait.
os.environ["GRPC_FAIL_FAST"] = "use_caller"


def main():
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if resolver.task_type in ("worker", "ps"):
        server = tf.distribute.Server(
            resolver.cluster_spec(),
            job_name=resolver.task_type,
            task_index=resolver.task_id,
            protocol=resolver.rpc_layer or "grpc",
            start=True,
        )
        server.join()
    else:
        coordinate(resolver)


def coordinate(resolver):
    strategy = tf.distribute.ParameterServerStrategy(
        resolver,
        variable_partitioner=tf.distribute.experimental.partitioners.MinSizePartitioner(
            min_shard_bytes=512, max_shards=2
        ),
    )
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        table = tf.Variable(tf.zeros([ROWS, WIDTH]), name="table")
        bias = tf.Variable(tf.zeros([WIDTH]), name="bias")

    def make_dataset():
        ids = tf.data.Dataset.range(ROWS).shuffle(ROWS, seed=1).repeat().batch(16)
        return ids.map(lambda rows: (rows, truth(rows)))

    @tf.function
    def step(iterator):
        def replica_step(rows, targets):
            with tf.GradientTape() as tape:
                found = tf.nn.embedding_lookup(table, rows) + bias
                loss = tf.reduce_mean(tf.square(found - targets))
            variables = [*table.variables, bias]
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                if isinstance(gradient, tf.IndexedSlices):
                    variable.scatter_sub(tf.IndexedSlices(10.0 * gradient.values, gradient.indices))
                else:
                    variable.assign_sub(0.1 * gradient)
            return loss

        return strategy.run(replica_step, args=next(iterator))

    @tf.function
    def make_per_worker_dataset():
        return strategy.distribute_datasets_from_function(lambda _: make_dataset())

    iterator = iter(coordinator.create_per_worker_dataset(make_per_worker_dataset))
    losses = []
    for _ in range(EPOCHS):
        results = [coordinator.schedule(step, args=(iterator,)) for _ in range(STEPS_PER_EPOCH)]
        coordinator.join()
        losses.append(sum(float(loss) for loss in coordinator.fetch(results)) / STEPS_PER_EPOCH)
    print(
        f"{EPOCHS * STEPS_PER_EPOCH} steps; {len(table.variables)} shards; "
        f"loss {losses[0]:.6f} to {losses[-1]:.6f}"
    )


def truth(rows):
    return tf.cast(rows[:, tf.newaxis], tf.float32) / ROWS + tf.range(float(WIDTH))


if __name__ == "__main__":
    main()
