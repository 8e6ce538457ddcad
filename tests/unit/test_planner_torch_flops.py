"""tfdist's formulas yield exactly the FLOPs that PyTorch counts while it executes the products.

tests/planner_flops_peer.py recorded the table, on PyTorch's meta device.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tfdist.planner import (
    Experts,
    LatentAttention,
    Training,
    Transformer,
    forward_flops,
    generation_flops,
    training_flops,
)

TABLE = json.loads((Path(__file__).parent / "planner_tables/torch_flops.json").read_text("utf-8"))
by_row = pytest.mark.parametrize("row", TABLE["rows"], ids=lambda row: row["name"])


def model_of(row):
    fields = dict(row["model"])
    for name, kind in (("experts", Experts), ("latent", LatentAttention)):
        if name in fields:
            fields[name] = kind(**fields[name])
    return Transformer(**fields)


def by_part(quantity):
    """The values of the leaves by name; decode and prefill together."""
    found = Counter()
    for _, part in quantity.walk():
        if not part.parts:
            found[part.name] += part.value
    return dict(found)


def training_of(row, recomputation):
    batch = row["batch"]
    training = Training(batch, row["sequence"], micro_batch=batch, recomputation=recomputation)
    return training_flops(model_of(row), training)


def test_the_table_is_pytorchs():
    assert TABLE["tool"] == "torch.utils.flop_counter.FlopCounterMode"
    assert TABLE["version"].startswith("2.")
    assert len(TABLE["rows"]) >= 12


@by_row
def test_the_forward_pass_by_operation(row):
    found = forward_flops(model_of(row), row["batch"], row["sequence"])
    assert by_part(found) == row["forward"]


@by_row
@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
def test_training(row, recomputation):
    assert training_of(row, recomputation).value == row["training"][recomputation]


@pytest.mark.parametrize(
    "row", [row for row in TABLE["rows"] if "generation" in row], ids=lambda row: row["name"]
)
def test_generation_token_by_token(row):
    found = generation_flops(model_of(row), row["batch"], 1, row["generated"])
    assert by_part(found) == row["generation"]


def test_flash_attention():
    row = TABLE["flash_attention"]
    pairs = row["batch"] * row["heads"] * row["sequence"] ** 2
    assert row["forward"] == 2 * 2 * pairs * row["head_dim"]  # scores and weighted values
    heads = row["heads"]
    model = Transformer(1, heads * row["head_dim"], heads, 1, head_dim=row["head_dim"])
    plain = Training(row["batch"], row["sequence"])
    again = training_flops(model, replace(plain, flash_attention=True)).value
    again -= training_flops(model, plain).value
    assert row["backward"] == 2 * row["forward"] + again
    assert again == row["forward"] / 2


@by_row
def test_another_shape_has_other_counts(row):
    wider = replace(model_of(row), vocabulary=row["model"]["vocabulary"] + 1)
    found = by_part(forward_flops(wider, row["batch"], row["sequence"]))
    assert {name for name in found if found[name] != row["forward"][name]} == {"head"}
