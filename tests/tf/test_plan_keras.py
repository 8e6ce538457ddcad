"""What `plan_keras` counts in real graphs, against closed forms; and the calibration."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdist.errors import ConfigError
from tfdist.planner import (
    Quantity,
    Transformer,
    calibrate_step,
    count_parameters,
    plan_keras,
)

PAGE = Path(__file__).parents[2] / "docs/planner/keras.md"
B = 3
FLOAT = 4


def spec(*shape, dtype=tf.float32):
    return tf.TensorSpec(shape, dtype)


def quick(function, *specs, **options):
    """The plan of a function, from one trace."""
    return plan_keras(function, specs, per_example=False, **options)


def quick_model(model, input_spec):
    return plan_keras(model, input_spec, per_example=False)


def products(flops):
    """The FLOPs of all products of matrices."""
    return flops.value - flops.part("element-wise") - flops.part("reductions")


def test_two_dense_layers():
    model = keras.Sequential(
        [keras.Input([10]), keras.layers.Dense(20, "relu"), keras.layers.Dense(5, name="last")]
    )
    plan = plan_keras(model, spec(B, 10), optimizer="momentum")
    assert plan.parameters.value == model.count_params() == 10 * 20 + 20 + 20 * 5 + 5
    assert [part.value for _, part in plan.parameters.walk() if part.name == "kernel"] == [200, 100]
    first, second = 2 * B * 10 * 20, 2 * B * 20 * 5
    assert plan.forward_flops.part("MatMul") == products(plan.forward_flops) == first + second
    # Two products for each layer, but the input of the first one needs no gradient.
    assert products(plan.backward_flops) == first + 2 * second
    # The relu's result, for its own gradient and as input of the second layer.
    assert plan.saved_bytes.value == B * 20 * FLOAT
    assert plan.saved_bytes_per_example.value == 20 * FLOAT
    assert plan.variable_bytes.value == plan.gradient_bytes.value == 325 * FLOAT
    assert plan.slot_bytes.value == 325 * FLOAT
    assert plan.input_bytes.value == B * 10 * FLOAT
    # The gradients, the last of them next to what it is made of: the gradient of the relu.
    assert plan.live_bytes.part("gradients") == 325 * FLOAT
    assert plan.live_bytes.value == (325 + B * 20) * FLOAT
    assert plan.peak_bytes.value == (3 * 325 + B * 10 + B * 20) * FLOAT
    twice = plan_keras(model, spec(2 * B, 10), optimizer="momentum", per_example=False)
    assert plan.peak_bytes.value + B * plan.peak_bytes_per_example.value == twice.peak_bytes.value
    assert twice.saved_bytes_per_example is None
    assert plan.uncounted == {}
    assert plan.gathered_bytes.value == 0


def test_element_wise_work_and_reductions_are_apart():
    weights = tf.Variable(tf.ones([10, 20]))

    def function(x):
        y = tf.nn.softmax(tf.exp(x @ weights) + 1.0)
        return tf.reduce_mean(y)

    flops = quick(function, spec(B, 10)).forward_flops
    apart = {part.name: part for part in flops.parts}
    assert apart["MatMul"].value == 2 * B * 10 * 20
    work = {part.name: part.value for part in apart["element-wise"].parts}
    assert work == {"Exp": B * 20, "AddV2": B * 20, "Softmax": 5 * B * 20}
    assert {part.name: part.value for part in apart["reductions"].parts} == {"Mean": B * 20}


def image(name, filters, strides=(1, 1), **options):
    kernel = tf.Variable(tf.ones(filters))
    operation = getattr(tf.nn, name)
    return lambda x: operation(x, kernel, strides=strides, padding="SAME", **options)


@pytest.mark.parametrize(
    ("function", "shape", "forward"),
    [
        (image("conv2d", [3, 5, 4, 6]), (B, 8, 8, 4), 2 * 64 * 6 * 3 * 5 * 4),
        (image("conv2d", [3, 3, 4, 6], (2, 2)), (B, 8, 8, 4), 2 * 16 * 6 * 9 * 4),
        (image("conv2d", [3, 3, 2, 6]), (B, 8, 8, 4), 2 * 64 * 6 * 9 * 2),  # two groups
        (image("conv3d", [3, 3, 3, 4, 6], [1] * 5), (B, 4, 4, 4, 4), 2 * 64 * 6 * 27 * 4),
        (image("convolution", [3, 4, 6], 1), (B, 8, 4), 2 * 8 * 6 * 3 * 4),
        (image("depthwise_conv2d", [3, 3, 4, 2], [1] * 4), (B, 8, 8, 4), 2 * 64 * 8 * 9),
        (
            image("conv2d_transpose", [3, 3, 6, 4], (2, 2), output_shape=[B, 16, 16, 6]),
            (B, 8, 8, 4),
            2 * 64 * 4 * 9 * 6,
        ),
    ],
)
def test_convolutions(function, shape, forward):
    plan = quick(function, spec(*shape))
    assert products(plan.forward_flops) == B * forward
    assert products(plan.backward_flops) == B * forward  # of the filter; the input has no gradient
    assert plan.uncounted == {}


def test_the_gradient_of_an_input_of_a_convolution_counts_too():
    first, second = image("conv2d", [1, 1, 4, 4]), image("conv2d", [3, 3, 4, 6])
    plan = quick(lambda x: second(first(x)), spec(B, 8, 8, 4))
    one, two = 2 * B * 64 * 4 * 4, 2 * B * 64 * 6 * 9 * 4
    assert products(plan.forward_flops) == one + two
    assert products(plan.backward_flops) == one + 2 * two
    assert plan.backward_flops.part("Conv2DBackpropInput") == two


def test_keras_counts_the_same_parameters():
    shared = keras.layers.Dense(8, name="shared")
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.SeparableConv2D(8, 3)(inputs)
    x = keras.layers.Dropout(0.1)(keras.layers.BatchNormalization()(x))
    frozen = keras.layers.Dense(8, name="frozen")
    x = frozen(shared(shared(x)))
    frozen.trainable = False
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    plan = quick_model(model, spec(B, 8, 8, 3))
    assert plan.parameters.value == model.count_params()
    of_model = sum(int(np.prod(each.shape)) for each in model.trainable_weights)
    assert plan.trainable_parameters.value == of_model < model.count_params()
    assert plan.parameters.part("frozen") == 8 * 8 + 8
    assert plan.trainable_parameters.part("frozen") == 0
    assert plan.gradient_bytes.value == of_model * FLOAT
    assert plan.uncounted == {}


def test_a_model_that_is_not_built_is_built():
    model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(2)])
    assert quick_model(model, spec(B, 6)).parameters.value == 6 * 4 + 4 + 4 * 2 + 2


def test_mobilenet_has_its_published_multiply_adds():
    """569 million, and 4.2 million parameters: arXiv 1704.04861, table 8."""
    model = keras.applications.MobileNet(weights=None)
    plan = quick_model(model, spec(1, 224, 224, 3))
    assert plan.parameters.value == model.count_params() == pytest.approx(4.2e6, rel=0.02)
    assert products(plan.forward_flops) / 2 == pytest.approx(569e6, rel=0.001)
    assert plan.uncounted == {}


def test_multi_head_attention():
    sequence, hidden, heads, head_dim = 6, 8, 2, 5
    q = heads * head_dim
    inputs = keras.Input([sequence, hidden])
    attention = keras.layers.MultiHeadAttention(heads, head_dim)
    plan = quick_model(keras.Model(inputs, attention(inputs, inputs)), spec(B, sequence, hidden))
    scores = 2 * 2 * B * sequence**2 * q
    projections = 2 * B * sequence * 4 * hidden * q
    assert products(plan.forward_flops) == projections + scores
    # Keras 2 computes the projections by Einsum too.
    assert plan.forward_flops.part("Einsum") in (scores, projections + scores)
    # Its input has no gradient: three of eight products of the projections are left out.
    assert products(plan.backward_flops) == 2 * B * sequence * 5 * hidden * q + 2 * scores


class Gpt(keras.Model):
    """A decoder as GPT-2 has it, from layers of Keras."""

    def __init__(self, shape):
        super().__init__()
        layers, hidden = keras.layers, shape.hidden
        self.tokens = layers.Embedding(shape.vocabulary, hidden)
        self.positions = layers.Embedding(shape.positions, hidden)
        self.blocks = [
            {
                "norm 1": layers.LayerNormalization(),
                "attention": layers.MultiHeadAttention(shape.heads, shape.head_dim),
                "norm 2": layers.LayerNormalization(),
                "up": layers.Dense(shape.mlp, "gelu"),
                "down": layers.Dense(hidden),
            }
            for _ in range(shape.layers)
        ]
        self.norm = layers.LayerNormalization()

    def call(self, tokens):
        x = self.tokens(tokens) + self.positions(tf.range(tokens.shape[1]))
        for block in self.blocks:
            y = block["norm 1"](x)
            x += block["attention"](y, y, use_causal_mask=True)
            x += block["down"](block["up"](block["norm 2"](x)))
        return tf.matmul(self.norm(x), self.tokens.embeddings, transpose_b=True)


@pytest.fixture(scope="module")
def small_gpt():
    sequence = 16
    shape = Transformer(2, 32, 4, 50, positions=sequence)
    model = Gpt(shape)

    def loss(tokens, labels):
        logits = model(tokens, training=True)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)

    ids = spec(B, sequence, dtype=tf.int32)
    return shape, model, quick(loss, ids, ids, model=model)


def test_a_gpt_has_the_parameters_of_the_formula(small_gpt):
    shape, model, plan = small_gpt
    assert plan.parameters.value == model.count_params() == count_parameters(shape).value
    other = Transformer(2, 32, 4, 50, positions=16, bias="none")
    assert plan.parameters.value != count_parameters(other).value


def test_a_gpt_has_the_flops_of_the_formula(small_gpt):
    shape, _, plan = small_gpt
    tokens, sequence = B * 16, 16
    h, layers = shape.hidden, shape.layers
    weights = layers * 12 * h * h + shape.vocabulary * h  # the head shares those of the embedding
    attention = 4 * layers * sequence * shape.query_width
    assert products(plan.forward_flops) == tokens * (2 * weights + attention)
    assert products(plan.backward_flops) == 2 * products(plan.forward_flops)
    others = plan.forward_flops.value - products(plan.forward_flops)
    assert 0.02 < others / plan.forward_flops.value < 0.3
    assert plan.gathered_bytes.value == (tokens + sequence) * h * FLOAT
    assert plan.uncounted == {}


def test_the_profiler_of_tensorflow_counts_no_einsum():
    """Why the graph is counted here."""
    weights = tf.Variable(tf.ones([5, 7]))

    def function(x):
        return tf.einsum("bk,kn->bn", x, weights)

    assert quick(function, spec(B, 5)).forward_flops.part("Einsum") == 2 * B * 5 * 7
    graph = tf.function(function).get_concrete_function(spec(B, 5)).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    assert tf.compat.v1.profiler.profile(graph, options=options).total_float_ops == 0


@pytest.fixture
def square():
    return tf.Variable(tf.ones([4, 4]))


def test_a_nested_function_counts_as_if_it_were_written_out(square):
    def plain(x):
        return tf.tanh(tf.tanh(x @ square) @ square)

    @tf.function
    def inner(x):
        return tf.identity(tf.tanh(x @ square))

    def nested(x):
        return inner(inner(x))

    one, other = quick(plain, spec(B, 4)), quick(nested, spec(B, 4))
    assert products(one.forward_flops) == products(other.forward_flops) == 2 * 2 * B * 4 * 4
    assert products(one.backward_flops) == products(other.backward_flops) == 3 * 2 * B * 4 * 4
    # Both results of tanh; the second product reads the first of them again.
    assert one.saved_bytes.value == other.saved_bytes.value == 2 * B * 4 * FLOAT
    concrete = tf.function(nested).get_concrete_function(spec(B, 4))
    assert quick(concrete, spec(B, 4)).forward_flops == other.forward_flops


def test_recomputation_saves_less_and_computes_more(square):
    def block(x):
        return tf.tanh(tf.tanh(x @ square) @ square)

    kept = quick(lambda x: block(tf.tanh(x @ square)), spec(B, 4))
    again = quick(lambda x: tf.recompute_grad(block)(tf.tanh(x @ square)), spec(B, 4))
    one = 2 * B * 4 * 4
    assert (kept.saved_bytes.value, again.saved_bytes.value) == (3 * B * 4 * FLOAT, B * 4 * FLOAT)
    assert products(kept.backward_flops) == 5 * one
    assert products(again.backward_flops) == (5 + 2) * one


def test_a_loop_needs_its_trip_count(square):
    def function(x):
        for _ in tf.range(5):
            x = tf.tanh(x @ square)
        return x

    with pytest.raises(ConfigError, match="must state how often the loop 'while' runs"):
        quick(function, spec(B, 4))
    plan = quick(function, spec(B, 4), trips={"while": 5})
    assert products(plan.forward_flops) == 5 * 2 * B * 4 * 4
    assert products(plan.backward_flops) == 2 * 5 * 2 * B * 4 * 4
    # Each trip keeps its result, for tanh and as factor of the next trip.
    more = quick(function, spec(B, 4), trips={"while": 10})
    assert more.saved_bytes.value - plan.saved_bytes.value == 5 * B * 4 * FLOAT
    with pytest.raises(ConfigError, match="trips\\['while'\\]: got -1"):
        quick(function, spec(B, 4), trips={"while": -1})


def test_a_loop_may_end_on_a_value_and_exchange_its_variables(square):
    def function(x):
        y = x + 1.0
        while tf.reduce_sum(x) < 100.0:
            x, y = y, x @ square
        return x + y

    plan = quick(function, spec(B, 4), trips={"while": 7})
    assert products(plan.forward_flops) == 7 * 2 * B * 4 * 4


def test_of_two_branches_the_costlier_one_counts(square):
    def function(x):
        if tf.reduce_sum(x) > 0.0:
            return tf.tanh(x @ square @ square)
        return x @ square

    plan = quick(function, spec(B, 4))
    assert products(plan.forward_flops) == 2 * 2 * B * 4 * 4
    assert plan.saved_bytes.value >= B * 4 * FLOAT


def test_unknown_arithmetic_is_listed():
    plan = quick(
        lambda x: tf.linalg.inv(x) + tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64))),
        spec(4, 4),
    )
    assert plan.uncounted == {"FFT": 1, "MatrixInverse": 1, "Real": 1}
    assert plan.forward_flops.value == 4 * 4  # the addition


def test_gathers_are_bytes():
    table = tf.Variable(tf.ones([100, 6]))
    plan = quick(lambda ids: tf.nn.embedding_lookup(table, ids), spec(B, 2, dtype=tf.int64))
    assert plan.gathered_bytes.value == B * 2 * 6 * FLOAT
    # The rows, and the shape of the table; the ids are the input.
    assert plan.gradient_bytes.value == B * 2 * 6 * FLOAT + 2 * 4
    assert plan.forward_flops.value == 0


def test_what_is_fixed_does_not_count_per_example(square):
    def function(x):
        return tf.tanh(x @ tf.tanh(square))

    plan = plan_keras(function, spec(B, 4))
    assert plan.saved_bytes_per_example.value == 4 * FLOAT
    assert plan.saved_bytes.value == B * 4 * FLOAT + 4 * 4 * FLOAT


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (spec(None, 4), "must have a fixed shape"),
        ([], "must have a tensor"),
        (tf.RaggedTensorSpec([B, None]), "must be a tf.TensorSpec"),
        ("text", "must be a tf.TensorSpec"),
        ((spec(B, 4), spec(4)), "must have the batch as first dimension"),
    ],
)
def test_a_wrong_input_spec_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan_keras(lambda *args: args[0], wrong)
    assert caught.value.field == "input_spec"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adamw"}, "must be one of sgd, momentum, adagrad, adam"),
        ({"per_example": 1}, "must be True or False"),
        ({"model": 1}, "must be a Keras model"),
        ({"trips": 5}, "must map names"),
    ],
)
def test_a_wrong_argument_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan_keras(tf.identity, spec(B, 4), **wrong)
    assert {caught.value.field} == set(wrong)


def test_a_function_without_a_result_is_refused():
    with pytest.raises(ConfigError, match="must return a floating-point tensor"):
        quick(lambda x: None, spec(B, 4))


def test_a_shape_that_depends_on_values_is_refused(square):
    def function(x):
        return tf.boolean_mask(x, x[:, 0] > 0) @ square

    with pytest.raises(ConfigError, match=r"GatherV2 has \(None, 4\): give a fixed input_spec"):
        quick(function, spec(B, 4))


def test_an_open_input_signature_is_ignored_outside_and_refused_inside(square):
    function = tf.function(lambda x: x @ square, input_signature=[spec(None, 4)])
    assert quick(function, spec(B, 4)).forward_flops.value == 2 * B * 4 * 4
    with pytest.raises(ConfigError, match="without an input_signature of their own"):
        quick(lambda x: function(x) + 1.0, spec(B, 4))


class Clock:
    """Advances by the next of `steps` at every second reading."""

    def __init__(self, steps):
        self.now, self.steps, self.readings = 0.0, iter(steps), 0

    def __call__(self):
        self.now += next(self.steps) if self.readings % 2 else 0.0
        self.readings += 1
        return self.now


def test_the_calibration_has_the_median_and_the_spread():
    calls = []
    found = calibrate_step(calls.append, [1], 100.0, runs=3, warm_up=2, clock=Clock([2, 4, 5]))
    assert calls == [1] * 5
    assert (found.value, found.interval) == (25, (20, 50))
    assert found.unit == "FLOPs per second"
    flops = Quantity("step", 100, "FLOPs")
    again = calibrate_step(calls.append, [1], flops, runs=3, clock=Clock([2, 4, 5]))
    assert again == found


def test_a_real_step_is_calibrated(square):
    step = tf.function(lambda x: x @ square)
    flops = quick(step, spec(B, 4)).forward_flops
    found = calibrate_step(step, [tf.ones([B, 4])], flops, runs=2)
    least, greatest = found.interval
    assert 0 < least <= found.value <= greatest


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flops": 0}, "must be positive"),
        ({"runs": 0}, "must be a whole number from 1"),
        ({"function": None}, "must be a function"),
        ({"inputs": 3}, "must be a list"),
        ({"clock": lambda: 1.0}, "must run longer"),
    ],
)
def test_a_wrong_calibration_is_refused(wrong, message):
    options = {"function": lambda x: x, "inputs": [1], "flops": 1.0, **wrong}
    with pytest.raises(ConfigError, match=message):
        calibrate_step(**options)


def test_the_worked_example_prints_what_the_page_says(capsys):
    parts = PAGE.read_text("utf-8").split("```")
    [place] = [number for number, block in enumerate(parts) if "plan_keras(loss, inputs" in block]
    program = parts[place].removeprefix("python\n")
    printed, prose = parts[place + 2].removeprefix("text\n"), parts[place + 3]
    exec(compile(program, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == printed
    numbers = re.findall(r"[\d,]{2,}", printed)
    assert len(numbers) == 15
    for number in numbers:
        assert number in prose, number
