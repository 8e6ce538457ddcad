"""Samplers draw what they say, and the same again from the same seed.

Seeds are fixed, so that no test fails by chance.
"""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tests.tf.softmax import MODES, Model, evaluate, of_draws
from tfdist import ConfigError, nn
from tfdist.nn.unigram import alias_table

NUM_CLASSES = 50
ALL = np.arange(NUM_CLASSES)
COUNTS = 1000 / (ALL + 1) ** 1.5
ALL_DRAWS = 20_000

# Of a sum of squares of some 50 standard normal numbers, in standard deviations from its mean: with
# all draws right, one of 100,000 exceeds it. Wrong ones have hundreds.
MOST_DEVIATIONS = 5


def table(num_shards=1):
    return nn.ClassTable(NUM_CLASSES, 2, num_shards=num_shards)


def make_all(num_shards=3):
    unigram = nn.UnigramSampler(table(num_shards), COUNTS)
    return {
        "uniform": nn.UniformSampler(NUM_CLASSES),
        "log-uniform": nn.LogUniformSampler(NUM_CLASSES),
        "unigram": unigram,
        "mixed": nn.MixedSampler([unigram, nn.UniformSampler(NUM_CLASSES)], [3, 1]),
    }


def make(name, num_shards=3):
    return make_all(num_shards)[name]


NAMES = ["uniform", "log-uniform", "unigram", "mixed"]


def claims(sampler):
    return np.exp(sampler.log_prob(tf.constant(ALL, tf.int64)).numpy().astype(np.float64))


def deviations(ids, prob):
    """How many standard deviations Pearson's statistic of the draws is above its mean."""
    expected = len(ids) * prob
    statistic = np.sum((np.bincount(ids, minlength=len(prob)) - expected) ** 2 / expected)
    freedom = len(prob) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def drawn(sampler, seed, count=ALL_DRAWS):
    return sampler.draw(count, tf.constant([seed, 0])).numpy()


class TestWithReplacement:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("name", NAMES)
    def test_classes_occur_as_often_as_the_sampler_says(self, name, seed):
        sampler = make(name)
        assert claims(sampler).sum() == pytest.approx(1, abs=1e-6)
        assert deviations(drawn(sampler, seed), claims(sampler)) < MOST_DEVIATIONS

    @pytest.mark.parametrize("name", NAMES)
    def test_no_other_sampler_says_the_same(self, name):
        ids = drawn(make(name), 0)
        for other in set(NAMES) - {name}:
            assert deviations(ids, claims(make(other))) > 10 * MOST_DEVIATIONS

    @pytest.mark.parametrize("power", [1, 0.75])
    @pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
    def test_a_unigram_sampler_draws_by_the_power_of_the_counts(self, num_shards, power):
        sampler = nn.UnigramSampler(table(num_shards), COUNTS, power=power, pseudo_count=0)
        prob = COUNTS**power / np.sum(COUNTS**power)
        assert claims(sampler) == pytest.approx(prob, rel=1e-5)  # its logarithm is a float32
        ids = drawn(sampler, 0)
        assert deviations(ids, prob) < MOST_DEVIATIONS
        other = COUNTS ** (1.75 - power)
        assert deviations(ids, other / other.sum()) > 10 * MOST_DEVIATIONS

    @pytest.mark.parametrize("num_shards", [1, 3])
    def test_each_draw_is_independent_of_the_one_before(self, num_shards):
        first, second = drawn(make("unigram", num_shards), 0).reshape(-1, 2).T
        prob = claims(make("unigram")).reshape(5, 10).sum(1)
        both = (first // 10) * 5 + second // 10
        assert deviations(both, np.outer(prob, prob).reshape(-1)) < MOST_DEVIATIONS

    @pytest.mark.parametrize("name", NAMES)
    def test_draws_from_a_shard_have_the_probabilities_within_it(self, name):
        sampler = make(name)
        prob = claims(sampler)
        for shard in table(3).shards:
            part = shard.start, shard.stop
            share = math.exp(sampler.log_share(part))
            assert share == pytest.approx(prob[slice(*part)].sum(), rel=1e-5)
            ids = sampler.draw_from(part, ALL_DRAWS, tf.constant([0, 0])).numpy() - shard.start
            assert deviations(ids, prob[slice(*part)] / share) < MOST_DEVIATIONS

    def test_log_q_is_that_of_the_mean_count(self):
        for name in NAMES:
            found = make(name).sample(7, ALL, unique=False, seed=0)
            expected = np.log(7 * claims(make(name)))
            assert found.labels_log_q.numpy() == pytest.approx(expected, abs=1e-5)
            assert found.log_q.numpy() == pytest.approx(expected[found.ids.numpy()], abs=1e-5)


class TestCountsOfZero:
    COUNTS = np.r_[np.zeros(10), np.arange(1, 41)]

    def test_a_pseudo_count_gives_them_a_probability(self):
        sampler = nn.UnigramSampler(table(7), self.COUNTS, pseudo_count=0.5)
        prob = (self.COUNTS + 0.5) / np.sum(self.COUNTS + 0.5)
        assert claims(sampler) == pytest.approx(prob, rel=1e-5)
        assert deviations(drawn(sampler, 0), prob) < MOST_DEVIATIONS

    def test_without_one_they_are_refused(self):
        """A label of such a class would have an infinite weight."""
        with pytest.raises(ConfigError, match=r"counts\[0\]: got 0.0; must be positive where"):
            nn.UnigramSampler(table(7), self.COUNTS, pseudo_count=0)


class TestWithoutReplacement:
    """Against the frequency with which 2,000 samples contain a class.

    TensorFlow's formula is 1 - (1 - q)^n after n draws. It is exact for a fixed n, but n here is
    when the sample was complete, which depends on the classes in it. For a sampler with a class of
    probability 1/2 and 49 equal ones, and samples of 2, the sum over all cases is 0.7526 against
    0.7923: 5.3% too much, the most found in any. In most cases it is below 1%.
    """

    DRAWS = 2000
    FORMULA = 0.06

    def sampler(self, name):
        if name != "one heavy":
            return make(name)
        return nn.UnigramSampler(table(), np.r_[49, np.ones(49)], pseudo_count=0)

    def draws(self, name, num_sampled):
        """Whether each sample contains each class, and what it says of it: [draws, 2, classes]."""
        sampler = self.sampler(name)

        def one(seed):
            found = sampler.sample(num_sampled, ALL, seed=seed)
            contains = tf.scatter_nd(found.ids[:, None], tf.ones([num_sampled]), [NUM_CLASSES])
            return tf.stack([contains, tf.exp(found.labels_log_q)])

        return of_draws(one, self.DRAWS)

    def is_close(self, contains, claimed):
        frequency = contains.mean(0)
        noise = np.sqrt(claimed * (1 - claimed) / self.DRAWS)
        return np.abs(frequency - claimed) < self.FORMULA * frequency + 4 * noise

    @pytest.mark.rotates(2)
    @pytest.mark.parametrize("num_sampled", [2, 10, 40])
    @pytest.mark.parametrize("name", [*NAMES, "one heavy"])
    def test_samples_contain_a_class_about_as_often_as_they_say(self, name, num_sampled):
        contains, claimed = np.moveaxis(self.draws(name, num_sampled), 1, 0)
        assert contains.max() == 1  # never twice
        assert (contains.sum(1) == num_sampled).all()
        assert self.is_close(contains, claimed.mean(0)).all()

    def test_the_claims_of_another_sampler_are_not_close(self):
        contains, _ = np.moveaxis(self.draws("log-uniform", 10), 1, 0)
        _, claimed = np.moveaxis(self.draws("uniform", 10), 1, 0)
        assert not self.is_close(contains, claimed.mean(0)).all()

    def test_the_number_of_tries_in_the_formula_is_right(self):
        """A test that is exact, by a martingale.

        After t draws a class is missing with probability (1 - q)^t. So the indicator that it is
        missing, divided by that, has mean 1 after each draw, and when the sample is complete too.
        """
        contains, claimed = np.moveaxis(self.draws("log-uniform", 5), 1, 0)
        for extra, is_right in ((0, True), (1, False)):
            missing = (1 - claimed) * (1 - claims(make("log-uniform"))) ** extra
            ratio = ((1 - contains) / missing).astype(np.float64)
            noise = ratio.std(0) / math.sqrt(self.DRAWS)
            # The most of 50 classes.
            assert (np.max(np.abs(ratio.mean(0) - 1) / noise) < 4) == is_right


class TestSeeds:
    def test_a_seed_draws_the_same_in_all_modes(self):
        def samples(samplers):
            return [
                tensor
                for sampler in (samplers["log-uniform"], samplers["mixed"])  # of the other two
                for unique in (True, False)
                for tensor in sampler.sample(9, [0, 7], unique=unique, seed=5)
            ]

        eager, *others = (evaluate(mode, make_all, samples) for mode in MODES)
        for other in others:
            for expected, found in zip(eager, other, strict=True):
                # A graph may compute a logarithm in another order; the classes are the same.
                assert found == pytest.approx(expected, abs=1e-6)

    def test_on_the_ps_too(self):
        model = Model(NUM_CLASSES, 2, 8)
        sampler = nn.LogUniformSampler(NUM_CLASSES)

        def losses(table):
            return [
                nn.sampled_softmax_on_ps(table, model.inputs, model.labels, sampler, 9, seed=seed)
                for seed in (5, 6)
            ]

        eager, *others = (evaluate(mode, lambda: model.table(2), losses) for mode in MODES)
        for found in others:
            assert found[0] == pytest.approx(eager[0], abs=1e-5)
            assert found[0] != pytest.approx(found[1], abs=1e-2)

    @pytest.mark.parametrize("name", NAMES)
    def test_another_seed_draws_another_sample(self, name):
        sampler = make(name)
        seeds = [0, 1, -1, 2**62, [0, 1], [1, 0]]
        samples = [tuple(sampler.sample(9, [0], seed=seed).ids.numpy()) for seed in seeds]
        # The number 1 is the seed [1, 0].
        assert len(set(samples)) == len(seeds) - 1
        assert samples[1] == samples[-1]

    @pytest.mark.parametrize("name", ["log-uniform", "unigram"])
    def test_without_a_seed_each_run_draws_another_sample(self, name):
        sampler = make(name)
        run = tf.function(lambda: sampler.sample(9, [0]).ids, autograph=False)
        samples = {tuple(draw().numpy()) for draw in (run, lambda: sampler.sample(9, [0]).ids) * 3}
        assert len(samples) == 6

    def test_shards_draw_from_seeds_of_their_own(self):
        """Else equal shards would choose equal cells."""
        sampler = nn.UnigramSampler(nn.ClassTable(50, 2, num_shards=2), np.ones(50))
        ids = drawn(sampler, 0)
        first, second = ids[ids < 25], ids[ids >= 25] - 25
        size = min(len(first), len(second))
        assert np.mean(first[:size] == second[:size]) < 0.06  # by chance: 1 / 25


class TestAliasTable:
    """The mass of a class is its own threshold, and what other cells leave to it."""

    def rebuilt(self, prob):
        found = alias_table(prob)
        mass = found["threshold"].astype(np.float64)
        left = np.bincount(found["other"], 1 - mass, minlength=len(prob))
        return (mass + left) / len(prob)

    def check(self, prob):
        prob = np.asarray(prob, np.float64)
        prob = prob / prob.sum()
        # A threshold is a float32, and a cell is 1 / n of the mass.
        assert self.rebuilt(prob) == pytest.approx(prob, abs=1e-6)

    @given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=60))
    def test_it_has_the_mass_of_any_distribution(self, prob):
        self.check(prob)

    @given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), max_size=60))
    def test_it_has_that_of_ties_and_zeros(self, prob):
        self.check([*prob, 1])

    @pytest.mark.parametrize(
        "prob",
        [
            [1],
            np.ones(1000),
            np.r_[1e300, np.full(99, 1e-300)],
            np.r_[np.full(99, 1e-9), 1],
            np.r_[1, np.zeros(99)],
            1 / np.arange(1, 100_001),
            np.exp(-np.arange(700)),
            np.tile([1, 3], 500),
        ],
        ids=str,
    )
    def test_it_has_that_of_extreme_distributions(self, prob):
        self.check(prob)

    def test_a_table_of_other_cells_has_another_mass(self):
        prob = COUNTS / COUNTS.sum()
        found = alias_table(prob)
        mass = found["threshold"].astype(np.float64)
        left = np.bincount(np.roll(found["other"], 1), 1 - mass, minlength=NUM_CLASSES)
        assert np.abs((mass + left) / NUM_CLASSES - prob).max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_that_is_a_number_draws_more_rounds_in_a_function(seed):
    counts = 1e6 / np.arange(1, 101)  # so skewed that 60 different classes take several rounds
    sampler = nn.UnigramSampler(nn.ClassTable(100, 2, num_shards=2), counts)
    ids = tf.function(lambda: sampler.sample(60, [1], seed=seed).ids)()
    assert len(set(ids.numpy())) == 60
    np.testing.assert_array_equal(ids, sampler.sample(60, [1], seed=seed).ids)
