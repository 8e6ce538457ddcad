"""The short formulas give the published figures, and are as far off as stated."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from tfdist.errors import ConfigError
from tfdist.planner import (
    APPROXIMATIONS,
    Experts,
    Training,
    Transformer,
    approximate_flops,
    approximation_error,
    parameter_flops,
    training_flops,
)

TABLES = Path(__file__).parent / "planner_tables"
GPT2 = Transformer(12, 768, 12, 50257, positions=1024)
GPT3 = Transformer(96, 12288, 96, 50257, positions=2048)


def rows(name):
    with open(TABLES / name, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", rows("gpt3_table_D1.csv"), ids=lambda row: row["model"])
def test_table_d1_of_gpt3(row):
    # The table prints 1 FLOP of the forward pass for T5, but its totals need 2, as for the others.
    active = float(row["params_M"]) * 1e6 * float(row["active_fraction"])
    found = parameter_flops(active, float(row["tokens_B"]) * 1e9)
    assert found.value == pytest.approx(float(row["train_flops"]), rel=0.0035)
    assert found.value / 8.64e19 == pytest.approx(float(row["train_pf_days"]), rel=0.0036)
    assert float(row["mult_bwd"]) == found.value / found.part("forward")


def test_full_recomputation_makes_6_n_d_8_n_d():
    assert parameter_flops(7e9, 2e12).value == 6 * 7 * 2 * 10**21
    assert parameter_flops(7e9, 2e12, recomputation="full").value == 8 * 7 * 2 * 10**21
    assert parameter_flops(7e9, 2e12, recomputation="selective").value == 6 * 7 * 2 * 10**21


@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
def test_narayanan_is_exact_for_the_shape_of_gpt(recomputation):
    training = Training(global_batch=4, recomputation=recomputation)
    assert approximation_error("Narayanan", GPT3, training).value == 0
    b, s, n, h, v = 4, 2048, 96, 12288, 50257
    if recomputation == "full":
        published = 96 * b * s * n * h**2 * (1 + s / (6 * h) + v / (16 * n * h))  # equation 3
        assert approximate_flops("Narayanan", GPT3, training).value == pytest.approx(published)
    # The control: a gated MLP has another shape.
    assert approximation_error("Narayanan", replace(GPT3, gated_mlp=True), training).value < -0.2


def test_palm_and_chinchilla_as_printed():
    training = Training(sequence=2048)
    per_token = 6 * 174_604_259_328 + 12 * 96 * 12288 * 2048
    assert approximate_flops("PaLM", GPT3, training, 1000).value == 1000 * per_token
    s, h, v = 2048, 12288, 50257
    attention = 2 * 3 * s * h * h + 4 * s * s * h + 3 * 96 * s * s + 2 * s * h * h
    forward = 2 * s * v * h + 96 * (attention + 2 * s * 2 * h * 4 * h) + 2 * s * h * v
    assert approximate_flops("Chinchilla", GPT3, training).value == 3 * forward


@pytest.mark.parametrize("sequence", [1024, 32768])
@pytest.mark.parametrize("model", [GPT2, GPT3], ids=["gpt2", "gpt3"])
def test_what_each_formula_counts_too_much_and_too_little(model, sequence):
    layers, h, v = model.layers, model.hidden, model.vocabulary
    exact = 6 * (12 * layers * h**2 + v * h) + 12 * layers * h * sequence
    vectors = 13 * layers * h + 2 * h + model.positions * h  # biases, norms and positions
    attention, softmax = 12 * layers * h * sequence, 9 * layers * model.heads * sequence
    wrong = {
        "6ND": 6 * vectors - attention,
        "PaLM": 6 * vectors,
        "Narayanan": 0,
        "Chinchilla": 6 * v * h + softmax,
    }
    for formula, difference in wrong.items():
        found = approximation_error(formula, model, Training(sequence=sequence))
        assert found.value == pytest.approx(difference / exact, abs=1e-12)


@pytest.mark.parametrize("formula", APPROXIMATIONS)
@pytest.mark.parametrize("recomputation", ["none", "full"])
def test_parts_are_those_of_the_exact_count(formula, recomputation):
    training = Training(recomputation=recomputation)
    short = approximate_flops(formula, GPT3, training, 1e9)
    exact = training_flops(GPT3, training, 1e9)
    assert [part.name for part in short.parts] == [part.name for part in exact.parts]
    assert short.part("backward") == 2 * short.part("forward")
    if recomputation == "full":
        once = next(part for part in short.parts if part.name == "forward")
        body = once.value - once.part("embedding") - once.part("head")
        assert short.part("recomputation") == body


def test_of_experts_6_n_d_counts_those_that_a_token_uses():
    moe = replace(GPT3, experts=Experts(16, 2))
    dense = replace(GPT3, experts=Experts(2, 2))
    ratio = approximate_flops("6ND", moe, Training()).value
    ratio /= approximate_flops("6ND", dense, Training()).value
    assert 1 < ratio < 1.001  # the router


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("formula", lambda: approximate_flops("7ND", GPT3, Training())),
        ("formula", lambda: approximate_flops(6, GPT3, Training())),
        ("model", lambda: approximate_flops("PaLM", None, Training())),
        ("training", lambda: approximate_flops("6ND", GPT3, None)),
        ("tokens", lambda: approximate_flops("6ND", GPT3, Training(), 0)),
        ("tokens", lambda: approximate_flops("PaLM", GPT3, Training(), float("nan"))),
        ("parameters", lambda: parameter_flops(0, 1)),
        ("parameters", lambda: parameter_flops("7B", 1)),
        ("tokens", lambda: parameter_flops(1, -1)),
        ("recomputation", lambda: parameter_flops(1, 1, recomputation="some")),
    ],
)
def test_wrong_input_names_its_field(field, call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.field == field
