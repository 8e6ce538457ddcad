"""endless_batches yields every example exactly once, in batches of one size, and never ends."""

from collections import namedtuple

import numpy as np
import pytest
import tensorflow as tf

from tfdist import ConfigError
from tfdist.data import endless_batches

BATCH = 4
Pair = namedtuple("Pair", "x y")


def numbers(count: int) -> tf.data.Dataset:
    """1 to `count`, so no example equals padding."""
    return tf.data.Dataset.range(1, count + 1)


def first(dataset: tf.data.Dataset, steps: int) -> list:
    return list(dataset.take(steps).as_numpy_iterator())


@pytest.mark.parametrize("count", [0, 1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH])
class TestAnyNumberOfExamples:
    def test_examples_come_exactly_once_in_order_followed_by_padding(self, count):
        steps = first(endless_batches(numbers(count), BATCH), 5)
        flat = np.concatenate([batch for batch, _, _ in steps])
        assert flat.tolist() == [*range(1, count + 1), *[0] * (5 * BATCH - count)]

    def test_the_weight_is_1_for_examples_and_0_for_padding(self, count):
        for batch, weight, _ in first(endless_batches(numbers(count), BATCH), 5):
            assert weight.tolist() == [float(number > 0) for number in batch]

    def test_the_weights_sum_to_the_number_of_examples(self, count):
        assert (
            sum(weight.sum() for _, weight, _ in first(endless_batches(numbers(count), BATCH), 9))
            == count
        )

    def test_has_value_is_true_for_exactly_the_batches_with_an_example(self, count):
        real = -(-count // BATCH)
        values = [has_value for _, _, has_value in first(endless_batches(numbers(count), BATCH), 6)]
        assert values == [True] * real + [False] * (6 - real)


def test_empty_batches_follow_without_end():
    dataset = endless_batches(numbers(1), BATCH)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    for batch, weight, has_value in first(dataset.skip(1_000), 2):
        assert (batch.tolist(), weight.tolist(), has_value) == ([0] * BATCH, [0.0] * BATCH, False)


def test_a_dataset_of_unknown_cardinality_works():
    odd = numbers(9).filter(lambda number: number % 2 == 1)
    assert odd.cardinality() == tf.data.UNKNOWN_CARDINALITY
    assert [batch.tolist() for batch, _, _ in first(endless_batches(odd, BATCH), 3)] == [
        [1, 3, 5, 7],
        [9, 0, 0, 0],
        [0, 0, 0, 0],
    ]


def test_batches_of_one_need_no_padding():
    steps = first(endless_batches(numbers(2), 1), 3)
    assert [(batch.tolist(), bool(value)) for batch, _, value in steps] == [
        ([1], True),
        ([2], True),
        ([0], False),
    ]


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float16", "float64", "bool"])
def test_padding_is_zeros_of_the_same_dtype(dtype):
    dataset = tf.data.Dataset.from_tensor_slices(np.ones([1, 2], dtype))
    for step, (batch, _, _) in enumerate(first(endless_batches(dataset, 2), 2)):
        assert batch.dtype == dtype
        assert batch.tolist() == [[step == 0, step == 0], [0, 0]]


def test_strings_are_padded_with_empty_strings():
    dataset = tf.data.Dataset.from_tensor_slices(["a", "b", "c"])
    batches = [batch.tolist() for batch, _, _ in first(endless_batches(dataset, 2), 3)]
    assert batches == [[b"a", b"b"], [b"c", b""], [b"", b""]]


X = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
Y = np.array([1, 2, 3])


STRUCTURES = {
    "tensor": X,
    "pair": (X, Y),
    "tuple of one": (X,),
    "tuple of one in a tuple of one": ((X,),),
    "pair in a tuple of one": ((X, Y),),
    "dict in a tuple of one": ({"x": X},),
    "dict": {"x": X, "y": Y},
    "namedtuple": Pair(X, Y),
    "nested": (X, {"y": Y, "deep": (Y, {"x": X})}),
    "tuple of one in a dict": {"x": X, "y": (Y,)},
    "namedtuple in a pair": (Pair(X, (Y,)), Y),
}


@pytest.mark.parametrize("element", STRUCTURES.values(), ids=STRUCTURES)
class TestAnyStructure:
    def test_a_batch_has_the_structure_of_an_element(self, element):
        dataset = tf.data.Dataset.from_tensor_slices(element)
        spec = endless_batches(dataset, 2).element_spec[0]
        tf.nest.assert_same_structure(spec, dataset.element_spec)
        for batched, single in zip(
            tf.nest.flatten(spec), tf.nest.flatten(dataset.element_spec), strict=True
        ):
            assert (batched.dtype, batched.shape) == (single.dtype, [2, *single.shape])

    def test_all_parts_are_padded_alike(self, element):
        steps = first(endless_batches(tf.data.Dataset.from_tensor_slices(element), 2), 3)
        for place, whole in enumerate(tf.nest.flatten(element)):
            parts = np.concatenate([tf.nest.flatten(batch)[place] for batch, _, _ in steps])
            assert parts.tolist() == [*whole.tolist(), *np.zeros([3, *whole.shape[1:]]).tolist()]


def test_all_shapes_are_static():
    batch, weight, has_value = endless_batches(
        tf.data.Dataset.from_tensor_slices(X), BATCH
    ).element_spec
    assert batch == tf.TensorSpec([BATCH, 2], tf.float32)
    assert weight == tf.TensorSpec([BATCH], tf.float32)
    assert has_value == tf.TensorSpec([], tf.bool)


def test_an_unknown_dimension_stays_unknown_and_is_0_after_the_end():
    spec = tf.TensorSpec([None, 2], tf.int32)
    dataset = tf.data.Dataset.from_generator(lambda: iter([np.ones([3, 2])]), output_signature=spec)
    dataset = endless_batches(dataset, BATCH)
    assert dataset.element_spec[0].shape.as_list() == [BATCH, None, 2]
    assert [batch.shape for batch, _, _ in first(dataset, 2)] == [(BATCH, 3, 2), (BATCH, 0, 2)]


def test_it_is_not_autotuned_so_its_iterator_restarts_immediately():
    batches = endless_batches(tf.data.Dataset.range(5), 2)
    assert batches.map(lambda *batch: batch).prefetch(1).options().autotune.enabled is False


def test_it_can_be_iterated_again():
    dataset = endless_batches(numbers(5), BATCH)
    assert [b.tolist() for b, _, _ in first(dataset, 3)] == [
        b.tolist() for b, _, _ in first(dataset, 3)
    ]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_1_is_a_config_error(batch_size):
    with pytest.raises(ConfigError) as caught:
        endless_batches(numbers(3), batch_size)
    assert (caught.value.field, caught.value.value) == ("batch_size", batch_size)


@pytest.mark.parametrize("batch_size", [2.5, "2", None, True])
def test_a_batch_size_that_is_not_a_whole_number_is_a_config_error(batch_size):
    with pytest.raises(ConfigError) as caught:
        endless_batches(numbers(3), batch_size)
    assert caught.value.field == "batch_size"


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_infinite_dataset_ends_after_the_given_steps(steps):
    has_values = [
        bool(has) for *_, has in endless_batches(numbers(2).repeat(), BATCH, steps=steps).take(5)
    ]
    assert has_values == [True] * steps + [False] * (5 - steps)


def test_data_may_end_before_the_given_steps():
    assert [bool(has) for *_, has in endless_batches(numbers(3), 3, steps=2).take(3)] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("steps", [0, -1, 2.5, "2", True])
def test_steps_that_are_not_a_positive_whole_number_are_a_config_error(steps):
    with pytest.raises(ConfigError) as caught:
        endless_batches(numbers(3), BATCH, steps=steps)
    assert caught.value.field == "steps"


def test_an_infinite_dataset_without_steps_is_a_config_error():
    with pytest.raises(ConfigError, match="infinite") as caught:
        endless_batches(numbers(3).repeat(), BATCH)
    assert caught.value.field == "dataset"


@pytest.mark.parametrize(
    "spec",
    [
        tf.RaggedTensorSpec([None], tf.int32),
        tf.SparseTensorSpec([5], tf.int32),
        tf.TensorSpec(None, tf.int32),
    ],
    ids=["ragged", "sparse", "unknown rank"],
)
def test_elements_that_cannot_be_padded_are_a_config_error_at_any_depth(spec):
    signature = {"a": tf.TensorSpec([], tf.int32), "b": (spec,)}
    dataset = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=signature)
    with pytest.raises(ConfigError, match="only dense tensors of known rank") as caught:
        endless_batches(dataset, BATCH)
    assert (caught.value.field, caught.value.value) == ("dataset", spec)


def test_it_works_in_a_tensorflow_1_graph():
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        dataset = endless_batches(numbers(BATCH + 1), BATCH)
        batch, weight, has_value = tf.compat.v1.data.make_one_shot_iterator(dataset).get_next()
        assert batch.shape == [BATCH]
        steps = [session.run([batch, weight, has_value]) for _ in range(4)]
    assert [batch.tolist() for batch, _, _ in steps] == [
        [1, 2, 3, 4],
        [5, 0, 0, 0],
        [0] * 4,
        [0] * 4,
    ]
    assert [weight.sum() for _, weight, _ in steps] == [4, 1, 0, 0]
    assert [bool(has_value) for _, _, has_value in steps] == [True, True, False, False]


@pytest.mark.parametrize("count", [0, 1, BATCH + 1])
def test_it_works_in_a_tf_function_that_stops_by_has_value(count):
    @tf.function
    def total() -> tuple[tf.Tensor, tf.Tensor]:
        examples, steps = 0.0, 0
        for batch, weight, has_value in endless_batches(numbers(count), BATCH).take(9):
            if not has_value:
                break
            examples += tf.reduce_sum(weight * tf.cast(batch, tf.float32))
            steps += 1
        return examples, steps

    assert [float(value) for value in total()] == [sum(range(count + 1)), -(-count // BATCH)]


def test_an_iterator_made_outside_feeds_a_tf_function():
    step = tf.function(lambda iterator: next(iterator)[1])
    iterator = iter(endless_batches(numbers(BATCH + 1), BATCH))
    assert [float(tf.reduce_sum(step(iterator))) for _ in range(4)] == [4, 1, 0, 0]


def test_an_input_error_is_raised_and_does_not_end_the_data():
    def broken(number):
        with tf.control_dependencies([tf.debugging.assert_less(number, tf.constant(3, tf.int64))]):
            return tf.identity(number)

    with pytest.raises(tf.errors.InvalidArgumentError):
        first(endless_batches(numbers(5).map(broken), 2), 3)
