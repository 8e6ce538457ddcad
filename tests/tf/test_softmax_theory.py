"""The losses of tfdist.nn do what their theory says; a wrong variant of each fails the same check.

Seeds are fixed, so that no test fails by chance. The number of draws makes what is measured several
times as large as its noise.
"""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf.softmax import ROUNDING, Model, differences, loss_and_gradients, of_draws
from tfdist import nn


class TestAllClassesAsCandidates:
    MODEL = Model(200, 8, 16)

    def differences(self, **options):
        """From the full softmax: of the losses and of the gradients."""
        everything = nn.Candidates(tf.range(200, dtype=tf.int64), tf.zeros([200]), tf.zeros([16]))
        table = self.MODEL.table()
        found = loss_and_gradients(
            table,
            self.MODEL.inputs,
            lambda table, inputs: nn.sampled_softmax(
                table, inputs, self.MODEL.labels, everything, **options
            ),
        )
        full = loss_and_gradients(table, self.MODEL.inputs, self.MODEL.full_softmax)
        return differences(found, full)

    @pytest.mark.parametrize("subtract", [True, False])
    def test_it_is_the_full_softmax(self, subtract):
        assert max(self.differences(subtract_positive_log_q=subtract)) < ROUNDING

    def test_with_hits_kept_it_is_not(self):
        assert min(self.differences(remove_accidental_hits=False)) > 100 * ROUNDING


def without_log_q(candidates):
    return candidates._replace(
        log_q=tf.zeros_like(candidates.log_q), labels_log_q=tf.zeros_like(candidates.labels_log_q)
    )


def relative_bias(draws, expected):
    """The distance of their mean from what was expected, without the part that noise has in it."""
    distance = np.sum((draws.mean(0) - expected) ** 2)
    noise = np.sum(draws.var(0)) / len(draws)
    return np.sqrt(max(distance - noise, 0) / np.sum(expected**2))


class Biases:
    """How far the mean gradient of sampled_softmax is from that of the full one, relative to it.

    The inputs are one-hot, so the weights are the logits, and each example has a column of the
    gradient of its own. The labels are what the model itself draws.
    """

    SIZES = (2, 8, 32, 128)  # of 200 classes
    DRAWS = 500  # the noise of a mean is 1% to 3% of the gradient

    def __init__(self):
        self.model = Model(200, 16, 16, scale=1.5)
        self.model.inputs = np.eye(16, dtype=np.float32)
        prob = self.model.probabilities
        rng = np.random.default_rng(0)
        self.model.labels = np.array([rng.choice(200, p=row) for row in prob])
        self.table = self.model.table()
        self.full = (prob - np.eye(200)[self.model.labels]).T
        self.samplers = {
            "log-uniform": nn.LogUniformSampler(200),
            "uniform": nn.UniformSampler(200),
            "unigram": nn.UnigramSampler(
                self.table, 1000 * np.exp(self.model.bias), pseudo_count=0
            ),
        }
        self.known = {}

    def of(self, sampler, num_sampled, *, unique=True):
        """Those of the usual loss, of the correction of 2025, and of the loss without log_q."""
        key = sampler, num_sampled, unique
        if key not in self.known:
            self.known[key] = self._measure(self.samplers[sampler], num_sampled, unique)
        return self.known[key]

    def _measure(self, sampler, num_sampled, unique):
        batch = self.table, self.model.inputs, self.model.labels

        def gradients(seed):
            drawn = sampler.sample(num_sampled, self.model.labels, unique=unique, seed=seed)
            with tf.GradientTape(persistent=True) as tape:
                losses = [
                    nn.sampled_softmax(*batch, drawn),
                    nn.sampled_softmax(*batch, drawn, subtract_positive_log_q=False),
                    nn.sampled_softmax(*batch, without_log_q(drawn)),
                ]
            found = [tape.gradient(loss, self.table.weights) for loss in losses]
            return tf.stack([tf.convert_to_tensor(gradient) for gradient in found])

        draws = of_draws(gradients, self.DRAWS)
        return [relative_bias(draws[:, loss], self.full) for loss in range(3)]


@pytest.fixture(scope="module")
def biases():
    return Biases()


class TestTheBiasOfASampledSoftmax:
    def test_it_falls_with_the_size_of_the_sample(self, biases):
        usual, corrected, _ = zip(*(biases.of("log-uniform", n) for n in Biases.SIZES), strict=True)
        for found in (usual, corrected):
            assert list(found) == sorted(found, reverse=True)
            assert found[-1] < 0.02  # measured: 0.0023

    def test_without_log_q_it_stays(self, biases):
        usual, _, without = zip(*(biases.of("log-uniform", n) for n in Biases.SIZES), strict=True)
        assert without[-1] > 0.02
        # With 8 of 200 classes or fewer all gradients are far from the full one, and which is
        # farther depends on the labels.
        assert all(np.greater(without, np.multiply(1.5, usual))[2:])

    @pytest.mark.rotates(2)
    @pytest.mark.parametrize("num_sampled", [2, 8, 32])
    @pytest.mark.parametrize("unique", [True, False])
    @pytest.mark.parametrize("sampler", ["log-uniform", "uniform", "unigram"])
    def test_the_correction_of_2025_at_least_halves_it(self, biases, sampler, unique, num_sampled):
        usual, corrected, _ = biases.of(sampler, num_sampled, unique=unique)
        assert corrected < 0.55 * usual  # measured: 0.30 to 0.53 of it

    def test_a_correction_that_is_the_same_for_all_classes_is_none(self, biases):
        """The usual loss subtracts it from the label's logit too, so that it changes nothing."""
        usual, _, without = biases.of("uniform", 8)
        assert usual == pytest.approx(without, rel=1e-3)


def test_with_replacement_the_usual_gradient_does_not_converge_to_the_full_one():
    """A large sample has the label Q > 1 times. As hits these take no part, and the label itself
    counts as 1 / Q of a class: its class is nearly missing in the sum.
    """
    model = Model(20, 4, 8)
    table = model.table()
    exact = loss_and_gradients(table, model.inputs, model.full_softmax)[1]
    drawn = nn.LogUniformSampler(20).sample(50_000, model.labels, unique=False, seed=0)

    def error(**options):
        _, gradient, *_ = loss_and_gradients(
            table,
            model.inputs,
            lambda table, inputs: nn.sampled_softmax(table, inputs, model.labels, drawn, **options),
        )
        return np.linalg.norm(gradient - exact) / np.linalg.norm(exact)

    # 50,000 draws estimate the sum of 20 exponentials to about 1%.
    assert error() > 0.2
    assert error(subtract_positive_log_q=False) < 0.02
    assert error(remove_accidental_hits=False) < 0.02


def test_the_gradient_of_the_correction_of_2025_is_that_of_its_paper():
    """There the loss is the softmax over the negatives alone, times a constant 1 - P(label)."""
    model = Model(200, 8, 16)
    drawn = nn.LogUniformSampler(200).sample(32, model.labels, seed=0)
    hits = model.labels[:, None] == drawn.ids.numpy()

    def ours(table, inputs):
        return nn.sampled_softmax(table, inputs, model.labels, drawn, subtract_positive_log_q=False)

    def papers(table, inputs, weight=None):
        weights, bias = table.lookup(drawn.ids)
        negatives = tf.matmul(inputs, weights, transpose_b=True) + bias - drawn.log_q
        log_sum = tf.reduce_logsumexp(tf.where(hits, -1e30, negatives), 1)
        weights, bias = table.lookup(model.labels)
        positive = tf.reduce_sum(inputs * weights, 1) + bias
        if weight is None:
            weight = 1 - tf.sigmoid(positive - log_sum)
        return tf.stop_gradient(weight) * (log_sum - positive)

    table = model.table()
    _, *expected = loss_and_gradients(table, model.inputs, ours)
    _, *found = loss_and_gradients(table, model.inputs, papers)
    _, *unweighted = loss_and_gradients(table, model.inputs, lambda *args: papers(*args, 1.0))
    assert max(differences(found, expected)) < ROUNDING
    assert min(differences(unweighted, expected)) > 100 * ROUNDING


class InBatchBiases:
    """As Biases, for in_batch_softmax and all 20 items, by pairs of 4 queries and an item."""

    QUERIES, ITEMS, DIM = 4, 20, 6

    def __init__(self):
        rng = np.random.default_rng(0)
        self.law = rng.dirichlet(np.ones(self.ITEMS), size=self.QUERIES) * 0.9 + 0.1 / self.ITEMS
        self.queries, self.items = (
            rng.normal(size=(n, self.DIM)).astype(np.float32) for n in (self.QUERIES, self.ITEMS)
        )
        prob = tf.nn.softmax(self.queries @ self.items.T).numpy()
        self.full = ((prob @ self.items)[:, None] - self.items).reshape(-1, self.DIM)

    def of(self, batch):
        """Usual, by the correction of 2025, by how many batches contain an item, uncorrected."""
        popularity = self.law.mean(0)
        mean_count = np.log(batch * popularity)
        contained = np.log(1 - (1 - popularity) ** batch)
        losses = [(mean_count, True), (mean_count, False), (contained, True), (0 * contained, True)]

        def gradients(seed):
            """[batch, 1 + 4 dim]: which pair, and the gradients of its query."""
            x = tf.random.stateless_uniform([batch], [seed, 0], 0, self.QUERIES, tf.int32)
            y = tf.random.stateless_categorical(np.log(self.law), batch, [seed, 1], tf.int32)
            y = tf.gather(tf.transpose(y), x, batch_dims=1)
            queries, items = tf.gather(self.queries, x), tf.gather(self.items, y)
            found = [tf.cast((x * self.ITEMS + y)[:, None], tf.float32)]
            for log_q, subtract in losses:
                with tf.GradientTape() as tape:
                    tape.watch(queries)
                    loss = nn.in_batch_softmax(
                        queries, items, y, tf.gather(log_q, y), subtract_positive_log_q=subtract
                    )
                found.append(tape.gradient(loss, queries))
            return tf.concat(found, 1)

        draws = of_draws(gradients, 20_000 // batch).reshape(-1, 1 + len(losses) * self.DIM)
        pairs = draws[:, 0].astype(int)
        return [self._mean(pairs, each) for each in np.split(draws[:, 1:], len(losses), axis=1)]

    def _mean(self, pairs, found):
        """Each pair counts as often as it occurs; noise does not count."""
        distance = noise = 0.0
        for pair, full in enumerate(self.full):
            errors = found[pairs == pair] - full
            distance += len(errors) * np.sum(errors.mean(0) ** 2)
            noise += np.sum(errors.var(0))
        return np.sqrt(max(distance - noise, 0) / np.sum(self.full[pairs] ** 2))


@pytest.fixture(scope="module")
def in_batch_biases():
    biases = InBatchBiases()
    return {batch: biases.of(batch) for batch in (4, 64)}


class TestTheBiasOfInBatchSoftmax:
    def test_it_falls_with_the_batch(self, in_batch_biases):
        assert in_batch_biases[64][0] < in_batch_biases[4][0] / 3  # measured: 0.10 and 0.41

    def test_the_correction_of_2025_lowers_it_a_little(self, in_batch_biases):
        """By less than above, for the labels come from the same distribution as the sample."""
        for usual, corrected, *_ in in_batch_biases.values():
            assert corrected < 0.95 * usual  # measured: 0.89 and 0.84 of it

    def test_uncorrected_it_stays(self, in_batch_biases):
        assert in_batch_biases[64][3] > 1.5 * in_batch_biases[64][0]

    def test_log_q_is_of_the_mean_count_not_of_the_batches_that_contain_the_item(
        self, in_batch_biases
    ):
        """A popular item is a negative as often as it occurs."""
        assert in_batch_biases[64][2] > 1.5 * in_batch_biases[64][0]


class TestNoiseContrastiveEstimation:
    """A known law of 50 classes in 10 contexts, which a model with one-hot inputs can represent.

    The batch is each class in each context, weighted by the law, so that only the candidates are
    random.
    """

    NUM_SAMPLED = 25
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.full(50, 0.5), size=10) * 0.98 + 0.02 / 50
    q = NUM_SAMPLED * np.exp(nn.LogUniformSampler(50).log_prob(tf.range(50, dtype=tf.int64)))

    def trained_logits(self, loss):
        table = nn.ClassTable(
            50, 10, weights_init=np.zeros([50, 10]), bias_init=nn.log_unigram(self.law.mean(0))
        )
        sampler, optimizer = nn.LogUniformSampler(50), nn.Adagrad(0.3)
        optimizer.build([table])
        inputs = np.repeat(np.eye(10, dtype=np.float32), 50, 0)
        labels = np.tile(np.arange(50), 10)
        weights = tf.constant(self.law.reshape(-1), tf.float32)

        def step(seed):
            drawn = sampler.sample(self.NUM_SAMPLED, labels, unique=False, seed=seed)
            with tf.GradientTape() as tape:
                total = tf.reduce_sum(weights * loss(table, inputs, labels, drawn))
            gradient = tape.gradient(total, table.weights)
            with tf.control_dependencies([optimizer.apply_gradients([(gradient, table.weights)])]):
                return seed + 1

        @tf.function(autograph=False)
        def train():
            return tf.while_loop(
                lambda seed: seed < 1000, step, [tf.constant(0)], parallel_iterations=1
            )

        train()
        return table.weights.numpy().T + table.bias.numpy()

    def divergence(self, logits):
        log_model = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return np.sum(self.law * (np.log(self.law) - log_model), 1).mean()

    def test_it_learns_the_law_with_normalized_logits(self):
        logits = self.trained_logits(nn.nce)
        assert self.divergence(logits) < 0.02  # measured: 0.010; 0.004 after 4 times the steps
        assert np.abs(np.exp(logits).sum(1) - 1).max() < 0.15  # measured: 0.04

    def test_negative_sampling_learns_the_law_divided_by_the_samplers(self):
        logits = self.trained_logits(nn.negative_sampling)
        assert self.divergence(logits) > 0.2
        assert np.abs(np.exp(logits).sum(1) - 1).min() > 1
        assert self.divergence(logits + np.log(self.q)) < 0.02
        error = logits - np.log(self.law / self.q)
        assert np.sqrt(np.sum(self.law * error**2) / 10) < 0.2  # measured: 0.12
