"""FLOPs of a forward pass and of training: by hand, by their properties, and by their formulas."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdist.errors import ConfigError
from tfdist.planner import (
    Experts,
    LatentAttention,
    Quantity,
    Training,
    Transformer,
    forward_flops,
    training_flops,
)

SMALL = Transformer(layers=2, hidden=8, heads=2, vocabulary=32)
GROUPED = Transformer(3, 64, 8, 100, kv_heads=2, mlp=96, gated_mlp=True, window=16, bias="none")
MOE = Transformer(4, 64, 8, 100, experts=Experts(8, 2, mlp=48, shared=1, dense_layers=1))
LATENT = Transformer(3, 64, 4, 100, latent=LatentAttention(32, 24, 16, 8, 12))
RELATIVE = Transformer(3, 64, 4, 100, relative_positions=True)
MODELS = {"small": SMALL, "grouped": GROUPED, "moe": MOE, "latent": LATENT, "relative": RELATIVE}
by_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def parts(quantity):
    """The values of the leaves by name."""
    return {q.name: q.value for _, q in quantity.walk() if not q.parts}


def evaluated(quantity):
    """The value of a formula with its letters put in."""
    formula = re.sub(r"(?<=[\w')]) (?=[\w(])", " * ", quantity.formula).replace("^", "**")
    names = {letter: f"x{number}" for number, letter in enumerate(quantity.values)}
    for letter in sorted(names, key=len, reverse=True):
        formula = re.sub(rf"(?<![\w']){re.escape(letter)}(?![\w'])", names[letter], formula)
    return eval(formula, {}, {names[k]: v for k, v in quantity.values.items()})


def test_every_operation_of_a_small_model_by_hand():
    # 3 sequences of 5 tokens; 15 tokens, and 3 * 5 * 5 scores in each head.
    found = forward_flops(SMALL, batch=3, sequence=5)
    assert parts(found) == {
        "query projection": 2 * (2 * 15 * 8 * 8),
        "key and value projections": 2 * (2 * 15 * 8 * 16),
        "scores": 2 * (2 * 75 * 8),
        "weighted values": 2 * (2 * 75 * 8),
        "output projection": 2 * (2 * 15 * 8 * 8),
        "mlp": 2 * (2 * 15 * 8 * 32 * 2),
        "head": 2 * 15 * 8 * 32,
    }
    assert found.value == sum(parts(found).values()) == 58560


def test_grouped_heads_shrink_the_projections_of_keys_and_values_alone():
    whole = parts(forward_flops(replace(SMALL, kv_heads=2), 3, 5))
    grouped = parts(forward_flops(replace(SMALL, kv_heads=1), 3, 5))
    assert {name for name in whole if whole[name] != grouped[name]} == {"key and value projections"}
    assert 2 * grouped["key and value projections"] == whole["key and value projections"]


@pytest.mark.parametrize("window", [0, 1, 3, 7, 8, 20])
@pytest.mark.parametrize("causal", [False, True])
def test_a_window_and_a_mask_leave_these_scores(window, causal):
    model = replace(SMALL, window=window)
    limit = window or 7
    pairs = sum(min(query, limit) if causal else min(7, limit) for query in range(1, 8))
    found = parts(forward_flops(model, 1, 7, causal=causal))
    assert found["scores"] == found["weighted values"] == 2 * 2 * pairs * 8


def test_experts_count_as_often_as_a_token_uses_them():
    found = parts(forward_flops(MOE, 2, 10))
    assert found["mlp"] == 1 * 2 * 20 * 2 * 64 * 256  # of the first layer, which has no experts
    assert found["experts"] == 3 * 2 * 20 * 2 * 64 * (2 * 48 + 48)
    assert found["router"] == 3 * 2 * 20 * 64 * 8
    gate = replace(MOE, experts=replace(MOE.experts, shared_gate=True))
    assert parts(forward_flops(gate, 2, 10))["router"] == 3 * 2 * 20 * 64 * 9


def test_all_experts_of_a_token_are_one_mlp_of_their_width():
    dense = replace(SMALL, mlp=4 * 6)
    moe = replace(SMALL, mlp=6, experts=Experts(4, 4))
    router = 2 * 2 * 15 * 8 * 4
    assert forward_flops(moe, 3, 5).value == forward_flops(dense, 3, 5).value + router


def test_the_two_forms_of_latent_attention_differ_in_what_each_score_costs():
    expanded, absorbed = (
        parts(forward_flops(LATENT, 2, 10, absorbed=flag)) for flag in (False, True)
    )
    pairs = 3 * 2 * 2 * 10 * 10 * 4  # 2 FLOPs in 3 layers and 4 heads
    assert expanded.pop("scores") == pairs * (16 + 8)
    assert expanded.pop("weighted values") == pairs * 12
    assert absorbed.pop("scores") == pairs * (32 + 8)
    assert absorbed.pop("weighted values") == pairs * 32
    assert sum(expanded.values()) == sum(absorbed.values())


def test_relative_positions_are_projected_once_for_all_sequences():
    for batch in (1, 6):
        found = parts(forward_flops(RELATIVE, batch, 10))
        assert found["relative positions"] == 3 * 2 * 10 * 64 * 64
        assert found["relative scores"] == found["scores"]


@by_model
def test_training_is_linear_in_tokens_and_a_step_is_its_tokens(model):
    training = Training(global_batch=8, sequence=32, data=2, micro_batch=2)
    step = training_flops(model, training)
    assert step.value == training_flops(model, training, 8 * 32).value
    assert 1000 * step.value == training_flops(model, training, 1000 * 8 * 32).value
    assert 3 * forward_flops(model, 2, 32).value * 4 - step.value == step_of_constants(model)


def step_of_constants(model):
    """What has no gradient of its inputs, in four micro-batches."""
    return 4 * parts(forward_flops(model, 2, 32)).get("relative positions", 0)


@by_model
def test_full_recomputation_is_one_forward_pass_of_the_body(model):
    training = Training(sequence=32, recomputation="full")
    found = training_flops(model, training)
    forward = forward_flops(model, 1, 32)
    assert found.part("recomputation") == forward.value - forward.part("head") > 0
    plain = training_flops(model, replace(training, recomputation="none"))
    assert plain.part("recomputation") == 0
    assert found.value - plain.value == found.part("recomputation")


@by_model
def test_selective_recomputation_is_attention_without_its_projections(model):
    found = training_flops(model, Training(sequence=32, recomputation="selective"))
    names = ("scores", "relative scores", "weighted values")
    forward = parts(forward_flops(model, 1, 32))
    assert found.part("recomputation") == sum(forward.get(name, 0) for name in names) > 0


@by_model
def test_flash_attention_computes_the_scores_once_more(model):
    plain, flash = (
        training_flops(model, Training(sequence=32, flash_attention=flag)).value
        for flag in (False, True)
    )
    forward = parts(forward_flops(model, 1, 32))
    assert flash - plain == forward["scores"] + forward.get("relative scores", 0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=50)
def test_a_gated_mlp_of_two_thirds_the_width_costs_the_same(heads, layers, width, sequence):
    plain = Transformer(layers, 8 * heads, heads, 50, mlp=3 * width)
    gated = replace(plain, mlp=2 * width, gated_mlp=True)
    assert forward_flops(plain, 2, sequence).value == forward_flops(gated, 2, sequence).value
    wider = replace(gated, mlp=2 * width + 1)
    assert forward_flops(wider, 2, sequence).value > forward_flops(plain, 2, sequence).value


@by_model
@pytest.mark.parametrize("causal", [False, True])
def test_every_formula_yields_its_value(model, causal):
    found = training_flops(model, Training(sequence=33, flash_attention=True), 1e6, causal=causal)
    checked = [q for _, q in found.walk() if q.formula]
    assert len(checked) >= 8
    for quantity in checked:
        assert math.isclose(evaluated(quantity), quantity.value, rel_tol=1e-12), quantity
    assert all(q.parts or q.formula for _, q in found.walk())


def test_a_wrong_formula_is_found():
    right = Quantity("x", 24, "FLOPs", "2 a (b + 1) + c'", {"a": 3, "b": 2, "c'": 6})
    assert evaluated(right) == right.value
    assert evaluated(replace(right, formula="2 a b + c'")) != right.value


def test_numbers_of_numpy_are_numbers():
    training = Training(sequence=32)
    exact = training_flops(SMALL, training, 4096).value
    for tokens in (np.float32(4096), np.float64(4096), np.int32(4096), 4096.0):
        assert training_flops(SMALL, training, tokens).value == exact


def test_large_counts_stay_exact():
    gpt3 = Transformer(96, 12288, 96, 50257, positions=2048)
    found = training_flops(gpt3, Training(sequence=2048), 300e9)
    assert isinstance(found.value, int)
    per_layer = 12 * 12288**2 + 2 * 2048 * 12288 // 2
    expected = 3 * 2 * (96 * (per_layer + 2048 * 12288) + 12288 * 50257) * 300 * 10**9
    assert found.value == expected


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("model", lambda: forward_flops("gpt3", 1, 1)),
        ("batch", lambda: forward_flops(SMALL, 0, 1)),
        ("sequence", lambda: forward_flops(SMALL, 1, 1.5)),
        ("sequence", lambda: forward_flops(SMALL, 1, 10**10)),
        ("causal", lambda: forward_flops(SMALL, 1, 1, causal="half")),
        ("absorbed", lambda: forward_flops(LATENT, 1, 1, absorbed=1)),
        ("absorbed", lambda: forward_flops(SMALL, 1, 1, absorbed=True)),
        ("model", lambda: training_flops(None, Training())),
        ("training", lambda: training_flops(SMALL, None)),
        ("tokens", lambda: training_flops(SMALL, Training(), 0)),
        ("tokens", lambda: training_flops(SMALL, Training(), -1e9)),
        ("tokens", lambda: training_flops(SMALL, Training(), math.nan)),
        ("tokens", lambda: training_flops(SMALL, Training(), math.inf)),
        ("tokens", lambda: training_flops(SMALL, Training(), "1T")),
        ("causal", lambda: training_flops(SMALL, Training(), causal=None)),
    ],
)
def test_wrong_input_names_its_field(field, call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.field == field
