"""Losses that compare a label with a sample of the other classes.

The softmax over n classes divides by the partition function, a sum of n exponentials of logits. For
millions of classes that sum is the cost of a step. Each loss here puts another question in its
place, which a sample can answer. docs/softmax.md derives them.

The `Candidates` come from a sampler. All examples of a batch share them, so a step reads
[batch + num_sampled] rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfdist.errors import ConfigError, checked_flag, checked_number
from tfdist.nn.batch import checked_ids, checked_inputs, checked_rows
from tfdist.nn.class_table import ClassTable, checked_table
from tfdist.nn.samplers import Candidates

# The logit of a class that takes no part. Minus infinity would make NaN of its gradient.
NO_PART = -1e30


@tf.autograph.experimental.do_not_convert  # there is nothing to convert in it
def sampled_softmax(
    table: ClassTable,
    inputs: Any,
    labels: Any,
    candidates: Candidates,
    *,
    remove_accidental_hits: bool = True,
    subtract_positive_log_q: bool = True,
) -> Any:
    """The softmax over the label and a sample, each logit minus `log_q`.

    Let f_k be the logit of class k, and let a sample contain class k on average Q_k times. The sum
    of exp(f_k - log Q_k) over the sample is on average the sum of exp(f_k) over all classes. So the
    loss estimates the full softmax, and with more samples its gradient converges to that of the
    full one (Bengio and Senécal 2008; Jean et al. 2015). It is biased with few: an average of sums
    is exact, the average of their logarithms is not.

    The label is not sampled; it is in every sum once. Subtracting its own log_q, as TensorFlow does
    (the default here too), treats it as if it were a part of the sample. Without that
    (`subtract_positive_log_q=False`) the sum estimates what it should, and the bias is smaller. It
    is the correction of Khrylchenko et al. 2025 (arXiv 2507.09331): the gradient is that of their
    loss, in which a weight of 1 - P(label) multiplies the softmax over the negatives alone.

    Draw with ``unique=True``, or set one of the two flags to False. With replacement a large sample
    contains a frequent label Q > 1 times. By default these take no part, the label counts as 1 / Q
    of a class, and the gradient does not converge to that of the full softmax.

    Args:
        table: the classes.
        inputs: [batch, dim] floating-point numbers; they are computed in float32.
        labels: [batch] integers.
        candidates: from a sampler, for these labels.
        remove_accidental_hits: whether a candidate that is the label of an example takes no part in
            its loss. It would count as a wrong answer.
        subtract_positive_log_q: see above.

    Returns:
        float32 [batch].

    Raises:
        ConfigError: an argument is wrong.
        tf.errors.InvalidArgumentError: in a run, a label is out of range, or an input is NaN or
            infinite.
    """
    positive, negative, is_hit = _logits(table, inputs, labels, candidates)
    correction = -candidates.log_q
    if checked_flag("remove_accidental_hits", remove_accidental_hits):
        correction = tf.where(is_hit, NO_PART, correction)
    negative += correction
    if checked_flag("subtract_positive_log_q", subtract_positive_log_q):
        positive -= candidates.labels_log_q
    return cross_entropy_of_first(tf.concat([tf.expand_dims(positive, 1), negative], 1))


@tf.autograph.experimental.do_not_convert  # there is nothing to convert in it
def nce(table: ClassTable, inputs: Any, labels: Any, candidates: Candidates) -> Any:
    """Noise-contrastive estimation: is a class the label, or was it drawn by the sampler?

    For one label and a sample that contains class k on average Q_k times, the odds that k is the
    label are P(k) / Q_k. The loss fits the log odds f_k - log Q_k by logistic regression, once for
    the label and once for each candidate. Its minimum is f_k = log P(k), and it needs no partition
    function: the logits themselves become normalized (Gutmann and Hyvärinen 2010; Mnih and Teh
    2012). It is exact for every size of the sample if the model can represent P; a small sample
    only makes it slower.

    A candidate that equals the label stays: the noise contains labels too. Begin with a bias of
    `log_unigram(counts)`, and draw with ``unique=False``, which has Q_k exactly.

    Args:
        table, inputs, labels, candidates: as for `sampled_softmax`.

    Returns:
        float32 [batch]. It is no cross entropy: compare models by `full_softmax` or `perplexity`.
    """
    positive, negative, _ = _logits(table, inputs, labels, candidates)
    return _logistic(positive - candidates.labels_log_q, negative - candidates.log_q)


@tf.autograph.experimental.do_not_convert  # there is nothing to convert in it
def negative_sampling(
    table: ClassTable,
    inputs: Any,
    labels: Any,
    candidates: Candidates,
    *,
    num_negatives: float | None = None,
) -> Any:
    """The loss of word2vec: NCE that takes Q_k as 1 (Mikolov et al. 2013).

    Its minimum is f_k = log(P(k) / Q_k): good vectors, but no probabilities. Words that the
    sampler draws often get smaller logits.

    Args:
        table, inputs, labels, candidates: as for `sampled_softmax`.
        num_negatives: how many negatives an example has; the sum over the sample, which all
            examples share, is scaled to it. None takes the size of the sample.

    Returns:
        float32 [batch].
    """
    positive, negative, _ = _logits(table, inputs, labels, candidates)
    weight = 1.0
    if num_negatives is not None:
        rule = "must be a number above 0"
        wanted = checked_number(
            "num_negatives", num_negatives, lambda number: 0 < number < math.inf, rule
        )
        weight = wanted / int(candidates.ids.shape[0])
    return _logistic(positive, negative, weight)


def cross_entropy_of_first(logits: Any) -> Any:
    """The loss of a softmax over each row whose first element is the label."""
    first = tf.zeros(tf.shape(logits)[:1], tf.int32)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(first, logits)


def _logits(
    table: ClassTable, inputs: Any, labels: Any, candidates: Candidates
) -> tuple[Any, Any, Any]:
    """Logits of the labels [batch] and of the candidates [batch, num_sampled]; which are the label.

    The rows of both come in one lookup.
    """
    inputs = checked_inputs("inputs", inputs, checked_table(table).dim)
    labels = checked_ids("labels", labels, table.num_classes)
    labels = checked_rows("labels", labels, "inputs", inputs)
    _check_candidates(candidates, labels)
    ids = checked_ids("candidates.ids", candidates.ids, table.num_classes)
    num_sampled = int(ids.shape[0])
    # The gradient of a split is one concatenation; slices would each get one as large as all rows.
    (sampled, own), (sampled_bias, own_bias) = (
        tf.split(rows, [num_sampled, -1]) for rows in table.lookup(tf.concat([ids, labels], 0))
    )
    positive = tf.reduce_sum(inputs * own, 1) + own_bias
    negative = tf.matmul(inputs, sampled, transpose_b=True) + sampled_bias
    return positive, negative, tf.equal(labels[:, None], candidates.ids)


def _check_candidates(candidates: Any, labels: Any) -> None:
    rule = "must be what `sample` of a sampler returns"
    if not isinstance(candidates, Candidates):
        raise ConfigError("candidates", candidates, rule)
    shapes = []
    for field, value, dtype in zip(
        Candidates._fields, candidates, (tf.int64, tf.float32, tf.float32), strict=True
    ):
        if not isinstance(value, (tf.Tensor, np.ndarray)) or dtype != value.dtype:
            raise ConfigError(f"candidates.{field}", value, f"{rule}, {dtype.name}")
        shapes.append(tf.TensorShape(value.shape))
    if shapes[0].rank != 1 or not shapes[0][0]:
        raise ConfigError("candidates.ids", f"the shape {shapes[0]}", rule)
    if not shapes[1].is_compatible_with(shapes[0]):
        raise ConfigError("candidates.log_q", f"the shape {shapes[1]}", rule)
    if not shapes[2].is_compatible_with(labels.shape):
        rule = f"must have the shape of the labels, {labels.shape}"
        raise ConfigError("candidates.labels_log_q", f"the shape {shapes[2]}", rule)


def _logistic(positive: Any, negative: Any, weight: float = 1.0) -> Any:
    return tf.nn.softplus(-positive) + weight * tf.reduce_sum(tf.nn.softplus(negative), 1)
