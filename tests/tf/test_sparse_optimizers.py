"""The sparse optimizers: the same update as TensorFlow's dense ones, and no row but the batch's."""

import numpy as np
import pytest
import tensorflow as tf

from tfdist import ConfigError
from tfdist.nn import SGD, Adagrad, ClassTable, Ftrl, LazyAdam, Momentum, check_optimizer
from tfdist.train import minimize_if

v1 = tf.compat.v1

ROWS, DIM, STEPS = 6, 2, 3
OPTIMIZERS = {
    "SGD": (SGD, lambda: v1.train.GradientDescentOptimizer(0.1)),
    "Momentum": (Momentum, lambda: v1.train.MomentumOptimizer(0.1, 0.9)),
    "Nesterov": (
        lambda rate: Momentum(rate, use_nesterov=True),
        lambda: v1.train.MomentumOptimizer(0.1, 0.9, use_nesterov=True),
    ),
    "Adagrad": (Adagrad, lambda: v1.train.AdagradOptimizer(0.1)),
    "LazyAdam": (LazyAdam, lambda: v1.train.AdamOptimizer(0.1, epsilon=1e-7)),
    "Ftrl": (
        lambda rate: Ftrl(rate, l1=0.01, l2=0.1),
        lambda: v1.train.FtrlOptimizer(
            0.1, l1_regularization_strength=0.01, l2_regularization_strength=0.1
        ),
    ),
}
by_name = pytest.mark.parametrize("name", OPTIMIZERS)

RANDOM = np.random.default_rng(0)
START = RANDOM.normal(size=(ROWS, DIM)).astype(np.float32)
GRADIENTS = RANDOM.normal(size=(STEPS, ROWS, DIM)).astype(np.float32)


def as_rows(gradient):
    """The same gradient as rows in another order, one of them in three parts."""
    parts = [gradient[::-1], gradient[2:3] * 0.5, -gradient[2:3] * 0.5]
    ids = [*range(ROWS)[::-1], 2, 2]
    return tf.IndexedSlices(tf.concat(parts, 0), tf.constant(ids), tf.constant([ROWS, DIM]))


def run_in_graph(optimizer, convert):
    with tf.Graph().as_default(), v1.Session() as session:
        variable = v1.get_variable("table", initializer=START, use_resource=True)
        gradient = v1.placeholder(tf.float32, [ROWS, DIM])
        step = v1.train.get_or_create_global_step()
        update = optimizer.apply_gradients([(convert(gradient), variable), (None, step)], step)
        session.run(v1.global_variables_initializer())
        for each in GRADIENTS:
            session.run(update, {gradient: each})
        assert session.run(step) == STEPS
        return session.run(variable)


def run_eagerly(optimizer, convert, *, traced):
    variable = tf.Variable(START)

    def step(gradient):
        optimizer.apply_gradients([(convert(gradient), variable)])

    step = tf.function(step) if traced else step
    for each in GRADIENTS:
        step(tf.constant(each))
    return variable.numpy()


@pytest.fixture(scope="module", params=OPTIMIZERS)
def expected(request):
    make, peer = OPTIMIZERS[request.param]
    return lambda: make(0.1), run_in_graph(peer(), tf.identity)


@pytest.mark.parametrize("convert", [tf.identity, as_rows], ids=["dense", "rows"])
@pytest.mark.parametrize("how", ["graph", "function", "eager"])
def test_an_update_of_all_rows_is_that_of_tensorflows_optimizer(expected, convert, how):
    make, wanted = expected
    if how == "graph":
        found = run_in_graph(make(), convert)
    else:
        found = run_eagerly(make(), convert, traced=how == "function")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-6)  # float32, in another order
    assert not np.allclose(found, START, atol=1e-2)


@by_name
def test_a_row_that_is_not_in_the_batch_keeps_its_values_and_slots(name):
    optimizer, variable = OPTIMIZERS[name][0](0.1), tf.Variable(START)
    rows = tf.IndexedSlices(tf.ones([2, DIM]), tf.constant([1, 4]))
    for _ in range(2):
        optimizer.apply_gradients([(rows, variable)])
    others = [0, 2, 3, 5]
    np.testing.assert_array_equal(variable.numpy()[others], START[others])
    assert not np.isclose(variable.numpy()[[1, 4]], START[[1, 4]]).any()
    for slot in optimizer.slot_names:
        values = optimizer.slot(variable, slot).numpy()
        assert len(np.unique(values[others])) == 1
        assert (values[[1, 4]] != values[0]).all()


@pytest.mark.parametrize("name", ["Momentum", "LazyAdam"])
def test_a_lazy_optimizer_waits_where_tensorflows_moves_all_rows(name):
    variable, peer = tf.Variable(START), tf.Variable(START)
    optimizer, reference = OPTIMIZERS[name][0](0.1), OPTIMIZERS["LazyAdam"][1]()
    first = tf.IndexedSlices(tf.ones([1, DIM]), tf.constant([1]))
    second = tf.IndexedSlices(tf.ones([1, DIM]), tf.constant([2]))
    for each in (optimizer, reference):
        each.apply_gradients([(first, variable if each is optimizer else peer)])
    after = variable.numpy()[1], peer.numpy()[1]
    for each in (optimizer, reference):
        each.apply_gradients([(second, variable if each is optimizer else peer)])
    np.testing.assert_array_equal(variable.numpy()[1], after[0])
    assert not np.array_equal(peer.numpy()[1], after[1])


def test_an_empty_batch_changes_nothing():
    variable, optimizer = tf.Variable(START), Adagrad(0.1)
    rows = tf.IndexedSlices(tf.zeros([0, DIM]), tf.zeros([0], tf.int64))
    optimizer.apply_gradients([(rows, variable)])
    np.testing.assert_array_equal(variable.numpy(), START)


def test_the_learning_rate_can_be_a_function_or_a_variable():
    for rate in (lambda: 0.5, tf.Variable(0.5)):
        variable = tf.Variable(START)
        SGD(rate).apply_gradients([(tf.ones([ROWS, DIM]), variable)])
        np.testing.assert_allclose(variable.numpy(), START - 0.5)


def test_variables_of_keras_are_trained():
    layer = tf.keras.layers.Dense(3)
    layer.build([None, DIM])
    before = layer.kernel.numpy()
    Adagrad(0.1).apply_gradients([(tf.ones([DIM, 3]), layer.kernel)])
    assert (layer.kernel.numpy() < before).all()


def test_a_global_step_that_is_no_resource_counts():
    with tf.Graph().as_default(), v1.Session() as session:
        step = v1.get_variable("step", initializer=np.int64(0), use_resource=False, trainable=False)
        variable = v1.get_variable("table", initializer=START, use_resource=True)
        update = SGD(0.1).apply_gradients([(tf.ones([ROWS, DIM]), variable)], step)
        session.run(v1.global_variables_initializer())
        session.run(update)
        session.run(update)
        assert session.run(step) == 2
        np.testing.assert_allclose(session.run(variable), START - 0.2, rtol=1e-5)
        other = v1.get_variable("other", initializer=START, use_resource=False)
        with pytest.raises(ConfigError, match="must be resource variables"):
            SGD(0.1).apply_gradients([(tf.ones([ROWS, DIM]), other)])


def test_the_slots_of_a_table_are_restored_with_another_number_of_shards(tmp_path):
    path = str(tmp_path / "saved")
    for num_shards in (3, 1, 2):
        table, optimizer = ClassTable(ROWS, DIM, num_shards=num_shards), Adagrad(0.1)
        optimizer.build([table])
        checkpoint = tf.train.Checkpoint(table=table, optimizer=optimizer)
        accumulators = [optimizer.slot(each.weights, "accumulator") for each in table.shards]
        if num_shards == 3:
            for number, each in enumerate(accumulators):
                each.assign(tf.fill(each.shape, float(number)))
            checkpoint.write(path)
        else:
            checkpoint.read(path).assert_consumed()
        values = np.concatenate([each.numpy()[:, 0] for each in accumulators])
        assert values.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_saver_writes_the_slots_of_a_table_as_one_matrix(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        table = ClassTable(ROWS, DIM, num_shards=3)
        weights, bias = table.lookup([0, 5])
        loss = tf.reduce_sum(weights) + tf.reduce_sum(bias)
        update = minimize_if(tf.constant(True), LazyAdam(0.1), loss)
        session.run(v1.global_variables_initializer())
        session.run(update)
        v1.train.Saver().save(session, str(tmp_path / "saved"))
    shapes = dict(tf.train.list_variables(str(tmp_path / "saved")))
    for slot in ("first_moment", "second_moment"):
        assert shapes[f"class_table/weights/{slot}"] == [ROWS, DIM]
        assert shapes[f"class_table/bias/{slot}"] == [ROWS]
    moment = tf.train.load_checkpoint(str(tmp_path / "saved")).get_tensor(
        "class_table/weights/first_moment"
    )
    assert (moment != 0).any(1).tolist() == [True, False, False, False, False, True]


@pytest.mark.parametrize(
    "optimizer",
    [
        v1.train.AdamOptimizer(),
        v1.train.RMSPropOptimizer(0.1),
        tf.keras.optimizers.Adagrad(0.1),
        tf.keras.optimizers.SGD(0.1, weight_decay=0.1),
        tf.keras.optimizers.SGD(0.1, use_ema=True),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_a_dense_optimizer_is_refused_with_what_it_would_cost(optimizer):
    rule = r"would go through all 1,000 rows in each step: 0\.3 MB"
    with pytest.raises(ConfigError, match=rule):
        check_optimizer(optimizer, ClassTable(1000, 63))


def test_an_optimizer_and_a_table_are_checked_together():
    class SGD:
        """Its name is also that of an optimizer of Keras."""

    for optimizer in (SGD(), "adam"):
        with pytest.raises(ConfigError, match=r"optimizer: got .* must be an optimizer"):
            check_optimizer(optimizer, ClassTable(10, 2))
    with pytest.raises(ConfigError, match="table: got 3; must be a ClassTable"):
        check_optimizer(Momentum(0.1), 3)


@pytest.mark.parametrize("others", [(Adagrad, Adagrad), (Adagrad, Ftrl, Adagrad)])
def test_several_optimizers_of_a_graph_have_slots_of_their_own(others):
    with tf.Graph().as_default(), v1.Session() as session:
        table = ClassTable(6, 2, num_shards=2)
        loss = tf.reduce_sum(table.lookup([0, 5])[0] ** 2)
        optimizers = [kind(0.1) for kind in others]
        steps = [optimizer.minimize(loss) for optimizer in optimizers]
        slots = [each.slot(table.weights[0], "accumulator") for each in optimizers]
        assert [slot.op.name.rpartition("/")[2] for slot in slots] == [
            "accumulator",
            *(f"accumulator_{number}" for number in range(1, len(others))),
        ]
        session.run(v1.global_variables_initializer())
        before = session.run(slots)
        session.run(steps[1])
        changed = [(a != b).any() for a, b in zip(before, session.run(slots), strict=True)]
        assert changed == [number == 1 for number in range(len(others))]


@pytest.mark.parametrize(
    "optimizer",
    [LazyAdam(), v1.train.AdagradOptimizer(0.1), tf.keras.optimizers.SGD(0.1)],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_a_sparse_optimizer_is_accepted(optimizer):
    check_optimizer(optimizer, ClassTable(10, 2))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: SGD(-1), "learning_rate"),
        (lambda: SGD("fast"), "learning_rate"),
        (lambda: Momentum(0.1, float("nan")), "momentum"),
        (lambda: LazyAdam(beta_1=1), "beta_1"),
        (lambda: Ftrl(0.1, learning_rate_power=1), "learning_rate_power"),
        (lambda: SGD(tf.keras.optimizers.schedules.ExponentialDecay(1, 2, 3)), "learning_rate"),
        (
            lambda: SGD(0.1).apply_gradients([(tf.ones([]), tf.Variable(1.0, dtype=tf.float64))]),
            "grads_and_vars",
        ),
        (lambda: SGD(0.1).apply_gradients([(tf.ones([]), "w")]), "grads_and_vars"),
        (lambda: SGD(0.1).apply_gradients([tf.Variable(1.0)]), "grads_and_vars"),
        (lambda: SGD(0.1).build([3]), "variables"),
        (lambda: SGD(0.1).build(ClassTable(3, 2)), "variables"),
        (lambda: Adagrad(0.1).slot(ClassTable(3, 2), "accumulator"), "variable"),
        (lambda: Adagrad(0.1).slot(tf.Variable(1.0), "sum"), "name"),
        (lambda: Ftrl(0.1, l1=-1), "l1"),
        (lambda: SGD(0.1).apply_gradients([(None, tf.Variable(1.0))]), "grads_and_vars"),
    ],
)
def test_a_wrong_argument_is_refused(make, field):
    with pytest.raises(ConfigError, match=rf"^{field}: got "):
        make()
