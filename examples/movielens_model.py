"""Matrix factorization with its parameters partitioned over the ps."""

from typing import Any, NamedTuple

import movielens_data
import numpy as np
import tensorflow as tf

import tfdist

DIM = 32
INIT_STDDEV = 0.03
LEARNING_RATE = 0.08
L2 = 0.1  # on the looked-up rows of the factors, not on the biases
SHUFFLE_BUFFER = 4096


class Model(NamedTuple):
    """The tensors and operations of the training loop."""

    start_epoch: Any  # rewinds the input
    step: Any  # applies one batch; nothing after the end of the data
    example: Any  # int64 [batch_size], the numbers of the batch's examples
    weight: Any  # float32 [batch_size], 0 for padding
    has_value: Any  # bool, whether the batch holds an example
    prediction: Any  # float32 [batch_size], of the batch's ratings
    global_step: Any
    query: movielens_data.Ratings  # placeholders
    query_rmse: Any


def build(task: tfdist.Task, meta: movielens_data.Meta, files: list[str], batch_size: int) -> Model:
    """Builds the model in the current graph; this trainer reads `files`."""
    predict = _predictor(task, meta)
    examples = movielens_data.read(files).shuffle(SHUFFLE_BUFFER)
    batches = tfdist.data.endless_batches(examples, batch_size).prefetch(2)
    iterator = tf.compat.v1.data.make_initializable_iterator(batches)
    batch, weight, has_value = iterator.get_next()

    prediction, norms = predict(batch["user"], batch["item"])
    # The sum, not the mean: with it, Adagrad's steps do not depend on the batch size.
    losses = tf.square(prediction - batch["rating"]) / 2 + L2 * norms
    optimizer = tf.compat.v1.train.AdagradOptimizer(LEARNING_RATE, initial_accumulator_value=1)
    step = tfdist.train.minimize_if(has_value, optimizer, tf.reduce_sum(weight * losses))

    query = movielens_data.Ratings(
        user=tf.compat.v1.placeholder(tf.int64, [None]),
        item=tf.compat.v1.placeholder(tf.int64, [None]),
        rating=tf.compat.v1.placeholder(tf.float32, [None]),
    )
    errors = predict(query.user, query.item)[0] - query.rating
    return Model(
        start_epoch=iterator.initializer,
        step=step,
        example=batch["example"],
        weight=weight,
        has_value=has_value,
        prediction=prediction,
        global_step=tf.compat.v1.train.get_global_step(),
        query=query,
        query_rmse=tf.sqrt(tf.reduce_mean(tf.square(errors))),
    )


def rmse(session: Any, model: Model, ratings: movielens_data.Ratings) -> float:
    """The model's root mean square error on `ratings`."""
    feed = dict(zip(model.query, ratings, strict=True))
    return float(session.run(model.query_rmse, feed))


def _predictor(task: tfdist.Task, meta: movielens_data.Meta) -> Any:
    """A function of users and items that returns predictions, and half the factors' norms."""
    partitioner = tf.compat.v1.fixed_size_partitioner(task.num_ps)

    def table(name: str, rows: int, *shape: int, stddev: float = 0.0) -> Any:
        return tf.compat.v1.get_variable(
            name,
            [rows, *shape],
            initializer=tf.compat.v1.random_normal_initializer(stddev=stddev),
            partitioner=partitioner,
            use_resource=True,
        )

    user_factors = table("user_factors", meta.num_users, DIM, stddev=INIT_STDDEV)
    item_factors = table("item_factors", meta.num_items, DIM, stddev=INIT_STDDEV)
    user_bias, item_bias = table("user_bias", meta.num_users), table("item_bias", meta.num_items)

    def look_up(variable: Any, ids: Any) -> Any:
        return tf.compat.v1.nn.embedding_lookup(list(variable), ids, partition_strategy="div")

    def predict(user: Any, item: Any) -> tuple[Any, Any]:
        p, q = look_up(user_factors, user), look_up(item_factors, item)
        bias = look_up(user_bias, user) + look_up(item_bias, item)
        prediction = np.float32(meta.global_mean) + bias + tf.reduce_sum(p * q, axis=1)
        norms = (tf.reduce_sum(tf.square(p), 1) + tf.reduce_sum(tf.square(q), 1)) / 2
        return prediction, norms

    return predict
