"""The memory of a model that answers, against what its authors publish."""

from dataclasses import replace

import pytest

from tfdist.errors import ConfigError
from tfdist.planner.inference import inference_memory, kv_cache_per_token
from tfdist.planner.parameters import count_parameters
from tfdist.planner.transformer import Experts, LatentAttention, Transformer

LLAMA_2_7B = Transformer(32, 4096, 32, 32000, mlp=11008, gated_mlp=True, bias="none", norm="rms")
LLAMA_70B = Transformer(80, 8192, 64, 128256, kv_heads=8, mlp=28672, gated_mlp=True, bias="none")
LATENT = LatentAttention(512, 1536, 128, 64, 128)
DEEPSEEK_V2 = Transformer(60, 5120, 128, 102400, head_dim=128, latent=LATENT, bias="none")
MISTRAL_7B = Transformer(32, 4096, 32, 32000, kv_heads=8, mlp=14336, gated_mlp=True, window=4096)


def cache(model, *args):
    return kv_cache_per_token(model, *args).value


def test_llama_2_7b_caches_half_a_mebibyte_for_each_token():
    assert cache(LLAMA_2_7B) == 2**19
    assert cache(LLAMA_2_7B, "fp32") == 2**20
    assert cache(LLAMA_2_7B, "int8") == 2**19  # the weights alone have 8 bits


def test_grouped_heads_cache_their_groups():
    assert cache(LLAMA_70B) == 320 * 1024
    assert cache(replace(LLAMA_70B, kv_heads=64)) == 8 * cache(LLAMA_70B)
    assert cache(replace(LLAMA_70B, kv_heads=1)) == cache(LLAMA_70B) / 8


def test_deepseek_v2_caches_one_vector_for_all_heads():
    """Table 1 and section 2.1.4 of arXiv 2405.04434: as much as 2.25 groups of keys and values."""
    elements = cache(DEEPSEEK_V2) / 2
    assert elements == 60 * (512 + 64)
    assert elements == 60 * 2 * 2.25 * 128


def test_deepseek_v2_caches_93_percent_less_than_its_predecessor():
    """Section 3.2.3 of the paper: 93.3 % less than DeepSeek 67B, with 6 bits for each element."""
    predecessor = Transformer(95, 8192, 64, 102400, kv_heads=8)
    less = 1 - cache(DEEPSEEK_V2) * 6 / 16 / cache(predecessor)
    assert round(100 * less, 1) == 93.3


def test_palm_540b_with_many_heads_would_cache_3_tb():
    """Pope et al. 2022, arXiv 2211.05102, section 1: 512 sequences of 2048 tokens, 3 times the
    weights. The variant with a cache for each of 48 heads has heads of 128."""
    palm = Transformer(118, 18432, 48, 256000, head_dim=128, mlp=73728, gated_mlp=True, bias="none")
    found = inference_memory(palm, 512, 2048)
    assert found.part("cache") == pytest.approx(3e12, rel=0.02)
    assert found.part("cache") / found.part("weights") == pytest.approx(3, abs=0.2)


def test_a_window_of_mistral_caches_8_times_less():
    """Section 2 of arXiv 2310.06825: a rolling buffer, for a sequence of 32,000 tokens."""
    windowed = inference_memory(MISTRAL_7B, 1, 32768).part("cache")
    whole = inference_memory(replace(MISTRAL_7B, window=0), 1, 32768).part("cache")
    assert whole == 8 * windowed
    short = inference_memory(MISTRAL_7B, 1, 1000).part("cache")
    assert short == 1000 * cache(MISTRAL_7B)


@pytest.mark.parametrize(
    ("precision", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)]
)
def test_weights_need_the_bytes_of_their_precision(precision, size):
    found = inference_memory(LLAMA_2_7B, 1, 1, precision)
    assert found.part("weights") == size * count_parameters(LLAMA_2_7B).value


def test_the_cache_grows_with_batch_and_sequence():
    one, many = (inference_memory(LLAMA_2_7B, b, s) for b, s in ((1, 100), (8, 400)))
    assert many.part("cache") == 32 * one.part("cache") == 3200 * 2**19
    assert many.part("weights") == one.part("weights")


def test_devices_share_heads_but_not_a_latent_vector():
    assert [cache(LLAMA_70B, "bf16", t) for t in (1, 8, 16)] == [327680, 40960, 40960]
    assert cache(DEEPSEEK_V2, "bf16", 8) == cache(DEEPSEEK_V2)
    whole, eighth = (inference_memory(LLAMA_70B, 1, 1, tensor=t) for t in (1, 8))
    norms = 161 * 2 * 8192 * 2  # on each device
    assert eighth.part("weights") == (whole.part("weights") - norms) / 8 + norms


def test_the_workspace_is_the_widest_point_of_a_layer_and_the_logits():
    (work,) = [p for p in inference_memory(LLAMA_2_7B, 3, 10).parts if p.name == "workspace"]
    assert work.part("tensors of a layer") == 2 * 10 * (2 * 4096 + 3 * 11008)
    assert work.part("logits in fp32") == 4 * 3 * 32000
    moe = replace(LLAMA_2_7B, experts=Experts(64, 6, mlp=1408, shared=2))
    (work,) = [p for p in inference_memory(moe, 3, 10).parts if p.name == "workspace"]
    assert work.part("tensors of a layer") == 2 * 10 * (2 * 4096 + 3 * 8 * 1408)


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ((None, 1, 1), "model"),
        ((LLAMA_2_7B, 0, 1), "batch"),
        ((LLAMA_2_7B, 1, -1), "sequence"),
        ((LLAMA_2_7B, 1, 1.5), "sequence"),
        ((LLAMA_2_7B, 1, float("nan")), "sequence"),
        ((LLAMA_2_7B, 1, 1, "int3"), "precision"),
        ((LLAMA_2_7B, 1, 1, "bf16", 0), "tensor"),
        ((LLAMA_2_7B, 1, 1, "bf16", 5), "tensor"),
    ],
)
def test_wrong_input_is_named(args, field):
    with pytest.raises(ConfigError) as caught:
        inference_memory(*args)
    assert caught.value.field == field
