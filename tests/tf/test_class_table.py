"""A class table has the same values in every form: eager, a graph, and any number of shards."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tf.softmax import MODES
from tfdist import ConfigError
from tfdist.nn import (
    SGD,
    ClassTable,
    UniformSampler,
    UnigramSampler,
    log_unigram,
    sampled_softmax,
    top_k,
)

v1 = tf.compat.v1

NUM_CLASSES, DIM = 23, 3
COUNTS = np.arange(NUM_CLASSES)
DEVICES = {"ps": ["a:1", "b:1"], "worker": ["c:1"]}


def table(num_shards, **options):
    options = {"bias_init": log_unigram(COUNTS), "seed": 5, **options}
    return ClassTable(NUM_CLASSES, DIM, num_shards=num_shards, **options)


def matrix(made, run=None):
    """The weights and bias of all shards, as two arrays."""
    values = [[shard.weights, shard.bias] for shard in made.shards]
    values = run(values) if run else [[each.numpy() for each in pair] for pair in values]
    return [np.concatenate(parts) for parts in zip(*values, strict=True)]


@pytest.fixture(scope="module")
def whole():
    return matrix(table(1))


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, NUM_CLASSES])
def test_the_first_values_do_not_depend_on_the_number_of_shards(num_shards, whole):
    for part, expected in zip(matrix(table(num_shards)), whole, strict=True):
        np.testing.assert_array_equal(part, expected)
    assert not np.array_equal(matrix(table(num_shards, seed=6))[0], whole[0])


def test_the_first_weights_are_uniform_and_small():
    weights = ClassTable(1000, 16).weights.numpy()
    assert abs(weights).max() <= 0.25
    assert abs(weights.mean()) < 0.01  # of 16,000 numbers with a deviation of 0.14
    assert abs(weights.std() - 0.25 / np.sqrt(3)) < 0.01


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_graph_has_the_same_values(num_shards, whole):
    with tf.Graph().as_default():
        made = table(num_shards)
        rows = made.lookup([22, 0, 9, 9])
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            weights, bias = matrix(made, session.run)
            found = session.run(rows)
    np.testing.assert_array_equal(weights, whole[0])
    np.testing.assert_array_equal(bias, whole[1])
    np.testing.assert_array_equal(found[0], whole[0][[22, 0, 9, 9]])
    np.testing.assert_array_equal(found[1], whole[1][[22, 0, 9, 9]])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("ids", [7, [], [[22, 0], [9, 9], [1, 22]], np.zeros([2, 0, 3], int)])
def test_ids_of_any_shape_are_looked_up(mode, num_shards, ids, whole):
    def rows():
        made = table(num_shards)
        look_up = tf.function(made.lookup) if mode == "function" else made.lookup
        return look_up(tf.constant(ids, tf.int32))

    if mode == "graph":
        with tf.Graph().as_default(), v1.Session() as session:
            tensors = rows()
            session.run(v1.global_variables_initializer())
            found = session.run(tensors)
    else:
        found = rows()
    for part, expected in zip(found, whole, strict=True):
        np.testing.assert_array_equal(part, expected[np.asarray(ids, int)])


def test_the_shards_and_what_belongs_to_them_go_to_the_ps_in_turn():
    setter = v1.train.replica_device_setter(
        cluster=tf.train.ClusterSpec(DEVICES), worker_device="/job:worker/task:0"
    )
    with tf.Graph().as_default(), v1.device(setter):
        v1.get_variable("another", [2])  # so that the first shard is on the second ps
        made = table(3)
        UnigramSampler(made, COUNTS)
        labels = tf.constant([1, 22])
        candidates = UniformSampler(NUM_CLASSES).sample(4, labels)
        losses = sampled_softmax(made, tf.ones([2, DIM]), labels, candidates)
        SGD(0.1).minimize(tf.reduce_mean(losses))
        for variable in v1.global_variables()[1:]:
            number = int(variable.op.name.rpartition("part_")[2].partition("/")[0])
            device = f"/job:ps/task:{(number + 1) % 2}"
            assert (variable.op.name, variable.device) == (variable.op.name, device)
            # Random values are made there; the counts come from this process.
            if "weights" in variable.op.name:
                assert variable.initializer.inputs[1].device == device
        updates = [op for op in v1.get_default_graph().get_operations() if "Scatter" in op.type]
        assert sorted({op.device for op in updates}) == ["/job:ps/task:0", "/job:ps/task:1"]
        assert all("/job:ps" in op.device for op in updates)


def test_a_checkpoint_has_one_matrix_whatever_the_shards(tmp_path, whole):
    tf.train.Checkpoint(table=table(3)).write(str(tmp_path / "saved"))
    shapes = dict(tf.train.list_variables(str(tmp_path / "saved")))
    assert shapes["table/weights/.ATTRIBUTES/VARIABLE_VALUE"] == [NUM_CLASSES, DIM]
    for num_shards in (1, 2):
        other = table(num_shards, seed=9)
        tf.train.Checkpoint(table=other).read(str(tmp_path / "saved")).assert_consumed()
        np.testing.assert_array_equal(matrix(other)[0], whole[0])


def test_a_saver_writes_one_matrix_that_another_number_of_shards_restores(tmp_path, whole):
    for num_shards, restores in ((3, False), (1, True), (2, True)):
        with tf.Graph().as_default(), v1.Session() as session:
            made = table(num_shards, seed=9 if restores else 5)
            saver = v1.train.Saver()
            if restores:
                saver.restore(session, str(tmp_path / "saved"))
                np.testing.assert_array_equal(matrix(made, session.run)[0], whole[0])
            else:
                session.run(v1.global_variables_initializer())
                saver.save(session, str(tmp_path / "saved"))
        shapes = dict(tf.train.list_variables(str(tmp_path / "saved")))
        assert shapes["class_table/weights"] == [NUM_CLASSES, DIM]
        assert shapes["class_table/bias"] == [NUM_CLASSES]


def test_the_partitioner_of_a_scope_changes_nothing():
    with (
        tf.Graph().as_default(),
        v1.variable_scope("model", partitioner=v1.fixed_size_partitioner(2)),
    ):
        made = table(3)
        names = [shard.weights.op.name for shard in made.shards]
        assert names == [f"model/class_table/weights/part_{number}" for number in range(3)]
        place = made.shards[1].weights._get_save_slice_info()
        assert (place.full_name, place.var_offset) == ("model/class_table/weights", [8, 0])


def test_tables_of_other_names_begin_with_other_weights():
    users, items = ClassTable(9, DIM, name="users"), ClassTable(9, DIM, name="items")
    assert not np.isclose(users.weights.numpy(), items.weights.numpy()).any()


def test_a_restored_job_draws_by_its_own_counts_and_shards(tmp_path):
    def draws(num_shards, counts, restores):
        with tf.Graph().as_default(), v1.Session() as session:
            sampler = UnigramSampler(table(num_shards), counts)
            drawn = sampler.draw(20000, [1, 2])
            session.run([v1.global_variables_initializer(), v1.local_variables_initializer()])
            saver = v1.train.Saver()
            if restores:
                saver.restore(session, str(tmp_path / "saved"))
            else:
                saver.save(session, str(tmp_path / "saved"))
            return np.bincount(session.run(drawn), minlength=NUM_CLASSES) / 20000

    draws(1, COUNTS, restores=False)
    for num_shards, counts in ((2, COUNTS), (5, COUNTS), (1, COUNTS[::-1])):
        wanted = (counts + 1) / np.sum(counts + 1)
        # The standard error is at most 0.002.
        np.testing.assert_allclose(draws(num_shards, counts, restores=True), wanted, atol=0.01)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_module_with_a_table_can_be_saved(num_shards, tmp_path):
    class Model(tf.Module):
        def __init__(self):
            super().__init__()
            self.table = table(num_shards)

        @tf.function(input_signature=[tf.TensorSpec([None, DIM])])
        def best(self, inputs):
            return top_k(self.table, inputs, 5)[1]

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
        def rows(self, ids):
            return self.table.lookup(ids)

    model, inputs, ids = Model(), np.eye(DIM, dtype=np.float32), np.array([22, 0, 9])
    tf.saved_model.save(model, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_array_equal(loaded.best(inputs), top_k(model.table, inputs, 5)[1])
    np.testing.assert_array_equal(loaded.rows(ids)[0], model.table.lookup(ids)[0])


def test_a_strategy_with_replicas_is_refused(monkeypatch):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    monkeypatch.setattr(type(strategy), "num_replicas_in_sync", 2)
    with strategy.scope(), pytest.raises(ConfigError, match="strategy: got 'MirroredStrategy'"):
        table(1)


def test_log_unigram_is_the_logarithm_of_the_frequency():
    counts = [0, 1, 3]
    assert np.exp(log_unigram(counts)) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert np.exp(log_unigram([1, 3], pseudo_count=0)) == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ClassTable(0, 3), "num_classes"),
        (lambda: ClassTable(3, 0), "dim"),
        (lambda: ClassTable(3, 2, num_shards=4), "num_shards"),
        (lambda: ClassTable(3, 2, seed=-1), "seed"),
        (lambda: ClassTable(3, 2, bias_init=[1.0]), "bias_init"),
        (lambda: ClassTable(3, 2, weights_init=np.zeros([2, 3])), "weights_init"),
        (tf.function(lambda: ClassTable(3, 2)), "ClassTable"),
        (lambda: log_unigram([1, -1]), "counts"),
        (lambda: log_unigram([1, float("nan")]), "counts"),
        (lambda: log_unigram([[1]]), "counts"),
        (lambda: log_unigram("many"), "counts"),
        (lambda: log_unigram([2, 0], pseudo_count=0), r"counts\[1\]"),
        (lambda: log_unigram([1], pseudo_count=-1), "pseudo_count"),
    ],
)
def test_a_wrong_argument_is_refused(make, field):
    with pytest.raises(ConfigError, match=rf"^{field}: got "):
        make()
