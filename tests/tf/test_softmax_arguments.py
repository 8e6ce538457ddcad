"""Wrong arguments of tfdist.nn: one error each, which names the field, the value and the rule."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf.softmax import Model, loss_and_gradients
from tfdist import ConfigError, nn

v1 = tf.compat.v1

MODEL = Model(10, 4, 3)
TABLE = MODEL.table(2)
X, Y = MODEL.inputs, MODEL.labels
UNIFORM = nn.UniformSampler(10)
DRAWN = UNIFORM.sample(5, Y, seed=0)
ONE_LABEL = UNIFORM.sample(5, Y[:1], seed=0)
NAN, INF = float("nan"), float("inf")


def options(name, labels):
    """What a loss has besides its table, inputs and labels."""
    return {"full_softmax": (), "sampled_softmax_on_ps": (UNIFORM, 5)}.get(
        name, (UNIFORM.sample(5, labels),)
    )


# Functions of inputs and labels.
LOSSES = {
    "sampled_softmax": lambda x, y: nn.sampled_softmax(TABLE, x, y, DRAWN),
    "nce": lambda x, y: nn.nce(TABLE, x, y, DRAWN),
    "negative_sampling": lambda x, y: nn.negative_sampling(TABLE, x, y, DRAWN),
    "full_softmax": lambda x, y: nn.full_softmax(TABLE, x, y),
    "sampled_softmax_on_ps": lambda x, y: nn.sampled_softmax_on_ps(TABLE, x, y, UNIFORM, 5),
}
OUT_OF_RANGE = "labels must be from 0 to 9"


def refuses(call, field, rule):
    """The value that the error says."""
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.field == field
    assert rule in caught.value.rule
    assert field in str(caught.value)
    return caught.value.value


@pytest.mark.parametrize("name", LOSSES)
class TestABatch:
    @pytest.mark.parametrize("wrong", [-1, 10, 2**40])
    def test_a_label_out_of_range_is_refused(self, name, wrong):
        assert refuses(lambda: LOSSES[name](X, [0, wrong, 1]), "labels", "from 0 to 9") == wrong

    def test_in_a_function_and_in_a_graph_the_run_fails(self, name):
        run = tf.function(LOSSES[name], autograph=False)
        for wrong in (-1, 10):
            with pytest.raises(tf.errors.InvalidArgumentError, match=OUT_OF_RANGE) as caught:
                run(X, np.array([0, wrong, 1]))
            assert str(wrong) in str(caught.value)
        with tf.Graph().as_default(), v1.Session() as session:
            labels, table = v1.placeholder(tf.int64, [None]), MODEL.table(2)
            loss = getattr(nn, name)(table, X, labels, *options(name, labels))
            session.run([v1.global_variables_initializer(), v1.local_variables_initializer()])
            assert np.isfinite(session.run(loss, {labels: Y})).all()
            for wrong in (-1, 10):
                with pytest.raises(tf.errors.InvalidArgumentError, match=OUT_OF_RANGE):
                    session.run(loss, {labels: [0, wrong, 1]})

    @pytest.mark.parametrize("wrong", [[0.0, 1.0, 2.0], ["a"] * 3, None, [True] * 3, [[1], [1, 2]]])
    def test_labels_are_integers(self, name, wrong):
        refuses(lambda: LOSSES[name](X, wrong), "labels", "must be integers")

    @pytest.mark.parametrize("wrong", [Y[:, None], 3])
    def test_labels_are_a_vector(self, name, wrong):
        shape = refuses(lambda: LOSSES[name](X, wrong), "labels", "must have the shape [batch]")
        assert shape == f"the shape {np.shape(wrong)}"

    @pytest.mark.parametrize("wrong", [X.astype(int), "abc", None, [[1.0, 2.0], [3.0]], [1 + 2j]])
    def test_inputs_are_floating_point_numbers(self, name, wrong):
        refuses(lambda: LOSSES[name](wrong, Y), "inputs", "must be floating-point numbers")

    @pytest.mark.parametrize("wrong", [X[:, :3], X[0], X[None]])
    def test_inputs_are_a_matrix_with_the_tables_dim(self, name, wrong):
        refuses(lambda: LOSSES[name](wrong, Y), "inputs", "must have the shape [batch, 4]")

    @pytest.mark.parametrize("wrong", [NAN, INF, -INF])
    def test_an_input_that_is_no_finite_number_is_refused(self, name, wrong):
        inputs = X.copy()
        inputs[1, 2] = wrong
        rule = f"inputs must be finite numbers : Tensor had {'NaN' if wrong != wrong else '-?Inf'}"
        with pytest.raises(tf.errors.InvalidArgumentError, match=rule):
            LOSSES[name](inputs, Y)

    def test_a_number_too_large_for_float32_is_infinite(self, name):
        with pytest.raises(tf.errors.InvalidArgumentError, match="inputs must be finite numbers"):
            LOSSES[name](X.astype(np.float64) * 1e300, Y)

    @pytest.mark.parametrize(("inputs", "labels"), [(X[:2], Y), (X, Y[:2]), (X, Y[:1]), (X[:1], Y)])
    def test_inputs_and_labels_are_equally_many(self, name, inputs, labels):
        """TensorFlow would repeat a single one: a loss, but not that of any batch."""
        found = refuses(lambda: LOSSES[name](inputs, labels), "labels", "each row of inputs")
        assert found == f"{len(labels)} rows"

    def test_in_a_function_of_any_batch_too(self, name):
        run = tf.function(
            LOSSES[name],
            autograph=False,
            input_signature=[tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.int64)],
        )
        assert run(X, Y).shape == [3]
        with pytest.raises(tf.errors.InvalidArgumentError, match="labels must have one for each"):
            run(X[:1], Y)

    def test_an_empty_batch_has_no_loss_and_a_gradient_of_zero(self, name):
        losses, *gradients = loss_and_gradients(
            TABLE, X[:0], lambda table, x: getattr(nn, name)(table, x, Y[:0], *options(name, Y[:0]))
        )
        assert losses.shape == [0]
        assert [gradient.shape for gradient in gradients] == [[10, 4], [10], [0, 4]]
        assert not any(np.any(gradient) for gradient in gradients)


class TestOptionsOfLosses:
    @pytest.mark.parametrize("wrong", [None, TABLE.weights, "table"])
    @pytest.mark.parametrize(
        "call",
        [
            lambda table: nn.sampled_softmax(table, X, Y, DRAWN),
            lambda table: nn.nce(table, X, Y, DRAWN),
            lambda table: nn.negative_sampling(table, X, Y, DRAWN),
            lambda table: nn.full_softmax(table, X, Y),
            lambda table: nn.sampled_softmax_on_ps(table, X, Y, UNIFORM, 5),
            lambda table: nn.top_k(table, X, 1),
            lambda table: nn.UnigramSampler(table, np.ones(10)),
        ],
    )
    def test_the_table_is_a_class_table(self, call, wrong):
        assert refuses(lambda: call(wrong), "table", "must be a ClassTable") is wrong

    @pytest.mark.parametrize("wrong", [None, tuple(DRAWN), DRAWN.ids])
    def test_candidates_are_what_a_sampler_returns(self, wrong):
        refuses(lambda: nn.nce(TABLE, X, Y, wrong), "candidates", "must be what `sample`")

    @pytest.mark.parametrize(
        ("part", "wrong"),
        [
            ("ids", [1, 2, 3, 4, 5]),
            ("ids", tf.range(5)),
            ("ids", tf.zeros([0], tf.int64)),
            ("ids", tf.constant(3, tf.int64)),
            ("log_q", tf.zeros([5], tf.float64)),
            ("log_q", tf.zeros([4])),
            ("labels_log_q", None),
            ("labels_log_q", ONE_LABEL.labels_log_q),
        ],
    )
    def test_candidates_have_their_types_and_sizes(self, part, wrong):
        candidates = DRAWN._replace(**{part: wrong})
        for loss in (nn.sampled_softmax, nn.nce, nn.negative_sampling):
            refuses(lambda loss=loss: loss(TABLE, X, Y, candidates), f"candidates.{part}", "must")

    def test_candidates_of_another_run_may_be_arrays(self):
        arrays = nn.Candidates(*(part.numpy() for part in DRAWN))
        for loss in (nn.sampled_softmax, nn.nce, nn.negative_sampling):
            found, expected = (loss(TABLE, X, Y, each).numpy() for each in (arrays, DRAWN))
            assert found.tolist() == expected.tolist()

    @pytest.mark.parametrize("wrong", ["no", 1, None])
    def test_flags_are_true_or_false(self, wrong):
        for flag in ("remove_accidental_hits", "subtract_positive_log_q"):
            option = {flag: wrong}
            for call in (
                lambda option=option: nn.sampled_softmax(TABLE, X, Y, DRAWN, **option),
                lambda option=option: nn.in_batch_softmax(X, X, Y, np.zeros(3), **option),
            ):
                assert refuses(call, flag, "must be True or False") is wrong

    @pytest.mark.parametrize("wrong", [0, -1, NAN, INF, "3", True, [1]])
    def test_num_negatives_is_above_0(self, wrong):
        assert (
            refuses(
                lambda: nn.negative_sampling(TABLE, X, Y, DRAWN, num_negatives=wrong),
                "num_negatives",
                "must be a number above 0",
            )
            is wrong
        )

    @pytest.mark.parametrize("wrong", [0, -1, 1.5, "8", None, True])
    def test_a_chunk_has_a_class(self, wrong):
        for call in (
            lambda: nn.full_softmax(TABLE, X, Y, chunk=wrong),
            lambda: nn.top_k(TABLE, X, 1, chunk=wrong),
            lambda: nn.perplexity(TABLE, [(X, Y)], chunk=wrong),
        ):
            assert refuses(call, "chunk", "must be a whole number, at least 1") is wrong

    @pytest.mark.parametrize("chunk", [2**31, 2**40])
    def test_a_chunk_may_be_larger_than_any_table(self, chunk):
        expected = nn.full_softmax(TABLE, X, Y).numpy()
        assert nn.full_softmax(TABLE, X, Y, chunk=chunk).numpy() == pytest.approx(expected)

    @pytest.mark.parametrize("wrong", [None, nn.UniformSampler(9), "uniform"])
    def test_a_sampler_is_for_the_tables_classes(self, wrong):
        assert (
            refuses(
                lambda: nn.sampled_softmax_on_ps(TABLE, X, Y, wrong, 5),
                "sampler",
                "must be a sampler of 10 classes",
            )
            is wrong
        )

    def test_a_unigram_sampler_is_for_the_tables_shards(self):
        """Else a shard would draw classes of others."""
        unigram = nn.UnigramSampler(MODEL.table(3), np.ones(10))
        for sampler in (unigram, nn.MixedSampler([UNIFORM, unigram], [1, 1])):
            refuses(
                lambda sampler=sampler: nn.sampled_softmax_on_ps(TABLE, X, Y, sampler, 5),
                "sampler",
                "must be made for a table with the same shards",
            )

    @pytest.mark.parametrize("wrong", [0, -1, 11, 1.5, None])
    def test_k_is_at_most_the_number_of_classes(self, wrong):
        found = refuses(lambda: nn.top_k(TABLE, X, wrong), "k", "must be a whole number from 1 to")
        assert found is wrong

    def test_queries_are_checked_like_inputs(self):
        refuses(lambda: nn.top_k(TABLE, X[:, :2], 1), "queries", "must have the shape [batch, 4]")
        with pytest.raises(tf.errors.InvalidArgumentError, match="queries must be finite numbers"):
            nn.top_k(TABLE, X * NAN, 1)
        logits, ids = nn.top_k(TABLE, X[:0], 7)
        assert (logits.shape, ids.shape) == ([0, 7], [0, 7])


class TestInBatchSoftmax:
    @pytest.mark.parametrize(
        ("field", "change"),
        [
            ("items", {"items": X[:2]}),
            ("items", {"items": X[:1]}),
            ("ids", {"ids": Y[:2]}),
            ("log_q", {"log_q": np.zeros(2)}),
            ("log_q", {"log_q": np.zeros(1)}),
        ],
    )
    def test_all_have_a_row_for_each_query(self, field, change):
        refuses(lambda: self.loss(**change), field, "must have one for each row of queries")

    @pytest.mark.parametrize(
        ("field", "wrong", "rule"),
        [
            ("queries", X[0], "must have the shape [batch, dim]"),
            ("items", X[:, :3], "must have the shape [batch, 4]"),
            ("items", None, "must be floating-point numbers"),
            ("ids", Y * 1.0, "must be integers"),
            ("ids", [0, -1, 2], "must be from 0 to"),
            ("log_q", 0.0, "must have the shape [batch]"),
            ("log_q", "a", "must be numbers"),
            ("log_q", None, "must be numbers"),
            ("weight", [[1.0]], "must have the shape [batch]"),
            ("weight", [1.0], "must have one for each row of queries"),
            ("weight", "a", "must be numbers"),
        ],
    )
    def test_each_has_its_type_and_shape(self, field, wrong, rule):
        refuses(lambda: self.loss(**{field: wrong}), field, rule)

    @pytest.mark.parametrize("field", ["queries", "items", "log_q"])
    @pytest.mark.parametrize("wrong", [NAN, INF, -INF])
    def test_a_number_that_is_not_finite_is_refused(self, field, wrong):
        """log(0), of an item that never occurs, would make NaN of all losses."""
        values = np.full_like(np.zeros(3) if field == "log_q" else X, wrong)
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"{field} must be finite numbers"):
            self.loss(**{field: values})

    def test_an_empty_batch_has_no_loss(self):
        assert self.loss(queries=X[:0], items=X[:0], ids=Y[:0], log_q=np.zeros(0)).shape == [0]

    def test_a_single_example_has_no_negative(self):
        loss = self.loss(queries=X[:1], items=X[:1], ids=Y[:1], log_q=np.zeros(1))
        assert loss.numpy().tolist() == [0]

    def loss(self, **changed):
        given = {"queries": X, "items": X, "ids": Y, "log_q": np.zeros(3)} | changed
        return nn.in_batch_softmax(**given)


class TestStreamingFrequency:
    @pytest.mark.parametrize("wrong", [0, -1, 2, NAN, "a", None, True])
    def test_a_rate_is_above_0_and_at_most_1(self, wrong):
        assert (
            refuses(
                lambda: nn.StreamingFrequency(10, rate=wrong),
                "rate",
                "must be a number above 0 and at most 1",
            )
            is wrong
        )

    def test_what_it_observes(self):
        frequency = nn.StreamingFrequency(10)
        refuses(lambda: frequency.observe([-1], 1), "ids", "must be from 0 to")
        refuses(lambda: frequency.observe([1.0], 1), "ids", "must be integers")
        for step in (1.5, "a", None, [1]):
            refuses(lambda step=step: frequency.observe([1], step), "step", "must be an integer")
        for step in (0, -1):
            refuses(lambda step=step: frequency.observe([1], step), "step", "must be at least 1")
        with pytest.raises(tf.errors.InvalidArgumentError, match="step must be at least 1"):
            tf.function(frequency.observe)([1], tf.constant(0))
        for weight in ([1.0], "a", 1.0, [True, True]):
            refuses(lambda weight=weight: frequency.observe(Y, 1, weight=weight), "weight", "must")
        assert frequency.observe(np.zeros(0, int), 1).shape == [0]
        refuses(lambda: nn.StreamingFrequency(0), "num_buckets", "at least 1")


class TestSamplers:
    @pytest.mark.parametrize("wrong", [0, -1, 2.5, "a", None, True])
    def test_they_have_a_class(self, wrong):
        for sampler in (nn.UniformSampler, nn.LogUniformSampler):
            found = refuses(lambda sampler=sampler: sampler(wrong), "num_classes", "at least 1")
            assert found is wrong

    @pytest.mark.parametrize("wrong", [0, -1, 11, 1.5, True, "3", None])
    def test_a_sample_of_different_classes_has_at_most_all(self, wrong):
        for call in (
            lambda: UNIFORM.sample(wrong, Y),
            lambda: nn.learned_unigram_sample(wrong, Y, 10),
        ):
            assert refuses(call, "num_sampled", "must be a whole number from 1 to 10") is wrong

    def test_with_replacement_it_may_be_larger(self):
        assert UNIFORM.sample(11, Y, unique=False).ids.shape == [11]
        assert len(set(UNIFORM.sample(10, Y).ids.numpy())) == 10

    def test_a_sampler_that_finds_too_few_classes_gives_up(self):
        heavy = nn.UnigramSampler(TABLE, np.r_[1e12, np.ones(9)], pseudo_count=0)
        with pytest.raises(tf.errors.InvalidArgumentError, match="set unique=False"):
            heavy.sample(10, Y, seed=0)
        assert heavy.sample(10, Y, unique=False, seed=0).ids.shape == [10]

    @pytest.mark.parametrize(
        ("wrong", "rule"),
        [
            ([10], "from 0 to 9"),
            ([-1], "from 0 to 9"),
            ([[1]], "must have the shape [batch]"),
            ([1.0], "must be integers"),
            (None, "must be integers"),
        ],
    )
    def test_labels_are_checked(self, wrong, rule):
        refuses(lambda: UNIFORM.sample(5, wrong), "labels", rule)
        refuses(lambda: nn.learned_unigram_sample(5, wrong, 10), "labels", rule)

    @pytest.mark.parametrize(
        "wrong", ["a", 1.5, True, [1], [1, 2, 3], [[1, 2]], [1.0, 2.0], [None, 1], 2**63, -(2**64)]
    )
    def test_a_seed_is_one_number_or_two(self, wrong):
        for call in (
            lambda: UNIFORM.sample(5, Y, seed=wrong),
            lambda: nn.sampled_softmax_on_ps(TABLE, X, Y, UNIFORM, 5, seed=wrong),
        ):
            assert refuses(call, "seed", "must be a whole number") is wrong

    @pytest.mark.parametrize("wrong", ["a", 1.5, True, [1, 2]])
    def test_a_learned_sampler_has_a_number_as_its_seed(self, wrong):
        assert (
            refuses(
                lambda: nn.learned_unigram_sample(5, Y, 10, seed=wrong),
                "seed",
                "must be a whole number",
            )
            is wrong
        )

    @pytest.mark.parametrize("wrong", [None, "yes", 1])
    def test_unique_is_true_or_false(self, wrong):
        assert refuses(lambda: UNIFORM.sample(5, Y, unique=wrong), "unique", "must be") is wrong

    @pytest.mark.parametrize(
        "weights", [[1], [1, 2, 3], [-1, 2], [0, 0], [NAN, 1], [INF, 1], ["a", 1], None, 1, "ab"]
    )
    def test_a_mixed_sampler_has_a_weight_for_each(self, weights):
        refuses(
            lambda: nn.MixedSampler([UNIFORM, UNIFORM], weights),
            "weights",
            "must be 2 numbers of at least 0 with a sum above 0",
        )

    @pytest.mark.parametrize("samplers", [[], None, UNIFORM, [UNIFORM, 3], [UNIFORM, None]])
    def test_a_mixed_sampler_has_samplers(self, samplers):
        refuses(lambda: nn.MixedSampler(samplers, [1, 1]), "samplers", "must be samplers")

    def test_they_have_the_same_classes(self):
        assert refuses(
            lambda: nn.MixedSampler([UNIFORM, nn.UniformSampler(9)], [1, 1]),
            "samplers",
            "of the same number of classes",
        ) == [10, 9]


class TestCounts:
    # How the first bias and the sampler by frequency read them, with the pseudo count.
    READERS = (
        lambda counts, pseudo: nn.log_unigram(counts, pseudo_count=pseudo),
        lambda counts, pseudo: nn.UnigramSampler(TABLE, counts, pseudo_count=pseudo),
    )

    def refuse(self, counts, pseudo, field, rule):
        first, second = (
            refuses(lambda read=read: read(counts, pseudo), field, rule) for read in self.READERS
        )
        assert repr(first) == repr(second)
        return first

    @pytest.mark.parametrize("wrong", [-1.0, NAN, INF, -INF])
    def test_one_that_is_negative_or_not_finite_is_named(self, wrong):
        counts = np.ones(10)
        counts[3] = wrong
        found = self.refuse(counts, 1, "counts", "at least 0; the one of class 3 is not")
        assert repr(found) == repr(wrong)

    @pytest.mark.parametrize("wrong", [None, "abc", ["a"] * 10, [[1], [1, 2]], 5, [], {1: 2}])
    def test_they_are_a_vector(self, wrong):
        self.refuse(wrong, 1, "counts", "must be a vector of finite numbers of at least 0")

    def test_without_a_pseudo_count_none_is_0(self):
        counts = np.r_[np.ones(9), 0]
        assert self.refuse(counts, 0, "counts[9]", "must be positive where pseudo_count is 0") == 0
        assert self.refuse(np.zeros(10), 0, "counts[0]", "must be positive") == 0

    def test_large_ones_do_not_overflow(self):
        assert nn.log_unigram(np.full(10, 1e308)) == pytest.approx(np.log(0.1))
        self.refuse(np.r_[1e308, np.full(9, 1e-20)], 0, "counts[1]", "1e300 times less")

    @pytest.mark.parametrize("wrong", [-1, NAN, INF, "a", None, [1], True])
    def test_a_pseudo_count_is_at_least_0(self, wrong):
        found = self.refuse(np.ones(10), wrong, "pseudo_count", "must be a number of at least 0")
        assert found is wrong

    def test_a_sampler_has_one_for_each_class(self):
        assert (
            refuses(
                lambda: nn.UnigramSampler(TABLE, np.ones(9)),
                "counts",
                "must have 10 numbers, one for each",
            )
            == "9 numbers"
        )

    @pytest.mark.parametrize("wrong", [NAN, INF, "a", None, [1]])
    def test_a_power_is_a_finite_number(self, wrong):
        assert (
            refuses(
                lambda: nn.UnigramSampler(TABLE, np.ones(10), power=wrong),
                "power",
                "must be a finite number",
            )
            is wrong
        )

    @pytest.mark.parametrize("wrong", [1000, -1000])
    def test_a_power_leaves_each_class_a_probability(self, wrong):
        assert (
            refuses(
                lambda: nn.UnigramSampler(TABLE, np.arange(10), power=wrong),
                "power",
                "must leave the probability of each class above 0",
            )
            == wrong
        )


class TestTables:
    @pytest.mark.parametrize(
        ("field", "wrong", "rule"),
        [
            ("num_classes", 0, "at least 1"),
            ("num_classes", 1.5, "at least 1"),
            ("dim", 0, "at least 1"),
            ("dim", None, "at least 1"),
            ("num_shards", 0, "from 1 to 10"),
            ("num_shards", 11, "from 1 to 10"),
            ("seed", -1, "from 0 to"),
            ("seed", None, "from 0 to"),
            ("bias_init", "a", "must be finite numbers of the shape [10]"),
            ("weights_init", [[1.0], [1.0, 2.0]], "must be finite numbers of the shape [10, 4]"),
            ("name", "", "must be letters"),
            ("name", "a b", "must be letters"),
            ("name", 3, "must be letters"),
        ],
    )
    def test_each_argument_is_checked(self, field, wrong, rule):
        given = {"num_classes": 10, "dim": 4} | {field: wrong}
        assert refuses(lambda: nn.ClassTable(**given), field, rule) is wrong

    @pytest.mark.parametrize(
        ("field", "shape"), [("bias_init", [9]), ("weights_init", [4, 10]), ("weights_init", [40])]
    )
    def test_first_values_have_their_shape(self, field, shape):
        assert (
            refuses(lambda: nn.ClassTable(10, 4, **{field: np.zeros(shape)}), field, "of the shape")
            == f"the shape {shape}"
        )

    @pytest.mark.parametrize("wrong", [NAN, INF])
    def test_first_values_are_finite(self, wrong):
        for field, values in (("bias_init", np.zeros(10)), ("weights_init", np.zeros([10, 4]))):
            values.flat[3] = wrong
            refuses(
                lambda field=field, values=values: nn.ClassTable(10, 4, **{field: values}),
                field,
                "must be finite numbers",
            )

    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.ClassTable(10, 4),
            lambda: nn.UnigramSampler(TABLE, np.ones(10)),
            lambda: nn.StreamingFrequency(10),
        ],
        ids=["ClassTable", "UnigramSampler", "StreamingFrequency"],
    )
    def test_what_has_variables_is_made_outside_of_a_function(self, make, request):
        name = request.node.callspec.id
        refuses(tf.function(make, autograph=False), name, "must be made outside of it")

    @pytest.mark.parametrize("wrong", [[1.0], "a", None])
    def test_a_lookup_has_integers(self, wrong):
        refuses(lambda: TABLE.lookup(wrong), "ids", "must be integers")

    @pytest.mark.parametrize("wrong", [-1, 10])
    def test_a_lookup_of_no_class_fails(self, wrong):
        for table in (MODEL.table(), TABLE):
            assert refuses(lambda table=table: table.lookup([wrong]), "ids", "from 0 to 9") == wrong
            with pytest.raises(tf.errors.InvalidArgumentError, match="ids must be from 0 to 9"):
                tf.function(table.lookup)(tf.constant([3, wrong]))


class TestMetrics:
    @pytest.mark.parametrize("metric", [nn.recall, nn.reciprocal_rank])
    def test_ids_and_labels_belong_together(self, metric):
        ids = [[1, 2], [3, 4]]
        assert metric(ids, [1, 5]).numpy().tolist() == [1, 0]
        refuses(lambda: metric(ids, [1, 2, 3]), "labels", "must have one for each row of ids")
        refuses(lambda: metric(ids, [1]), "labels", "must have one for each row of ids")
        refuses(lambda: metric([1, 2], [1, 2]), "ids", "must have the shape [batch, k]")
        refuses(lambda: metric(np.zeros([2, 0], int), [1, 2]), "ids", "must have the shape")
        refuses(lambda: metric([[1.5]], [1]), "ids", "must be integers")
        refuses(lambda: metric(None, [1]), "ids", "must be integers")

    def test_a_perplexity_has_an_example(self):
        for batches in ([], [(X[:0], Y[:0])]):
            assert (
                refuses(
                    lambda batches=batches: nn.perplexity(TABLE, batches),
                    "batches",
                    "must have an example",
                )
                == "no example"
            )
        for wrong in (None, 3, "ab"):
            assert (
                refuses(lambda wrong=wrong: nn.perplexity(TABLE, wrong), "batches", "must be pairs")
                is wrong
            )
