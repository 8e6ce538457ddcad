"""What a layer keeps for its backward pass: the paper's formula, and shapes beyond it."""

from dataclasses import replace

import pytest

from tfdist.errors import ConfigError
from tfdist.planner.activations import layer_activations
from tfdist.planner.training import Training
from tfdist.planner.transformer import Experts, LatentAttention, Transformer

# GPT-3 as in table 3 of arXiv 2205.05198, and one micro-batch of it.
GPT3 = Transformer(layers=96, hidden=12288, heads=96, vocabulary=51200, positions=2048)
LLAMA = Transformer(
    layers=80,
    hidden=8192,
    heads=64,
    kv_heads=8,
    vocabulary=128256,
    mlp=28672,
    gated_mlp=True,
    bias="none",
    norm="rms",
    tied=False,
)
S, B = 2048, 4


def training(**options):
    return Training(**{"global_batch": B, "sequence": S, "micro_batch": B, **options})


def kept(model, **options):
    """Bytes over s b h, the unit of the paper."""
    return layer_activations(model, training(**options)).value / (S * B * model.hidden)


def parts(model, **options):
    """Elements of each operation for each token."""
    found = layer_activations(model, training(**options)).parts
    return {part.name: part.value / (S * B) for part in found}


@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_a_layer_of_gpt_keeps_what_table_2_says(tensor):
    quadratic = 5 * GPT3.heads * S / GPT3.hidden / tensor
    shared = {"sequence_parallel": True, "tensor": tensor}
    assert kept(GPT3, tensor=tensor) == 10 + 24 / tensor + quadratic
    assert kept(GPT3, **shared) == 34 / tensor + quadratic
    assert kept(GPT3, tensor=tensor, recomputation="selective") == 10 + 24 / tensor
    assert kept(GPT3, **shared, recomputation="selective") == 34 / tensor
    assert kept(GPT3, tensor=tensor, recomputation="full") == 2


@pytest.mark.parametrize(("heads", "hidden"), [(64, 6144), (128, 20480), (160, 25600)])
def test_the_formula_holds_for_the_papers_other_models(heads, hidden):
    model = Transformer(layers=2, hidden=hidden, heads=heads, vocabulary=51200)
    assert layer_activations(model, training()).value == S * B * (34 * hidden + 5 * heads * S)


def test_each_operation_keeps_what_section_4_1_derives():
    assert parts(GPT3) == {
        "inputs of the norms": 4 * 12288,
        "input of queries, keys and values": 2 * 12288,
        "queries and keys": 4 * 12288,
        "softmax": 2 * 96 * S,
        "mask of the softmax's dropout": 96 * S,
        "softmax after dropout": 2 * 96 * S,
        "values": 2 * 12288,
        "input of the output projection": 2 * 12288,
        "input of the MLP": 2 * 12288,
        "input of GELU": 8 * 12288,
        "input of the MLP's last product": 8 * 12288,
        "mask of attention's dropout": 12288,
        "mask of the MLP's dropout": 12288,
    }


def test_without_dropout_no_masks_are_kept_and_the_softmax_once():
    assert kept(GPT3, dropout=False) == 32 + 2 * 96 * S / 12288


def test_fp32_doubles_all_but_the_masks():
    assert kept(GPT3, dropout=False, precision="fp32") == 2 * kept(GPT3, dropout=False)
    assert kept(GPT3, precision="fp32") == 2 * 32 + 2 + (2 * 4 + 1) * 96 * S / 12288


@pytest.mark.parametrize("precision", ["mixed", "mixed, fp32 gradients", "keras mixed_float16"])
def test_mixed_precisions_keep_the_same(precision):
    assert kept(GPT3, precision=precision) == kept(GPT3)


def test_flash_attention_keeps_one_number_for_each_query_and_head():
    found = parts(GPT3, flash_attention=True)
    assert found["logarithms of the softmax's sums"] == 4 * 96
    assert kept(GPT3, flash_attention=True) == 34 + 4 * 96 / 12288
    assert not [name for name in found if name.startswith(("softmax", "mask of the softmax"))]


def test_grouped_heads_have_fewer_keys_and_values():
    found = parts(LLAMA, dropout=False, flash_attention=True)
    assert found["queries and keys"] == 2 * (8192 + 1024)
    assert found["values"] == 2 * 1024
    assert found["input of the output projection"] == 2 * 8192


def test_a_gate_keeps_three_tensors():
    found = parts(LLAMA, dropout=False)
    assert found["gate"] == 3 * 2 * 28672
    assert found["input of the MLP's last product"] == 2 * 28672
    assert "input of GELU" not in found


def test_more_devices_than_groups_of_heads_hold_the_same_keys():
    found = parts(LLAMA, dropout=False, tensor=16)
    assert found["values"] == 2 * 128
    assert found["queries and keys"] == 2 * (512 + 128)


def test_a_parallel_block_reads_one_input():
    palm = replace(GPT3, parallel_block=True, norms_per_layer=1)
    assert kept(GPT3) - kept(palm) == 2 + 2  # the second norm's input, and the MLP's
    falcon = replace(GPT3, parallel_block=True)  # two norms of one tensor
    assert kept(GPT3) - kept(falcon) == 2
    assert kept(replace(GPT3, norms_per_layer=4)) - kept(GPT3) == 2 * 2


def test_norms_of_queries_and_keys_keep_their_inputs():
    assert kept(replace(GPT3, qk_norm="head")) - kept(GPT3) == 2 * 2


def test_relative_positions_need_queries_of_their_own():
    assert kept(replace(GPT3, relative_positions=True)) - kept(GPT3) == 2


def test_experts_keep_the_tokens_that_they_get():
    moe = replace(LLAMA, experts=Experts(count=8, active=2))
    found = parts(moe, dropout=False)
    assert found["inputs of the experts"] == found["outputs of the experts"] == 2 * 2 * 8192
    assert found["gate"] == 2 * parts(LLAMA)["gate"]
    assert found["router in fp32"] == 4 * 8
    # Dividing the experts among devices changes nothing: as many tokens come as go.
    assert found == parts(moe, dropout=False, expert=4, data=4, global_batch=4 * B)


def test_shared_experts_serve_every_token():
    one = replace(LLAMA, experts=Experts(count=8, active=2, mlp=1000))
    shared = replace(LLAMA, experts=Experts(count=8, active=2, mlp=1000, shared=3))
    assert parts(shared)["gate"] - parts(one)["gate"] == 3 * 2 * 3 * 1000
    given = replace(LLAMA, experts=Experts(count=8, active=2, mlp=1000, shared=3, shared_mlp=3000))
    assert parts(given) == parts(shared)


def test_one_expert_for_every_token_is_an_mlp_with_copies_and_a_router():
    moe = replace(LLAMA, experts=Experts(count=1, active=1))
    extra = ("inputs of the experts", "outputs of the experts", "router in fp32")
    assert {n: v for n, v in parts(moe).items() if n not in extra} == parts(LLAMA)


def test_a_model_whose_layers_are_all_dense_keeps_an_mlp():
    moe = Experts(count=8, active=2, dense_layers=80)
    assert parts(replace(LLAMA, experts=moe)) == parts(LLAMA)


def test_latent_attention_keeps_compressed_vectors_and_what_is_made_of_them():
    latent = LatentAttention(512, 1536, 128, 64, 128)
    model = Transformer(2, 5120, 128, 102400, head_dim=128, latent=latent, bias="none")
    found = parts(model, dropout=False)
    assert found["compressed vectors"] == 2 * 2 * (512 + 1536)
    assert found["queries and keys"] == 2 * 2 * 128 * (128 + 64)
    assert found["values"] == found["input of the output projection"] == 2 * 128 * 128
    divided = parts(model, dropout=False, tensor=8)
    assert divided["compressed vectors"] == found["compressed vectors"]
    assert divided["values"] == found["values"] / 8


# Bytes that the gradient of a Keras layer captures: for each s h, and for each a s^2.
COUNTED = [
    ("fp32", False, False, 136, 9),
    ("fp32", False, True, 150, 13),
    ("keras mixed_float16", False, False, 76, 11),
    ("keras mixed_float16", False, True, 84, 7),
    ("fp32", True, False, 124, 9),
    ("keras mixed_float16", True, False, 70, 11),
]


@pytest.mark.parametrize(("precision", "is_gated", "dropout", "linear", "quadratic"), COUNTED)
def test_tensorflow_keeps_what_was_counted(precision, is_gated, dropout, linear, quadratic):
    for s, h, a in ((64, 64, 4), (256, 512, 8)):
        model = Transformer(2, h, a, 1000, gated_mlp=is_gated)
        options = Training(3, s, precision=precision, dropout=dropout)
        found = layer_activations(model, options, framework="tensorflow")
        assert found.value == 3 * (linear * s * h + quadratic * a * s**2)
        assert found.value > layer_activations(model, options).value


def test_tensorflow_keeps_a_factor_more_than_fused_operations():
    """Over 16 s h + a s^2 elements, counted with s = h = 256 and a = 4: ReLU, GELU, tanh GELU."""
    model = Transformer(layers=4, hidden=256, heads=4, vocabulary=1000)
    options = Training(1, 256, precision="fp32", dropout=False)
    fused = layer_activations(model, options).value
    assert fused == 4 * (16 * 256 * 256 + 4 * 256**2)
    tensorflow = layer_activations(model, options, framework="tensorflow")
    (gelu,) = [each for each in tensorflow.parts if each.interval is not None]
    relu, tanh = (tensorflow.value - gelu.value + end for end in gelu.interval)
    assert [each / fused for each in (relu, tensorflow.value, tanh)] == [1.35, 2.15, 2.35]


@pytest.mark.parametrize("options", [{"flash_attention": True}, {"recomputation": "selective"}])
def test_tensorflow_keeps_no_pieces_of_a_softmax_that_is_not_kept(options):
    for dropout in (False, True):
        each = training(dropout=dropout, **options)
        names = [p.name for p in layer_activations(GPT3, each, framework="tensorflow").parts]
        assert "TensorFlow: pieces of GELU" in names
        assert "TensorFlow: pieces of the softmax" not in names


@pytest.mark.parametrize("tensor", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("model", [LLAMA, replace(LLAMA, experts=Experts(64, 6, mlp=1408))])
def test_more_devices_never_keep_more(model, tensor):
    for options in ({}, {"sequence_parallel": True}, {"recomputation": "selective"}):
        few, many = (kept(model, tensor=t, **options) for t in (max(1, tensor // 2), tensor))
        assert many <= few


@pytest.mark.parametrize(
    ("model", "options", "framework", "field"),
    [
        (GPT3, {"tensor": 5}, "megatron", "tensor"),
        (LLAMA, {"tensor": 3}, "megatron", "tensor"),
        (replace(LLAMA, heads=48, kv_heads=4), {"tensor": 6}, "megatron", "tensor"),
        (GPT3, {"pipeline": 97}, "megatron", "pipeline"),
        (GPT3, {"pipeline": 48, "interleaved": 3}, "megatron", "pipeline"),
        (GPT3, {"expert": 2, "data": 2, "global_batch": 8}, "megatron", "expert"),
        (GPT3, {}, "jax", "framework"),
        ("gpt3", {}, "megatron", "model"),
    ],
)
def test_wrong_input_is_named(model, options, framework, field):
    with pytest.raises(ConfigError) as caught:
        layer_activations(model, training(**options), framework=framework)
    assert caught.value.field == field


def test_a_training_of_another_type_is_named():
    with pytest.raises(ConfigError, match="training"):
        layer_activations(GPT3, {"tensor": 8})
