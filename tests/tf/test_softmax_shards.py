"""Tables in shards, classes in chunks, and inputs of other types give the losses of one matrix."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf.softmax import (
    ROUNDING,
    Model,
    differences,
    evaluate,
    loss_and_gradients,
    of_draws,
)
from tfdist import nn

v1 = tf.compat.v1

MODEL = Model(50, 4, 16)  # 50 is no multiple of 3 and 7
DRAWN = nn.LogUniformSampler(50).sample(20, MODEL.labels, seed=0)

SAMPLED = {
    "sampled_softmax": nn.sampled_softmax,
    "nce": nn.nce,
    "negative_sampling": nn.negative_sampling,
}


def of_table(loss, *arguments, **options):
    return lambda table, inputs: loss(table, inputs, MODEL.labels, *arguments, **options)


class TestShards:
    @pytest.mark.parametrize("num_shards", [2, 3, 7])
    @pytest.mark.parametrize("name", SAMPLED)
    def test_sampled_losses_and_their_gradients_are_those_of_one_shard(self, name, num_shards):
        """To the last bit: the lookup copies rows, and all else is computed as for one shard."""
        one, several = (
            loss_and_gradients(MODEL.table(shards), MODEL.inputs, of_table(SAMPLED[name], DRAWN))
            for shards in (1, num_shards)
        )
        assert differences(several, one) == [0, 0, 0, 0]

    @pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
    def test_the_full_softmax_is_that_of_one_matrix(self, num_shards):
        found, expected = (
            loss_and_gradients(MODEL.table(num_shards), MODEL.inputs, loss)
            for loss in (of_table(nn.full_softmax), MODEL.full_softmax)
        )
        # The sums are taken in another order. Losses of up to 10 are multiples of 1e-6.
        assert max(differences(found, expected)) < 4e-6

    @pytest.mark.parametrize("num_shards", [2, 3, 7])
    def test_the_partition_strategy_mod_would_read_other_rows(self, monkeypatch, num_shards):
        def losses(table):
            return [
                loss(table, MODEL.inputs, MODEL.labels, DRAWN).numpy() for loss in SAMPLED.values()
            ]

        def lookup(variable, ids):
            return v1.nn.embedding_lookup(variable.variables, ids, partition_strategy="mod")

        right = losses(MODEL.table())
        monkeypatch.setattr("tfdist.nn.class_table.sharded_lookup", lookup)
        assert min(differences(losses(MODEL.table(num_shards)), right)) > 0.1

    @pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
    def test_a_lookup_finds_the_rows_of_the_matrix(self, num_shards):
        ids = np.random.default_rng(0).permutation(50)
        weights, bias = MODEL.table(num_shards).lookup(ids)
        assert (weights.numpy() == MODEL.weights[ids]).all()
        assert (bias.numpy() == MODEL.bias[ids]).all()

    @pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
    @pytest.mark.parametrize("k", [1, 10, 50])
    def test_top_k_finds_the_largest_logits_of_the_matrix(self, k, num_shards):
        for chunk in (3, 8192):
            logits, ids = nn.top_k(MODEL.table(num_shards), MODEL.inputs, k, chunk=chunk)
            order = np.argsort(-MODEL.logits, axis=1)[:, :k]
            assert (ids.numpy() == order).all()
            assert logits.numpy() == pytest.approx(
                np.take_along_axis(MODEL.logits, order, axis=1), abs=4e-6
            )

    def test_first_weights_do_not_depend_on_the_shards(self):
        one, *others = (nn.ClassTable(50, 3, num_shards=shards, seed=1) for shards in (1, 2, 3, 7))
        expected = one.lookup(np.arange(50))[0].numpy()
        for table in others:
            assert (table.lookup(np.arange(50))[0].numpy() == expected).all()
        assert (nn.ClassTable(50, 3, seed=2).lookup(np.arange(50))[0].numpy() != expected).all()


class TestChunks:
    CHUNKS = (1, 13, 50, 1000)

    def errors(self, mode, num_shards, chunk):
        """Of the full softmax and its gradients."""
        loss = of_table(nn.full_softmax, chunk=chunk)
        found = evaluate(
            mode,
            lambda: MODEL.table(num_shards),
            lambda table: loss_and_gradients(table, MODEL.inputs, loss),
        )
        return differences(
            found, loss_and_gradients(MODEL.table(), MODEL.inputs, MODEL.full_softmax)
        )

    @pytest.mark.parametrize("num_shards", [1, 3])
    @pytest.mark.parametrize("chunk", CHUNKS)
    def test_the_full_softmax_is_that_of_one_matrix(self, chunk, num_shards):
        assert max(self.errors("eager", num_shards, chunk)) < ROUNDING

    @pytest.mark.rotates(2)
    @pytest.mark.parametrize("num_shards", [1, 3])
    @pytest.mark.parametrize("chunk", CHUNKS)
    @pytest.mark.parametrize("mode", ["function", "graph"])
    def test_in_a_function_and_in_a_graph_too(self, mode, chunk, num_shards):
        assert max(self.errors(mode, num_shards, chunk)) < ROUNDING

    def test_without_the_last_chunk_where_it_is_shorter_it_is_not(self, monkeypatch):
        monkeypatch.setattr(
            "tfdist.nn.on_ps.num_chunks", lambda shard, chunk: max(1, shard.size // chunk)
        )
        table = MODEL.table()
        right = MODEL.full_softmax(table, MODEL.inputs)
        losses = [of_table(nn.full_softmax, chunk=n)(table, MODEL.inputs) for n in self.CHUNKS]
        errors = differences(losses, [right] * len(losses))
        assert max(errors[0], errors[2], errors[3]) < ROUNDING
        assert errors[1] > 100 * ROUNDING


class TestTypesOfInputs:
    LOSSES = {  # noqa: RUF012
        "full_softmax": of_table(nn.full_softmax),
        "sampled_softmax_on_ps": of_table(
            nn.sampled_softmax_on_ps, nn.LogUniformSampler(50), 20, seed=0
        ),
        **{name: of_table(loss, DRAWN) for name, loss in SAMPLED.items()},
        "in_batch_softmax": lambda _, inputs: nn.in_batch_softmax(
            inputs, MODEL.inputs[::-1], np.arange(16), np.zeros(16)
        ),
    }

    @pytest.mark.rotates(6)
    @pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
    @pytest.mark.parametrize("name", LOSSES)
    def test_losses_are_float32_and_the_gradients_of_inputs_have_the_inputs_type(self, name, dtype):
        def losses(inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                found = self.LOSSES[name](MODEL.table(2), inputs)
            return found, tape.gradient(found, inputs)

        rounded = tf.cast(MODEL.inputs, dtype)
        loss, gradient = losses(rounded)
        assert (loss.dtype, gradient.dtype) == (tf.float32, dtype)
        # All is computed in float32, so only the inputs and their gradient are rounded.
        exact, exact_gradient = losses(tf.cast(rounded, tf.float32))
        assert (loss.numpy() == exact.numpy()).all()
        assert tf.reduce_all(gradient == tf.cast(exact_gradient, dtype))
        unrounded, _ = losses(tf.constant(MODEL.inputs))
        if dtype != tf.float64:
            # bfloat16 keeps 8 bits of an input, float16 11; a loss has 4 products a class.
            assert loss.numpy() == pytest.approx(unrounded.numpy(), rel=0.05)
            assert (loss.numpy() != unrounded.numpy()).any()


class Flat(nn.UniformSampler):
    """Draws as another sampler, and says that all classes are equally likely."""

    def __init__(self, sampler):
        super().__init__(sampler.num_classes)
        self.draw_from, self.log_share = sampler.draw_from, sampler.log_share


class TestSampledSoftmaxOnPs:
    MODEL = Model(50, 4, 16)
    NUM_SAMPLED = 10

    def sampler(self, name, table):
        unigram = nn.UnigramSampler(table, 100 / np.arange(1, 51))
        uniform = nn.UniformSampler(50)
        return {
            "uniform": uniform,
            "log-uniform": nn.LogUniformSampler(50),
            "unigram": unigram,
            "mixed": nn.MixedSampler([unigram, uniform], [0.7, 0.3]),
            "flat": Flat(nn.LogUniformSampler(50)),
        }[name]

    def standard_errors(self, name, num_shards):
        """How far the mean estimate of the partition function is from the exact one."""
        model = self.MODEL
        table = model.table(num_shards)
        sampler = self.sampler(name, table)
        logits = model.logits
        log_sum = np.log(np.exp(logits).sum(1))
        positive = logits[np.arange(model.batch), model.labels]

        def ratio(seed):
            loss = nn.sampled_softmax_on_ps(
                table, model.inputs, model.labels, sampler, self.NUM_SAMPLED, seed=seed
            )
            return tf.exp(loss + tf.constant(positive - log_sum, tf.float32))

        ratios = of_draws(ratio, 400)
        return np.abs(ratios.mean(0) - 1) / (ratios.std(0) / np.sqrt(len(ratios)))

    @pytest.mark.rotates(2)
    @pytest.mark.parametrize("num_shards", [1, 3])
    @pytest.mark.parametrize("name", ["uniform", "log-uniform", "unigram", "mixed"])
    def test_its_estimate_of_the_partition_function_has_no_bias(self, name, num_shards):
        assert self.standard_errors(name, num_shards).max() < 4

    def test_with_the_log_q_of_another_sampler_it_has_one(self):
        assert self.standard_errors("flat", 3).max() > 8

    @pytest.mark.parametrize("num_shards", [1, 3])
    def test_its_gradient_is_that_of_the_same_loss_from_the_same_candidates(self, num_shards):
        model = self.MODEL
        table = model.table(num_shards)
        drawn = []

        class Recorded(nn.LogUniformSampler):
            def draw_from(self, part, count, seed):
                ids = super().draw_from(part, count, seed)
                # As documented: each shard gets its share of the sample, and says so in log_q.
                log_q = self.log_prob(ids) - self.log_share(part) + np.log(count)
                drawn.append((ids, log_q))
                return ids

        found = loss_and_gradients(
            table,
            model.inputs,
            lambda table, inputs: nn.sampled_softmax_on_ps(
                table, inputs, model.labels, Recorded(50), self.NUM_SAMPLED, seed=0
            ),
        )
        ids, log_q = (tf.concat(parts, 0) for parts in zip(*drawn, strict=True))
        assert len(ids) == pytest.approx(self.NUM_SAMPLED, abs=1)

        def expected(log_q, **options):
            candidates = nn.Candidates(ids, log_q, tf.zeros([model.batch]))
            return loss_and_gradients(
                table,
                model.inputs,
                lambda table, inputs: nn.sampled_softmax(
                    table, inputs, model.labels, candidates, **options
                ),
            )

        assert max(differences(found, expected(log_q))) < ROUNDING
        assert min(differences(found, expected(tf.zeros_like(log_q)))) > 100 * ROUNDING
        hits_kept = differences(found, expected(log_q, remove_accidental_hits=False))
        assert max(hits_kept) > 100 * ROUNDING


@pytest.mark.parametrize("loss", [nn.full_softmax, nn.sampled_softmax_on_ps])
def test_a_function_never_reads_a_whole_table(loss):
    """That would copy it in each step, once an optimizer has updated single rows."""
    table = MODEL.table(2)
    rest = () if loss is nn.full_softmax else (nn.UniformSampler(table.num_classes), 8)

    @tf.function(autograph=False)
    def step(inputs, labels):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(loss(table, inputs, labels, *rest))
        return tape.gradient(value, table.trainable_variables)

    graph = step.get_concrete_function(tf.constant(MODEL.inputs), tf.constant(MODEL.labels)).graph
    functions = graph.as_graph_def().library.function
    types = [op.type for op in graph.get_operations()]
    types += [node.op for function in functions for node in function.node_def]
    assert "ResourceGather" in types
    assert "ReadVariableOp" not in types
