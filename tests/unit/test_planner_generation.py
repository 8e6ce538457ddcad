"""Generation with a cache computes what one causal pass does, and reads what it must."""

import math
from dataclasses import replace

import pytest

from tfdist.errors import ConfigError
from tfdist.planner import (
    Experts,
    LatentAttention,
    Transformer,
    count_parameters,
    decode_bytes,
    find_device,
    forward_flops,
    generation_flops,
    generation_time,
)

SMALL = Transformer(layers=2, hidden=8, heads=2, vocabulary=32)
GROUPED = Transformer(3, 64, 8, 100, kv_heads=2, gated_mlp=True, window=16)
RELATIVE = Transformer(3, 64, 4, 100, relative_positions=True)
MOE = Transformer(4, 64, 8, 100, experts=Experts(8, 2, mlp=48, shared=1))
LATENT = Transformer(3, 64, 4, 100, latent=LatentAttention(32, 24, 16, 8, 12))
LLAMA_8B = Transformer(
    **{"layers": 32, "hidden": 4096, "heads": 32, "vocabulary": 128_256, "kv_heads": 8},
    **{"mlp": 14336, "gated_mlp": True, "bias": "none", "norm": "rms", "tied": False},
)
H100 = find_device("h100-80g")


@pytest.mark.parametrize("model", [SMALL, GROUPED, RELATIVE, MOE])
@pytest.mark.parametrize(("prompt", "generated"), [(1, 1), (5, 1), (5, 9), (1, 30), (30, 7)])
def test_it_is_one_causal_pass_but_for_the_head(model, prompt, generated):
    whole = forward_flops(model, 3, prompt + generated - 1, causal=True)
    found = generation_flops(model, 3, prompt, generated)
    head = 2 * 3 * model.hidden * model.vocabulary
    assert sum(part.part("head") for part in found.parts) == generated * head
    body = found.value - generated * head
    assert body == whole.value - whole.part("head")


def test_a_token_costs_twice_its_parameters_and_its_cache():
    # Of GPT's shape, 2 FLOPs for each weight; 4 q for each token in the cache and layer.
    found = generation_flops(SMALL, 1, 10, 2).parts[1]
    weights = 2 * 12 * 8**2 + 32 * 8
    assert found.value == 2 * weights + 2 * 4 * 8 * 11


def test_decode_of_latent_attention_is_absorbed():
    found = generation_flops(LATENT, 1, 10, 2)
    prefill, decode = (part.parts[0] for part in found.parts)
    assert prefill.part("weighted values") == 3 * 2 * 55 * 4 * 12
    assert decode.part("weighted values") == 3 * 2 * 11 * 4 * 32


def test_the_bytes_of_one_step_by_hand():
    found = decode_bytes(SMALL, 5, 10, 2)
    vectors = 2 * 13 * 8 + 2 * 8  # biases and norms
    assert found.part("weights") == 2 * (2 * 12 * 8**2 + 32 * 8 + vectors)
    assert found.part("cache") == 5 * 11 * 2 * 2 * 8 * 2  # keys and values, layers, width, bytes
    assert decode_bytes(SMALL, 5, 10, 2, bytes_per_number=1).value == found.value / 2


def test_the_weights_are_read_once_a_step_for_all_sequences():
    one, many = (decode_bytes(LLAMA_8B, batch, 100, 51) for batch in (1, 64))
    table = LLAMA_8B.vocabulary * LLAMA_8B.hidden
    assert one.part("weights") == 50 * 2 * (count_parameters(LLAMA_8B).value - table)
    assert many.part("weights") == one.part("weights")
    assert many.part("cache") == 64 * one.part("cache")


def test_grouped_heads_and_a_window_shrink_the_cache():
    full = replace(GROUPED, kv_heads=8, window=0)
    tokens = sum(range(101, 121))
    assert decode_bytes(full, 1, 100, 21).part("cache") == tokens * 3 * 2 * 64 * 2
    assert decode_bytes(GROUPED, 1, 100, 21).part("cache") == 20 * 16 * 3 * 2 * 16 * 2


def test_latent_attention_caches_one_vector_for_all_heads():
    assert decode_bytes(LATENT, 1, 10, 2).part("cache") == 11 * 3 * (32 + 8) * 2


def test_few_tokens_read_few_experts():
    expert = 4 * 2 * 64 * 48 * 2  # bytes in four layers
    read = [decode_bytes(MOE, batch, 1, 2).part("weights") for batch in (1, 2, 4, 50)]
    assert read[1] - read[0] == 2 * expert
    assert read[2] - read[1] == 4 * expert
    assert read[3] == read[2]  # there are no more than 8


def test_small_batches_wait_for_memory_and_large_ones_compute():
    few, many = (generation_time(LLAMA_8B, batch, 128, 128, H100) for batch in (1, 4096))
    assert [part.name for part in few.parts] == ["prefill", "decode"]
    assert few.parts[1].formula == "B / (d M)"
    bytes_read = decode_bytes(LLAMA_8B, 1, 128, 128).value
    assert few.parts[1].value == pytest.approx(bytes_read / 3350e9)
    assert many.parts[1].formula == "F / (d P u)"
    assert 1 < many.value / few.value < 4096


def test_the_interval_is_that_of_the_unknown_mfu():
    found = generation_time(LLAMA_8B, 8, 1000, 10, H100)
    decode = found.parts[1].value
    least, most = found.parts[0].interval
    assert found.interval == (least + decode, most + decode)
    assert generation_time(LLAMA_8B, 8, 1000, 10, H100, mfu=0.5).interval is None


def test_twice_the_devices_take_half_the_time():
    one, two = (generation_time(LLAMA_8B, 8, 100, 100, H100, n) for n in (1, 2))
    assert two.value == pytest.approx(one.value / 2)


def test_a_single_token_needs_no_decode():
    found = generation_time(LLAMA_8B, 8, 100, 1, H100)
    assert found.value == found.parts[0].value
    assert [part.name for part in found.parts] == ["prefill"]


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("model", lambda: generation_flops(None, 1, 1, 1)),
        ("batch", lambda: generation_flops(SMALL, 0, 1, 1)),
        ("prompt", lambda: generation_flops(SMALL, 1, -1, 1)),
        ("generated", lambda: generation_flops(SMALL, 1, 1, math.nan)),
        ("generated", lambda: decode_bytes(SMALL, 1, 1, 0)),
        ("bytes_per_number", lambda: decode_bytes(SMALL, 1, 1, 1, bytes_per_number=16)),
        ("device", lambda: generation_time(SMALL, 1, 1, 1, "h100-80g")),
        ("devices", lambda: generation_time(SMALL, 1, 1, 1, H100, 0)),
        ("mfu", lambda: generation_time(SMALL, 1, 1, 1, H100, mfu=2)),
    ],
)
def test_wrong_input_names_its_field(field, call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.field == field
