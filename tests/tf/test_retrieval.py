"""The best classes, measures of a ranking, in-batch losses, and the frequency of items."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfdist import ConfigError
from tfdist.nn import (
    ApproximateIndex,
    ClassTable,
    StreamingFrequency,
    full_softmax,
    in_batch_softmax,
    perplexity,
    recall,
    reciprocal_rank,
    top_k,
)

v1 = tf.compat.v1

NUM_CLASSES, DIM, BATCH = 41, 4, 6
RANDOM = np.random.default_rng(3)
WEIGHTS = RANDOM.normal(size=(NUM_CLASSES, DIM)).astype(np.float32)
BIAS = RANDOM.normal(size=NUM_CLASSES).astype(np.float32)
QUERIES = RANDOM.normal(size=(BATCH, DIM)).astype(np.float32)
LABELS = RANDOM.integers(0, NUM_CLASSES, BATCH)
LOGITS = QUERIES @ WEIGHTS.T + BIAS


def table(num_shards):
    return ClassTable(NUM_CLASSES, DIM, num_shards=num_shards, weights_init=WEIGHTS, bias_init=BIAS)


@pytest.mark.parametrize("num_shards", [1, 2, 7])
@pytest.mark.parametrize(("k", "chunk"), [(1, 1), (5, 4), (NUM_CLASSES, 13), (8, 1000)])
def test_top_k_is_exact(num_shards, k, chunk):
    wanted = np.argsort(-LOGITS, 1)[:, :k]
    logits, ids = top_k(table(num_shards), QUERIES, k, chunk=chunk)
    np.testing.assert_array_equal(ids, wanted)
    np.testing.assert_allclose(logits, np.take_along_axis(LOGITS, wanted, 1), rtol=1e-5)


@pytest.mark.parametrize("num_shards", [1, 2, 7])
def test_a_class_without_probability_is_found_last_and_only_real_classes_are(num_shards):
    bias = np.where(np.arange(NUM_CLASSES) % 3, BIAS, -1e38).astype(np.float32)
    made = ClassTable(NUM_CLASSES, DIM, num_shards=num_shards, bias_init=bias)
    for shard in made.shards:
        masked = tf.where(shard.bias < -1e37, -np.inf, shard.bias)
        shard.bias.assign(masked)
    logits, ids = top_k(made, QUERIES, NUM_CLASSES, chunk=4)
    assert all(sorted(row) == list(range(NUM_CLASSES)) for row in ids.numpy())
    assert np.isneginf(logits.numpy()[:, -14:]).all()
    assert np.isfinite(logits.numpy()[:, :-14]).all()


def test_top_k_in_a_graph():
    with tf.Graph().as_default(), v1.Session() as session:
        _, ids = top_k(table(3), tf.constant(QUERIES), 5, chunk=4)
        session.run(v1.global_variables_initializer())
        np.testing.assert_array_equal(session.run(ids), np.argsort(-LOGITS, 1)[:, :5])


def test_an_approximate_index_finds_most_of_the_best():
    num_classes, queries = 3000, RANDOM.normal(size=(50, DIM))
    weights = RANDOM.normal(size=(num_classes, DIM))
    made = ClassTable(
        num_classes, DIM, weights_init=weights, bias_init=-np.arange(num_classes) / 1e3
    )
    logits, exact = top_k(made, queries, 10)
    found, ids = ApproximateIndex(*made.numpy()).top_k(queries, 10)
    shared = [len({*one} & {*other}) for one, other in zip(exact.numpy(), ids, strict=True)]
    assert np.mean(shared) > 9.5  # of 10; of 10 random classes it would be 0.03
    np.testing.assert_allclose(found[:, 0].max(), logits.numpy()[:, 0].max(), rtol=1e-4)


def test_a_bias_by_frequency_does_not_hide_classes_from_the_index():
    """A graph by inner products finds 5% of these: it leads to the frequent classes alone."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5000, 64)).astype(np.float32) / 8
    bias = -np.log(np.arange(1, 5001)).astype(np.float32)
    queries = rng.normal(size=(50, 64)).astype(np.float32)
    logits = queries @ weights.T + bias
    exact = np.argsort(-logits, axis=1)[:, :10]
    found, ids = ApproximateIndex(weights, bias).top_k(queries, 10)
    shared = [len({*one} & {*other}) for one, other in zip(exact, ids, strict=True)]
    assert np.mean(shared) > 9
    np.testing.assert_allclose(found, np.take_along_axis(logits, ids, 1), atol=1e-4)


def test_recall_and_reciprocal_rank():
    ids, labels = [[7, 3], [5, 2], [1, 0]], [7, 2, 9]
    assert recall(ids, labels).numpy().tolist() == [1, 1, 0]
    assert reciprocal_rank(ids, labels).numpy().tolist() == [1, 0.5, 0]


def test_perplexity_is_that_of_all_examples_together():
    log_probs = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    expected = math.exp(-np.mean(log_probs[np.arange(BATCH), LABELS]))
    batches = [(QUERIES[:4], LABELS[:4]), (QUERIES[4:4], LABELS[4:4]), (QUERIES[4:], LABELS[4:])]
    assert perplexity(table(2), batches, chunk=7) == pytest.approx(expected, rel=1e-5)


def test_the_perplexity_of_a_table_of_zeros_is_the_number_of_classes():
    zeros = ClassTable(NUM_CLASSES, DIM, weights_init=np.zeros([NUM_CLASSES, DIM]))
    assert perplexity(zeros, [(QUERIES, LABELS)]) == pytest.approx(NUM_CLASSES, rel=1e-5)


def test_the_perplexity_of_a_hopeless_model_is_infinite():
    bias = np.array([1e4, 0.0])
    assert perplexity(ClassTable(2, DIM, bias_init=bias), [(QUERIES[:1], [1])]) == math.inf


def test_a_batch_with_all_classes_once_is_the_full_softmax():
    queries = RANDOM.normal(size=(NUM_CLASSES, DIM)).astype(np.float32)
    ids, log_q = np.arange(NUM_CLASSES), np.zeros(NUM_CLASSES)
    whole = full_softmax(ClassTable(NUM_CLASSES, DIM, weights_init=WEIGHTS), queries, ids)
    found = in_batch_softmax(queries, WEIGHTS, ids, log_q)
    np.testing.assert_allclose(found, whole, atol=1e-5)
    # Two examples of the same item: the other one is no negative.
    twice = in_batch_softmax(
        np.concatenate([queries, queries[:1]]),
        np.concatenate([WEIGHTS, WEIGHTS[:1]]),
        [*ids, 0],
        np.zeros(NUM_CLASSES + 1),
    )
    np.testing.assert_allclose(twice[0], whole[0], atol=1e-5)
    kept = in_batch_softmax(
        np.concatenate([queries, queries[:1]]),
        np.concatenate([WEIGHTS, WEIGHTS[:1]]),
        [*ids, 0],
        np.zeros(NUM_CLASSES + 1),
        remove_accidental_hits=False,
    )
    assert kept[0] > whole[0] + 1e-3


def test_padding_is_no_negative_and_is_not_noted():
    frequency = StreamingFrequency(100)
    queries, items, ids = QUERIES, WEIGHTS[:BATCH], [1, 2, 3, 4, 0, 0]
    weight = [1.0, 1, 1, 0.5, 0, 0]
    log_q = frequency.observe(ids, 1, weight=weight)
    assert log_q.numpy().tolist() == [0] * BATCH
    padded = in_batch_softmax(queries, items, ids, log_q, weight=weight)
    alone = in_batch_softmax(queries[:4], items[:4], ids[:4], log_q[:4])
    np.testing.assert_allclose(padded[:4], alone, rtol=1e-5)
    assert (in_batch_softmax(queries, items, ids, log_q)[:4] > alone + 1e-4).numpy().all()
    # Item 0 now occurs for the first time, in step 8.
    assert np.exp(frequency.observe([0], 8)) == pytest.approx([1 / 8])


def test_the_streaming_frequency_is_that_of_the_batches():
    frequency = StreamingFrequency(100, rate=0.02)
    observe = tf.function(frequency.observe)
    for step in range(1, 401):
        ids = [0, 0, *([1] if step % 10 == 0 else []), *([2] if step % 4 == 0 else [])]
        log_q = observe(tf.constant(ids), tf.constant(step))
    assert np.exp(log_q) == pytest.approx([2, 2, 0.1, 0.25], rel=1e-5)
    # Now item 1 is in every second batch. The estimate follows.
    for step in range(401, 801, 2):
        log_q = observe(tf.constant([1]), tf.constant(step))
    assert np.exp(log_q[0]) == pytest.approx(0.5, rel=0.1)


def test_a_late_trainer_does_not_change_the_last_step_of_the_streaming_frequency():
    frequency = StreamingFrequency(10)
    for step in range(1, 100):
        frequency.observe([1], step)
    frequency.observe([1], 5)  # of a trainer that has waited
    assert np.exp(frequency.observe([1], 100)) == pytest.approx([1])


def test_the_streaming_frequency_in_a_graph():
    with tf.Graph().as_default(), v1.Session() as session:
        step = v1.placeholder(tf.int64, [])
        log_q = StreamingFrequency(10).observe([3, 4], step)
        session.run(v1.global_variables_initializer())
        for number in (2, 4, 6):
            found = session.run(log_q, {step: number})
        assert np.exp(found) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: top_k(table(1), QUERIES, NUM_CLASSES + 1), "k"),
        (lambda: top_k(table(1), QUERIES, 0), "k"),
        (lambda: top_k(table(1), QUERIES, 1, chunk=0), "chunk"),
        (lambda: top_k(table(1), QUERIES[:, :2], 1), "queries"),
        (lambda: perplexity(table(1), []), "batches"),
        (lambda: perplexity(table(1), [QUERIES]), "batches"),
        (lambda: perplexity(table(1), (QUERIES, LABELS)), "batches"),
        (lambda: ApproximateIndex(np.zeros([0, 3])), "weights"),
        (lambda: ApproximateIndex(WEIGHTS[0]), "weights"),
        (lambda: ApproximateIndex(WEIGHTS, BIAS[:3]), "bias"),
        (lambda: ApproximateIndex(WEIGHTS * np.nan), "weights"),
        (lambda: ApproximateIndex(WEIGHTS).top_k(QUERIES[:, :2], 1), "queries"),
        (lambda: ApproximateIndex(WEIGHTS).top_k(QUERIES, NUM_CLASSES + 1), "k"),
        (lambda: StreamingFrequency(0), "num_buckets"),
        (lambda: StreamingFrequency(5, rate=0), "rate"),
        (lambda: StreamingFrequency(5).observe([-1], 1), "ids"),
        (lambda: in_batch_softmax(QUERIES, QUERIES[:, :2], LABELS, LABELS), "items"),
        (lambda: in_batch_softmax(QUERIES, QUERIES, LABELS, LABELS, weight=[[1]]), "weight"),
    ],
)
def test_a_wrong_argument_is_refused(call, field):
    with pytest.raises(ConfigError, match=rf"^{field}: got "):
        call()
