"""Recommends the film that a user rates next, with a table of films on the parameter servers.

    tfdist run --ps 2 --workers 2 examples/next_item.py

Each film has a row in a table that is sharded over the ps. A query is a weighted mean of the rows
of the films that the user rated last. The model recommends the films whose rows have the largest
inner products with the query. A training step compares the right film with a sample of the others,
so it costs the same for millions of films. After each epoch the chief ranks all films for the
ratings that were held out; a ranking by popularity is the baseline.
"""

import argparse
import time
from typing import Any, NamedTuple

import next_item_data
import numpy as np
import tensorflow as tf

import tfdist

# Chosen on the last ratings that are not held out.
DIM = 64
BATCH = 256
NUM_SAMPLED = 512
LEARNING_RATE = 0.01
NUM_SHOWN = 20  # films that a user is shown
NUM_RANKED = 500  # enough that NUM_SHOWN are left without those that the user has rated
WAIT_SECS = 300.0  # for the slowest trainer, at the end of an epoch


class Model(NamedTuple):
    """The tensors and operations of the training loop."""

    start_epoch: Any  # rewinds the input
    step: Any  # applies one batch; nothing after the end of the data
    number: Any  # int64 [BATCH], the numbers of the batch's examples
    weight: Any  # float32 [BATCH], 0 for padding
    has_value: Any  # bool, whether the batch holds an example
    history: Any  # placeholder, int32 [n, LAST]
    ranked: Any  # int64 [n, NUM_RANKED], the films for these histories, the best first


def build(task: tfdist.Task, data: next_item_data.Data) -> Model:
    """Builds the model in the current graph; this trainer reads its own share of the examples."""
    size = len(data.train.item)
    numbered = tf.data.Dataset.from_tensor_slices((np.arange(size), *data.train))
    mine = numbered.shard(len(task.trainers), task.rank).shuffle(size)
    batches = tfdist.data.endless_batches(mine, BATCH).prefetch(2)
    iterator = tf.compat.v1.data.make_initializable_iterator(batches)
    (number, history, item), weight, has_value = iterator.get_next()

    # At first each film is as likely as it is popular, whatever the query.
    popularity = tfdist.nn.log_unigram(data.counts)
    table = tfdist.nn.ClassTable(
        len(data.counts), DIM, num_shards=task.num_ps, bias_init=popularity
    )
    recency = tf.compat.v1.get_variable("recency", initializer=tf.zeros([next_item_data.LAST]))
    candidates = tfdist.nn.UnigramSampler(table, data.counts).sample(NUM_SAMPLED, item)
    losses = tfdist.nn.sampled_softmax(
        table, query(table, recency, history), item, candidates, subtract_positive_log_q=False
    )
    loss = tf.reduce_sum(weight * losses) / BATCH
    step = tfdist.train.minimize_if(has_value, tfdist.nn.LazyAdam(LEARNING_RATE), loss)

    asked = tf.compat.v1.placeholder(tf.int32, [None, next_item_data.LAST])
    _, ranked = tfdist.nn.top_k(table, query(table, recency, asked), NUM_RANKED)
    return Model(iterator.initializer, step, number, weight, has_value, asked, ranked)


def query(table: tfdist.nn.ClassTable, recency: Any, history: Any) -> Any:
    """Returns the mean of each history's rows, [n, DIM], weighted by how recent they are."""
    is_film = tf.not_equal(history, next_item_data.NO_ITEM)  # != compares objects in a graph
    rows, _ = table.lookup(tf.where(is_film, history, 0))
    weights = tf.nn.softmax(tf.where(is_film, recency, -1e9))
    return tf.reduce_sum(weights[:, :, None] * rows, axis=1)


def train(task: tfdist.Task, target: str, epochs: int) -> None:
    data = next_item_data.load()
    began = time.monotonic()
    with tfdist.train.replica_graph(task):
        model = build(task, data)
        shown = tf.compat.v1.placeholder(tf.int64, [None, NUM_SHOWN])
        recall = tf.reduce_mean(tfdist.nn.recall(shown, data.heldout.item))
        mrr = tf.reduce_mean(tfdist.nn.reciprocal_rank(shown, data.heldout.item))

        with tfdist.train.session(task, target) as session:

            def report(name: str, ranked: np.ndarray) -> None:
                unrated = next_item_data.unrated(ranked, data.rated, NUM_SHOWN)
                values = session.run([recall, mrr], {shown: unrated})
                scores = "recall@{0} {1:.3f}, MRR@{0} {2:.3f}".format(NUM_SHOWN, *values)
                print(f"{name}: {scores}", flush=True)

            def evaluate(result: tfdist.train.EpochResult) -> None:
                parts = np.array_split(data.heldout.history, 10)  # the ps need memory for one
                ranked = [session.run(model.ranked, {model.history: part}) for part in parts]
                counts = f"{result.examples} examples, {time.monotonic() - began:.0f} s"
                report(f"epoch {result.number}, {counts}", np.concatenate(ranked))

            if task.is_chief:
                popular = np.argsort(-data.counts, kind="stable")[:NUM_RANKED]
                report("popularity", np.tile(popular, [len(data.rated), 1]))
            epoch = tfdist.train.Epoch(
                task, "train", expected=len(data.train.item), action=evaluate, timeout=WAIT_SECS
            )
            while epoch.number <= epochs:
                session.run(model.start_epoch)
                more = True
                while more:
                    _, numbers, weights, more = session.run(
                        [model.step, model.number, model.weight, model.has_value]
                    )
                    epoch.read(numbers[weights > 0])
                epoch.finish().check()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    tfdist.run_task(train, args.epochs)


if __name__ == "__main__":
    main()
