"""Updates of class tables in a parameter-server job: all optimizers, also under a condition."""

import numpy as np
import pytest
import tensorflow as tf

import tfdist

NUM_CLASSES, DIM, NUM_SAMPLED = 11, 3, 4
LABELS = np.array([1, 9])
OPTIMIZERS = {
    "SGD": lambda: tfdist.nn.SGD(0.1),
    "Momentum": lambda: tfdist.nn.Momentum(0.1),
    "Adagrad": lambda: tfdist.nn.Adagrad(0.1),
    "LazyAdam": lambda: tfdist.nn.LazyAdam(0.1),
    "Ftrl": lambda: tfdist.nn.Ftrl(0.1),
}


@pytest.mark.parametrize("num_ps", [1, 2])
def test_minimize_if_moves_the_rows_of_the_batch_and_without_a_value_nothing(make_cluster, num_ps):
    # Processes, because threads would share the registry of Python functions with the ps.
    cluster = make_cluster(num_ps, 1, backend="processes")
    ((first, skipped, stepped, ids, num_steps),) = cluster.run(train, timeout=60)
    assert len(set(ids.tolist())) == NUM_SAMPLED
    moved = sorted({*ids.tolist(), *LABELS.tolist()})
    for name, (weights, bias) in first.items():
        assert bias == pytest.approx(np.log((np.arange(NUM_CLASSES) + 1) / 66)), name
        for before, after, later in zip((weights, bias), skipped[name], stepped[name], strict=True):
            np.testing.assert_array_equal(before, after, err_msg=name)
            is_moved = (later != after).reshape([NUM_CLASSES, -1]).any(1)
            assert np.flatnonzero(is_moved).tolist() == moved, name
    assert num_steps == len(OPTIMIZERS)


def train(task):
    """The tables at first, after steps without and with a value; the sample; the global step."""
    counts = np.arange(NUM_CLASSES)
    with tfdist.worker_server(task) as target, tfdist.train.replica_graph(task):
        has_value = tf.compat.v1.placeholder(tf.bool, [])
        tables, steps, candidates = {}, [], None
        for name, make_optimizer in OPTIMIZERS.items():
            table = tfdist.nn.ClassTable(
                NUM_CLASSES,
                DIM,
                num_shards=task.num_ps,
                bias_init=tfdist.nn.log_unigram(counts),
                name=name,
            )
            if candidates is None:
                sampler = tfdist.nn.UnigramSampler(table, counts)
                candidates = sampler.sample(NUM_SAMPLED, LABELS)
            losses = tfdist.nn.sampled_softmax(table, np.eye(2, DIM) + 1, LABELS, candidates)
            loss = tf.reduce_sum(losses)
            steps.append(tfdist.train.minimize_if(has_value, make_optimizer(), loss))
            tables[name] = table.lookup(np.arange(NUM_CLASSES))
        with tfdist.train.session(task, target) as session:
            first = session.run(tables)
            session.run(steps, {has_value: False})
            skipped = session.run(tables)
            ids, _ = session.run([candidates.ids, steps], {has_value: True})
            num_steps = session.run(tf.compat.v1.train.get_global_step())
            return first, skipped, session.run(tables), ids, num_steps
