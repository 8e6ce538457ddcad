"""The cheapest cluster: what the search tries, and what it leaves out."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from tfdist.errors import ConfigError
from tfdist.planner import (
    Offer,
    Training,
    Transformer,
    cheapest_clusters,
    count_parameters,
    fastest_division,
    find_device,
    iteration_time,
    memory_left,
    preset,
)
from tfdist.planner.search import _divisions, _may_fit, pareto

A100, V100 = find_device("a100-80g"), find_device("v100-32g")
SMALL = Transformer(layers=6, hidden=256, heads=8, vocabulary=1000)
BATCH = Training(global_batch=64, sequence=128)


def test_the_division_uses_all_devices_and_fits():
    model = preset("gpt3-175b")
    division = fastest_division(model, Training(global_batch=1536, sequence=2048), A100, 1024)
    assert division.devices == 1024
    assert (division.global_batch, division.sequence) == (1536, 2048)
    assert memory_left(model, division, A100).value >= 0


def test_no_other_division_is_faster():
    found = fastest_division(SMALL, BATCH, A100, 4)
    best = iteration_time(SMALL, found, A100).value
    for tensor, pipeline in ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2)):
        data = 4 // (tensor * pipeline)
        other = replace(BATCH, tensor=tensor, pipeline=pipeline, data=data, micro_batch=1)
        assert best <= iteration_time(SMALL, other, A100).value


@pytest.mark.parametrize(
    ("name", "device", "devices", "batch"),
    [
        ("gpt3-13b", "a100-80g", 192, 1536),
        ("llama3.1-405b", "h100-80g", 16384, 2048),  # 126 layers
        ("deepseek-v3", "h100-80g", 2048, 15360),  # 61 layers
        ("palm-540b", "tpu-v4", 6144, 2048),
    ],
)
def test_published_trainings_have_a_division(name, device, devices, batch):
    training = Training(global_batch=batch, sequence=2048, flash_attention=True)
    found = fastest_division(preset(name), training, find_device(device), devices)
    assert found.devices == devices


def test_what_is_fixed_is_kept():
    fixed = {"tensor": 2, "zero": 3, "micro_batch": 4, "sequence_parallel": False}
    found = fastest_division(SMALL, BATCH, A100, 8, fixed=fixed)
    assert {name: getattr(found, name) for name in fixed} == fixed
    with pytest.raises(ConfigError, match="tensor: got 3; must divide heads"):
        fastest_division(SMALL, BATCH, A100, 9, fixed={"tensor": 3})


def test_what_is_fixed_may_be_useless():
    """The user may know why; a search that leaves it out would find nothing."""
    assert fastest_division(SMALL, BATCH, A100, 1, fixed={"zero": 1}).zero == 1
    flash = replace(BATCH, flash_attention=True)
    fixed = {"recomputation": "selective"}
    assert fastest_division(SMALL, flash, A100, 1, fixed=fixed).recomputation == "selective"


@pytest.mark.parametrize(
    ("fixed", "field"),
    [
        ({"tensor": 0}, "tensor"),
        ({"micro_batch": 1.5}, "micro_batch"),
        ({"zero": 7}, "zero"),
        ({"recomputation": "some"}, "recomputation"),
        ({"sequence": 9}, "fixed"),
    ],
)
def test_a_wrong_value_that_is_fixed_is_named(fixed, field):
    with pytest.raises(ConfigError, match=f"^{field}: got "):
        fastest_division(SMALL, BATCH, A100, 8, fixed=fixed)


@pytest.mark.parametrize("fixed", [{}, {"zero": 2}, {"expert": 8}], ids=str)
@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v2-lite", "gpt3-13b"])
def test_the_fast_filter_leaves_out_nothing_that_fits(name, fixed):
    model = preset(name)
    if "expert" in fixed and model.experts is None:
        fixed = {"recomputation": "full"}
    size, rng = count_parameters(model).value, random.Random(0)
    training = Training(global_batch=256, sequence=4096, flash_attention=True, dropout=False)
    every = list(_divisions(model, training, V100, 16, fixed))
    left_out = [each for each in every if not _may_fit(model, size, each, V100)]
    assert left_out
    for each in rng.sample(left_out, min(20, len(left_out))):
        assert memory_left(model, each, V100).value < 0


def test_a_model_that_fits_nowhere_has_no_division():
    assert fastest_division(preset("gpt3-175b"), Training(global_batch=8), A100, 8) is None
    assert cheapest_clusters(preset("gpt3-175b"), Training(), 1e9, most_devices=4) == []


def test_no_cluster_is_both_slower_and_dearer_than_another():
    offers = cheapest_clusters(SMALL, BATCH, 1e9, most_devices=16)
    assert len(offers) > 1
    for one, other in pairwise(offers):
        assert one.usd <= other.usd
        assert one.seconds > other.seconds


def test_the_front_is_that_of_all_offers():
    def offer(usd, seconds):
        return Offer(A100, BATCH, 1.0, seconds, usd)

    costs = [(3, 1), (1, 9), (2, 9), (2, 4), (5, 0.5), (4, 1), (1, 10)]
    front = pareto(offer(*each) for each in costs)
    assert [(each.usd, each.seconds) for each in front] == [(1, 9), (2, 4), (3, 1), (5, 0.5)]


def test_a_deadline_and_names_restrict_the_search():
    everything = cheapest_clusters(SMALL, BATCH, 1e9, most_devices=16)
    deadline = everything[0].seconds - 1
    fast = cheapest_clusters(SMALL, BATCH, 1e9, most_devices=16, deadline_secs=deadline)
    assert fast == everything[1:]
    one_kind = cheapest_clusters(SMALL, BATCH, 1e9, most_devices=16, names=["v100-32g"])
    assert {offer.device.name for offer in one_kind} == {"v100-32g"}


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tokens": 0}, "tokens"),
        ({"tokens": float("nan")}, "tokens"),
        ({"deadline_secs": -1}, "deadline_secs"),
        ({"most_devices": 0}, "most_devices"),
        ({"names": ["abacus"]}, "device"),
    ],
)
def test_a_wrong_argument_is_named(options, field):
    with pytest.raises(ConfigError, match=f"^{field}: got "):
        cheapest_clusters(SMALL, BATCH, **{"tokens": 1e9, **options})
