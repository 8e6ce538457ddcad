"""Vectors of words with parameter servers: skip-gram with negative sampling (word2vec).

    python examples/word2vec.py
    tfdist run --ps 2 --workers 2 examples/word2vec.py

The text is the standard library of this Python, so nothing is downloaded. The vectors are two
tables that are sharded over the ps: of each word as it stands, and of each word as a neighbour.
Each trainer reads its own share of the files and updates the rows of its words asynchronously. The
chief prints the loss on files that no trainer reads, before and after, and words with similar
vectors.
"""

import argparse
import os
from functools import partial
from typing import Any

import numpy as np
import word2vec_text as text

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import, which logs

import tensorflow as tf

import tfdist
from tfdist import nn

DIM, LEARNING_RATE = 64, 0.1
NEGATIVES = 5  # of each pair of words
BLOCKS = 64  # of a step
SAMPLED = 256  # negatives, which all blocks of a step share
SHOWN = ("self", "list", "error", "read", "thread")
WAIT_SECS = 120.0

v1 = tf.compat.v1


class SkipGram:
    """The graph: a step and its loss, the loss of single pairs, and the vectors."""

    def __init__(self, task: tfdist.Task, counts: np.ndarray) -> None:
        num_words = len(counts)
        self.inputs = nn.ClassTable(num_words, DIM, num_shards=task.num_ps, name="inputs")
        self.outputs = nn.ClassTable(num_words, DIM, num_shards=task.num_ps, name="outputs")
        self.sampler = nn.UnigramSampler(self.outputs, counts, power=0.75)  # as in word2vec
        self.blocks = v1.placeholder(tf.int32, [None, text.COLUMNS])
        self.seed = v1.placeholder(tf.int64, [2])
        self.step = nn.Adagrad(LEARNING_RATE).minimize(self.loss_of_blocks())
        self.words, self.nears = (v1.placeholder(tf.int32, [None]) for _ in range(2))
        self.loss = self.loss_of_pairs()

    def loss_of_blocks(self) -> Any:
        """All pairs of a block in one matrix product: its rows are read once, not once a pair."""
        rows, _ = self.inputs.lookup(self.blocks[:, text.WINDOW : -text.WINDOW])
        near_rows, _ = self.outputs.lookup(self.blocks)
        logits = tf.matmul(rows, near_rows, transpose_b=True)
        positive = tf.reduce_sum(text.BAND * tf.nn.softplus(-logits))

        sampled_rows, _ = self.outputs.lookup(self.sampler.draw(SAMPLED, self.seed))
        logits = tf.tensordot(rows, sampled_rows, [[2], [1]])
        pairs_of_word = text.BAND.sum() / text.BLOCK
        weight = pairs_of_word * NEGATIVES / SAMPLED
        return positive + weight * tf.reduce_sum(tf.nn.softplus(logits))

    def loss_of_pairs(self) -> Any:
        """The mean loss of the pairs that are fed, always with the same negatives."""
        rows, _ = self.inputs.lookup(self.words)
        candidates = self.sampler.sample(SAMPLED, self.nears, unique=False, seed=1)
        return tf.reduce_mean(
            nn.negative_sampling(
                self.outputs, rows, self.nears, candidates, num_negatives=NEGATIVES
            )
        )


def train(task: tfdist.Task, target: str, epochs: int) -> None:
    corpus = text.read_corpus()
    with tfdist.train.replica_graph(task):
        model = SkipGram(task, corpus.counts)
        with tfdist.train.session(task, target) as session:

            def report() -> None:
                words, nears = text.pairs(corpus.held_out, corpus.counts, np.random.default_rng(1))
                loss = session.run(model.loss, {model.words: words, model.nears: nears})
                print(f"held-out loss {loss:.3f}", flush=True)

            tfdist.Barrier(task, "start", action=report, timeout=WAIT_SECS).wait()
            rng = np.random.default_rng(task.rank)
            share = corpus.files[task.rank :: len(task.trainers)]
            for epoch in range(epochs):
                steps = text.blocks(share, corpus.counts, rng, BLOCKS)
                for index, blocks in enumerate(steps):
                    seed = [task.rank, epoch * len(steps) + index]
                    session.run(model.step, {model.blocks: blocks, model.seed: seed})
            tfdist.Barrier(task, "end", action=report, timeout=WAIT_SECS).wait()
            if task.is_chief:
                vectors = np.concatenate(
                    session.run([shard.weights for shard in model.inputs.shards])
                )
                show_neighbours(corpus.vocabulary, vectors)


def show_neighbours(vocabulary: list[str], vectors: np.ndarray) -> None:
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for word in SHOWN:
        nearest = np.argsort(-(vectors @ vectors[vocabulary.index(word)]))[1:7]
        print(f"{word}: {', '.join(vocabulary[index] for index in nearest)}", flush=True)


def train_locally(task: tfdist.Task, epochs: int) -> None:
    with tfdist.worker_server(task) as target:
        train(task, target, epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    if "TF_CONFIG" in os.environ:  # a task of a job, such as of `tfdist run`
        tfdist.run_task(train, args.epochs)
        return
    with tfdist.local_cluster(num_ps=2, num_workers=2, backend="processes") as cluster:
        cluster.run(partial(train_locally, epochs=args.epochs), timeout=600)


if __name__ == "__main__":
    main()
