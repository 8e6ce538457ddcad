"""Cautions: each where it applies, and nowhere else."""

import csv
import math
import re
from pathlib import Path

import pytest

from tfdist.errors import ConfigError
from tfdist.planner import (
    PRESETS,
    Quantity,
    Training,
    Transformer,
    cautions,
    cautions_of_figures,
    count_parameters,
    preset,
)

TABLES = Path(__file__).parent / "planner_tables"
# Nothing to say: the vocabulary is a multiple of 128 x 8, and 12 L h^2 is right within 5 %.
PLAIN = Transformer(96, 12288, 96, 32768)


def rows(name):
    with open(TABLES / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def in_bytes(value):
    return Quantity("memory", value, "bytes")


def test_a_plain_model_has_no_cautions():
    assert cautions(PLAIN) == []
    assert (
        cautions(PLAIN, Training(tensor=8), states=in_bytes(9e8), activations=in_bytes(8e8)) == []
    )


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            preset("gemma-7b"),
            ["heads x head_dim = 16 x 256 = 4096 is not the width 3072", "rule of thumb"],
        ),
        (
            preset("deepseek-v3"),
            ["a token uses 37,552,282,624 of the 671,026,404,352", "rule of thumb"],
        ),
        (
            Transformer(12, 1024, 16, 128000, tied=False),
            ["the embedding and the output head are separate and have 63% of the", "rule of thumb"],
        ),
        (
            Transformer(96, 12288, 96, 50257),
            ["the vocabulary of 50257 is no multiple of 64: .* padded to 50304, .* 577,536 more"],
        ),
        (
            Transformer(96, 12288, 96, 50304),
            ["a vocabulary of 50304 is that of GPT-2, 50257, with padding"],
        ),
        (
            Transformer(96, 12288, 96, 51200),
            ["a vocabulary of 51200 is that of GPT-2, 50257, with padding"],
        ),
    ],
)
def test_each_caution_where_it_applies(model, expected):
    found = cautions(model)
    assert len(found) == len(expected)
    for text, pattern in zip(found, expected, strict=True):
        assert re.search(pattern, text)


def test_a_head_that_shares_the_embedding_is_not_separate():
    model = Transformer(12, 1024, 16, 128000, tied=True)
    assert [text for text in cautions(model) if "separate" in text] == []


def test_tensor_parallelism_wants_a_multiple_for_each_device():
    model = Transformer(96, 12288, 96, 50304 + 128)
    assert not any("Megatron" in text for text in cautions(model))
    (text,) = [t for t in cautions(model, Training(tensor=8)) if "Megatron" in t]
    assert "no multiple of 128 x 8: Megatron-LM pads it to 51200, which has 9,437,184 more" in text


@pytest.mark.parametrize(
    ("name", "share"),
    [("gpt2-124m", "32% less"), ("llama3.2-1b", "35% less"), ("palm-8b", "25% less")],
)
def test_the_rule_of_thumb_says_by_how_much_it_is_off(name, share):
    (text,) = [text for text in cautions(preset(name)) if "rule of thumb" in text]
    assert share in text
    assert f"{count_parameters(preset(name)).value:,}" in text


def test_the_rule_of_thumb_is_right_for_gpt3():
    assert not any("rule of thumb" in text for text in cautions(preset("gpt3-175b")))


def test_large_activations_and_units():
    small, large = in_bytes(32e9), in_bytes(85.9e9)
    found = cautions(PLAIN, states=small, activations=large)
    assert ["activations (85.9 GB) are larger" in found[0], "85.9 GB are 80 GiB" in found[1]] == [
        True,
        True,
    ]
    (unit,) = cautions(PLAIN, states=large, activations=small)
    assert "85.9 GB are 80 GiB" in unit


def test_cautions_of_all_presets_are_sentences_of_one_line():
    for name in PRESETS:
        for text in cautions(preset(name), Training(tensor=8)):
            assert "\n" not in text
            assert len(text) > 40


def test_the_misprints_of_gpt3_are_found_and_nothing_else():
    found = {
        row["model"]
        for row in rows("gpt3_table_2_1.csv")
        if cautions_of_figures(
            hidden=int(row["d_model"]), heads=int(row["n_heads"]), head_dim=int(row["d_head"])
        )
    }
    assert found == {"GPT-3 XL", "GPT-3 13B"}


def test_the_misprint_of_chinchilla_is_found_and_nothing_else():
    table = rows("chinchilla_table3_A3.csv")
    found = [
        (row["approach"], float(row["params"]))
        for row in table
        if cautions_of_figures(
            parameters=float(row["params"]), tokens=float(row["tokens"]), flops=float(row["flops"])
        )
    ]
    assert len(table) == 27
    assert found == [("3", 175e9)]


def test_the_compute_of_table_d1_has_no_misprint():
    for row in rows("gpt3_table_D1.csv"):
        figures = {
            "parameters": float(row["params_M"]) * 1e6,
            "tokens": float(row["tokens_B"]) * 1e9,
            "flops": float(row["train_flops"]),
        }
        assert cautions_of_figures(**figures) == [], row["model"]
        (text,) = cautions_of_figures(**figures | {"flops": figures["flops"] * 10}) or [""]
        # T5 is an encoder and a decoder: its 3 FLOPs are half of the rule, so no power of ten.
        assert ("by a factor of 10^1" in text) == (not row["model"].startswith("T5"))


def test_figures_that_are_left_out_are_not_compared():
    assert cautions_of_figures() == []
    assert cautions_of_figures(hidden=5140, heads=40) == []
    assert cautions_of_figures(parameters=175e9, flops=1.26e24) == []


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "12", True])
@pytest.mark.parametrize("field", ["hidden", "heads", "head_dim", "parameters", "tokens", "flops"])
def test_a_wrong_figure_is_an_error(field, value):
    with pytest.raises(ConfigError) as caught:
        cautions_of_figures(**{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("model", {"model": "gpt3-175b"}),
        ("training", {"training": 8}),
        ("states", {"states": 3e9}),
        ("activations", {"activations": Quantity("time", 3, "seconds")}),
    ],
)
def test_a_wrong_argument_is_an_error(field, arguments):
    with pytest.raises(ConfigError) as caught:
        cautions(**{"model": PLAIN} | arguments)
    assert caught.value.field == field
