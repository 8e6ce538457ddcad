"""The ps jobs that the planner's step times are checked with: their design, and their graph.

A job is a small recommender. Its examples have one id for each table; the rows of the ids are
joined and go through a hidden layer. Each table is sharded over all ps, and a worker asks once for
an id that its batch has several times. Adagrad updates variables and rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdist.planner.id_distribution import IdDistribution
from tfdist.planner.ps_traffic import EmbeddingTable, PsJob

ROWS, HIDDEN = 20_000, 64
VARIABLES = 4  # two layers, each with a bias
_BATCHES = 16  # of ids, drawn in advance


@dataclass(frozen=True)
class Shape:
    """A job of the design.

    Attributes:
        workers, ps: numbers of tasks.
        tables: number of tables.
        batch: examples of a step.
        dim: values of a row.
        zipf: exponent of the ids' distribution.
        deduplicated: whether a worker asks once for an id.
        hidden: width of the layer.
    """

    workers: int
    ps: int
    tables: int
    batch: int
    dim: int
    zipf: float
    deduplicated: bool = True
    hidden: int = HIDDEN

    @property
    def job(self) -> PsJob:
        """The job as the planner describes it."""
        ids = IdDistribution.zipf(ROWS, self.zipf)
        table = EmbeddingTable(ROWS, self.dim, distribution=ids)
        return PsJob(
            dense=(self.tables * self.dim + 2) * self.hidden + 1,
            variables=VARIABLES,
            tables=(table,) * self.tables,
            workers=self.workers,
            ps=self.ps,
            batch=self.batch,
            deduplicated=self.deduplicated,
        )


# An exchange algorithm chose them by their counts of work alone, from jobs with few and many ps,
# tables, examples and numbers in a row, so that the costs of all units are well determined. Three
# have one worker, which shows the delay of a step.
CALIBRATION = (
    Shape(1, 1, 1, 64, 8, 1.2),
    Shape(3, 1, 8, 64, 8, 1.2),
    Shape(2, 1, 8, 1024, 8, 0.0),
    Shape(6, 1, 8, 1024, 64, 0.0),
    Shape(1, 1, 8, 1024, 64, 1.2),
    Shape(1, 4, 1, 64, 8, 0.0),
    Shape(8, 4, 1, 64, 8, 1.2),
    Shape(4, 4, 8, 64, 8, 1.2),
)


def others(count: int, seed: int) -> tuple[Shape, ...]:
    """Random jobs, in which each level of each factor occurs equally often if the count allows."""
    rng = random.Random(seed)

    def column(levels: Sequence[Any]) -> list[Any]:
        values = [levels[number % len(levels)] for number in range(count)]
        rng.shuffle(values)
        return values

    columns = (
        column(range(1, 9)),
        column(range(1, 5)),
        column(range(1, 9)),
        column((64, 128, 256, 512, 1024)),
        column((8, 16, 32, 64)),
        column((0.0, 0.8, 1.0, 1.2)),
    )
    return tuple(Shape(*levels) for levels in zip(*columns, strict=True))


# Two ps and one worker. In each of them nearly all bytes are of one kind.
COUNTED = {
    "dense": Shape(1, 2, 1, 64, 8, 0.0, hidden=100_000),
    "sparse": Shape(1, 2, 4, 1024, 64, 1.0, deduplicated=False, hidden=8),
    "sparse, deduplicated": Shape(1, 2, 4, 1024, 64, 1.0, hidden=8),
}


def training_step(shape: Shape, rng: np.random.Generator) -> Any:
    """The training step of a job in the default graph, as a user writes it."""
    import tensorflow as tf

    v1 = tf.compat.v1
    options = tf.data.Options()
    options.autotune.enabled = False  # the end of the session would wait a minute for the tuner
    data = tf.data.Dataset.from_tensor_slices(_ids(shape, rng)).repeat().with_options(options)
    batch = v1.data.make_one_shot_iterator(data).get_next()
    global_step = v1.train.get_or_create_global_step()
    partitioner = v1.fixed_size_partitioner(shape.ps) if shape.ps > 1 else None
    rows = []
    for number in range(shape.tables):
        table = v1.get_variable(
            f"table{number}", [ROWS, shape.dim], partitioner=partitioner, use_resource=True
        )
        ids = batch[:, number]
        if shape.deduplicated:
            unique, places = tf.unique(ids)
            rows.append(tf.gather(_lookup(table, unique), places))
        else:
            rows.append(_lookup(table, ids))
    hidden = tf.nn.relu(_dense("hidden", tf.concat(rows, 1), shape.hidden))
    labels = tf.cast(batch[:, :1] % 2, tf.float32)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=_dense("out", hidden, 1))
    optimizer = v1.train.AdagradOptimizer(0.05)
    return optimizer.minimize(tf.reduce_mean(losses), global_step=global_step)


def _ids(shape: Shape, rng: np.random.Generator) -> Any:
    """Batches of ids; which ids are popular is random, so that all ps have equally many of them."""
    shares = np.cumsum(IdDistribution.zipf(ROWS, shape.zipf).probabilities)
    drawn = np.searchsorted(shares / shares[-1], rng.random([_BATCHES, shape.batch, shape.tables]))
    return np.random.default_rng(0).permutation(ROWS)[drawn]


def _lookup(table: Any, ids: Any) -> Any:
    import tensorflow as tf

    return tf.nn.embedding_lookup(table, ids)


def _dense(name: str, inputs: Any, width: int) -> Any:
    import tensorflow as tf

    weights = tf.compat.v1.get_variable(f"{name}/weights", [inputs.shape[1], width])
    bias = tf.compat.v1.get_variable(f"{name}/bias", [width])
    return inputs @ weights + bias
