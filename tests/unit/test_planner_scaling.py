"""The compute-optimal models of Chinchilla's tables."""

import csv
import math
from pathlib import Path

import pytest

from tfdist.errors import ConfigError
from tfdist.planner import compute_optimal

TABLE = Path(__file__).parent / "planner_tables/chinchilla_table3_A3.csv"


def rows():
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['approach']}-{row['params']}")
def test_tables_3_and_a3(row):
    flops, parameters = float(row["flops"]), float(row["params"])
    if row["note"]:
        flops *= 10  # a misprint: 6 N D of this row is ten times its FLOPs
    assert flops == pytest.approx(6 * parameters * float(row["tokens"]), rel=0.07)
    found = compute_optimal(flops, approach=int(row["approach"]))
    assert found.parameters.value == pytest.approx(parameters, rel=0.04)
    assert found.tokens.value == pytest.approx(float(row["tokens"]), rel=0.08)


@pytest.mark.parametrize(("approach", "parameters"), [(1, 67e9), (2, 63e9), (3, 40e9)])
def test_the_flops_of_gopher(approach, parameters):
    # Section 3.4 of the paper, for the 5.76e23 FLOPs that Gopher with 280B was trained with.
    found = compute_optimal(5.76e23, approach=approach)
    assert found.parameters.value == pytest.approx(parameters, rel=0.06)


def test_about_20_tokens_a_parameter():
    for flops in (1e20, 1e22, 1e24):
        found = compute_optimal(flops)
        assert found.tokens.value / found.parameters.value == pytest.approx(21.2, abs=0.1)


@pytest.mark.parametrize("approach", [1, 2, 3])
def test_all_flops_are_used(approach):
    found = compute_optimal(3e21, approach=approach)
    assert 6 * found.parameters.value * found.tokens.value == pytest.approx(3e21)
    assert "2203.15556" in found.parameters.source


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("flops", lambda: compute_optimal(0)),
        ("flops", lambda: compute_optimal(1e40)),
        ("flops", lambda: compute_optimal(math.nan)),
        ("flops", lambda: compute_optimal("1e20")),
        ("approach", lambda: compute_optimal(1e20, approach=4)),
        ("approach", lambda: compute_optimal(1e20, approach="1")),
    ],
)
def test_wrong_input_names_its_field(field, call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.field == field
