"""Whether a training step fits into a device, and the largest that does."""

import math
from dataclasses import replace

import pytest

from tfdist.errors import ConfigError
from tfdist.planner.capacity import devices_that_fit, fits, largest_micro_batch, memory_left
from tfdist.planner.devices import DEVICES, find_device
from tfdist.planner.memory import training_memory
from tfdist.planner.training import Training
from tfdist.planner.transformer import Transformer

GPT = Transformer(layers=24, hidden=2048, heads=16, vocabulary=51200, positions=2048)
A100 = find_device("a100-80g")


@pytest.mark.parametrize(
    ("shape", "division"),
    [
        ((48, 6144, 64), {"global_batch": 4}),
        ((96, 12288, 96), {"global_batch": 64, "pipeline": 8, "interleaved": 3}),
        ((105, 20480, 128), {"global_batch": 280, "pipeline": 35, "interleaved": 3}),
        ((128, 25600, 160), {"global_batch": 512, "pipeline": 64}),
    ],
    ids=["22B", "175B", "530B", "1T"],
)
def test_sequence_parallelism_and_selective_recomputation_make_large_models_fit(shape, division):
    """Figure 1 of arXiv 2205.05198: none fits into 80 GB without them, all do with them."""
    model = Transformer(*shape, 51200, positions=2048)
    micro = 4 if division["global_batch"] == 4 else 1
    training = Training(**division, micro_batch=micro, tensor=8, precision="mixed, fp32 gradients")
    assert not fits(model, training, A100)
    both = replace(training, sequence_parallel=True, recomputation="selective")
    assert fits(model, both, A100)
    assert not fits(model, both, find_device("a100-40g"))


def test_what_is_left_is_the_memory_without_the_need():
    training = Training(sequence=512)
    need = training_memory(GPT, training)
    left = memory_left(GPT, training, A100)
    assert left.value == 80 * 2**30 - need.value > 0
    assert left.interval == (80 * 2**30 - need.interval[1], left.value)
    missing = memory_left(GPT, replace(training, global_batch=512, micro_batch=512), A100)
    assert missing.value < 0


def test_a_step_that_needs_all_of_the_memory_fits():
    training = Training(sequence=512)
    need = training_memory(GPT, training).value
    exact = replace(A100, memory_bytes=math.ceil(need))
    assert fits(GPT, training, exact)
    assert not fits(GPT, training, replace(exact, memory_bytes=math.ceil(need) - 1))


@pytest.mark.parametrize("framework", ["megatron", "tensorflow"])
def test_the_largest_micro_batch_fits_and_the_next_does_not(framework):
    training = Training(global_batch=720, data=2, sequence=1024, micro_batch=1)
    size = largest_micro_batch(GPT, training, A100, framework=framework)
    sizes = [n for n in range(1, 361) if 360 % n == 0]
    assert 1 < size < 360
    for each in sizes:
        is_small = each <= size
        step = replace(training, micro_batch=each)
        assert fits(GPT, step, A100, framework=framework) == is_small


def test_tensorflow_computes_fewer_sequences_at_a_time():
    training = Training(global_batch=720, sequence=1024)
    fused, pieces = (
        largest_micro_batch(GPT, training, A100, framework=each)
        for each in ("megatron", "tensorflow")
    )
    assert 0 < pieces < fused


def test_no_micro_batch_fits_if_the_weights_do_not():
    large = Transformer(96, 12288, 96, 51200)
    assert largest_micro_batch(large, Training(global_batch=64), A100) == 0


def test_the_whole_batch_is_computed_at_once_if_it_fits():
    assert largest_micro_batch(GPT, Training(global_batch=6, sequence=128), A100) == 6


def test_devices_that_fit_have_enough_memory_and_the_others_have_not():
    training = Training(global_batch=8, sequence=1024)
    found = devices_that_fit(GPT, training)
    assert found
    assert len(found) < len(DEVICES)
    for each in DEVICES.values():
        assert (each in found) == (training_memory(GPT, training).value <= each.memory_bytes)
    sizes = [each.memory_bytes for each in found]
    assert sizes == sorted(sizes)
    assert devices_that_fit(Transformer(96, 12288, 96, 51200), training) == []


def test_wrong_input_is_named():
    with pytest.raises(ConfigError, match="device"):
        fits(GPT, Training(), "a100-80g")
    with pytest.raises(ConfigError, match="model"):
        largest_micro_batch("gpt", Training(), A100)
    with pytest.raises(ConfigError, match="framework"):
        devices_that_fit(GPT, Training(), framework="jax")
