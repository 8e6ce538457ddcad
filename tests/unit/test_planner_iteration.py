"""The time of an iteration from data sheets: published times, formulas, and what must hold."""

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tfdist.errors import ConfigError
from tfdist.planner.compute import training_flops
from tfdist.planner.device_work import Work
from tfdist.planner.devices import find_device
from tfdist.planner.iteration import Achieved, iteration_time
from tfdist.planner.presets import preset
from tfdist.planner.training import Training
from tfdist.planner.transformer import Experts, Transformer

TABLES = Path(__file__).parent / "planner_tables"
A100 = find_device("a100-80g")
# Micro-batch and stages on each device, from examples/sc21/run_table_1.sh of NVIDIA/Megatron-LM.
MICRO_BATCH = {"1.7": 16, "3.6": 16, "7.5": 16, "18.4": 8, "39.1": 4, "76.1": 2, "145.6": 2}
INTERLEAVED = {"76.1": 3, "145.6": 2, "310.1": 2, "529.6": 3}


def rows(name):
    with (TABLES / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def published():
    """Each published iteration: its name, model, training and seconds."""
    for row in rows("megatron2021_table1.csv"):
        name = row["params_B"]
        layers, hidden, batch, gpus = (int(row[k]) for k in ("layers", "hidden", "batch", "gpus"))
        tensor, pipeline = int(row["tp"]), int(row["pp"])
        model = Transformer(layers, hidden, int(row["heads"]), 51200, positions=2048)
        training = Training(
            *(batch, 2048, MICRO_BATCH.get(name, 1), tensor, pipeline, gpus // tensor // pipeline),
            interleaved=INTERLEAVED.get(name, 1),
            recomputation="full",
        )
        flops = narayanan(batch, layers, hidden)
        yield (
            f"Megatron {name}B",
            model,
            training,
            flops / (float(row["tflops_per_gpu"]) * 1e12 * gpus),
        )
    for row in rows("korthikanti2022_table5.csv"):
        shape = (int(row[k]) for k in ("layers", "hidden", "heads"))
        model = Transformer(*shape, 51200, positions=2048)
        full = Training(
            *(int(row["global_batch"]), 2048, int(row["micro_batch"]), 8, int(row["pipeline"])),
            interleaved=int(row["interleaved"]),
            recomputation="full",
        )
        selective = replace(full, recomputation="selective", sequence_parallel=True)
        yield f"Korthikanti {row['model']} full", model, full, float(row["full_secs"])
        yield (
            f"Korthikanti {row['model']} selective",
            model,
            selective,
            float(row["selective_secs"]),
        )


def narayanan(batch, layers, hidden, tokens=2048, vocabulary=51200):
    """Formula 3 of arXiv 2104.04473: FLOPs of an iteration with full recomputation."""
    rest = 1 + tokens / (6 * hidden) + vocabulary / (16 * layers * hidden)
    return 96 * batch * tokens * layers * hidden**2 * rest


PUBLISHED = {name: values for name, *values in published()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_time_is_met_without_a_calibration(name):
    model, training, secs = PUBLISHED[name]
    found = iteration_time(model, training, A100)
    assert found.value == pytest.approx(secs, rel=0.14)
    assert found.interval[0] < secs < found.interval[1]


def test_the_mean_error_of_the_published_times():
    errors = [abs(iteration_time(m, t, A100).value / secs - 1) for m, t, secs in PUBLISHED.values()]
    assert len(errors) == 18
    assert sum(errors) / len(errors) < 0.045


def test_a_peak_without_an_efficiency_would_miss_them():
    ideal = Achieved(1.0, 1e-6, 1e3, 1e-9, 1e-6, 1e-9, *[1e3] * 6)
    errors = [
        abs(iteration_time(m, t, A100, ideal).value / secs - 1) for m, t, secs in PUBLISHED.values()
    ]
    assert min(errors) > 0.3


@pytest.mark.parametrize("name", [n for n in PUBLISHED if "Megatron" in n])
def test_the_flops_are_those_of_the_published_formula(name):
    model, training, _ = PUBLISHED[name]
    work = Work.of(model, training, A100)
    layers = work.flops * work.layers * training.pipeline * training.tensor
    found = (layers + work.logit_flops * training.tensor) * training.micro_batches * training.data
    assert found == pytest.approx(
        narayanan(training.global_batch, model.layers, model.hidden), rel=1e-3
    )


SMALL = Transformer(24, 2048, 16, 51200)
EIGHT = Training(64, 1024, 4, tensor=2, pipeline=2, data=2, recomputation="full")


def test_every_part_follows_from_its_formula_and_values():
    found = iteration_time(SMALL, EIGHT, A100)
    assert [part.name for part in found.parts] == [
        *("compute", "tensor communication", "pipeline bubble", "pipeline communication"),
        *("data-parallel all-reduce", "optimizer"),
    ]
    assert found.value == pytest.approx(sum(part.value for part in found.parts))
    for part in found.parts:
        code = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", part.formula).replace("^", "**")
        assert eval(code, dict(part.values)) == pytest.approx(part.value), part


def test_the_example_of_the_docs():
    model = Transformer(24, 2048, 16, 51200, positions=1024)
    training = Training(32, 1024, 4, tensor=2, pipeline=2, data=2, recomputation="full")
    found = iteration_time(model, training, A100)
    milliseconds = [round(1e3 * part.value, 1) for part in found.parts]
    assert milliseconds == [320.9, 34.5, 76.6, 0.6, 4.0, 7.5]
    assert round(1e3 * found.value) == 444
    values = {key: 1e3 * value for part in found.parts for key, value in part.values.items()}
    shown = [round(values[letter], 2) for letter in "xycz"]
    assert shown == [5.58, 2.8, 0.72, 12.22]


def test_the_bubble_is_a_share_of_the_ideal_time():
    """(p - 1) / (v m) of the time of the layers: arXiv 2104.04473, section 2.2."""
    one = Training(64, 2048, 1, pipeline=4, recomputation="full")
    for training in (one, replace(one, interleaved=3), replace(one, micro_batch=4)):
        found = iteration_time(SMALL, training, A100)
        (compute, bubble, *_) = found.parts
        work = Work.of(SMALL, training, A100)
        head = compute.values["z"] * work.micro_batches
        share = (training.pipeline - 1) / (training.interleaved * training.micro_batches)
        assert bubble.value / (compute.value - head) == pytest.approx(share)


def test_without_division_nothing_is_sent():
    found = iteration_time(SMALL, Training(8, 1024, 1), A100)
    assert [part.name for part in found.parts] == ["compute", "optimizer"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"tensor": 16}, "tensor communication"),
        ({"data": 16}, "data-parallel all-reduce"),
        ({"pipeline": 16}, "pipeline communication"),
    ],
)
def test_a_slower_network_costs_what_leaves_a_machine_and_nothing_else(change, part):
    training = Training(64, 1024, 1, **change)
    slow = replace(A100, network_bandwidth=A100.network_bandwidth / 4)
    before, after = (iteration_time(SMALL, training, each) for each in (A100, slow))
    assert after.part(part) > 1.5 * before.part(part)
    assert after.value - before.value == pytest.approx(after.part(part) - before.part(part))
    inside = Training(64, 1024, 1, **dict.fromkeys(change, 8))
    assert iteration_time(SMALL, inside, slow).value == iteration_time(SMALL, inside, A100).value


def test_a_small_model_waits_for_its_launches():
    tiny = iteration_time(Transformer(24, 64, 1, 1), Training(1, 64, 1), A100)
    assert tiny.part("compute") == pytest.approx(24 * 3 * Achieved().launch_secs, rel=0.01)


def test_less_recomputation_takes_less_time():
    each = [replace(EIGHT, recomputation=kind) for kind in ("none", "selective", "full")]
    none, selective, full = (iteration_time(SMALL, training, A100).value for training in each)
    assert none < selective < full


def test_experts_cost_what_a_token_uses():
    mixed = Transformer(24, 2048, 16, 51200, experts=Experts(8, 2))
    dense = Transformer(24, 2048, 16, 51200, mlp=2 * 8192)
    one, other = (Work.of(model, EIGHT, A100).flops for model in (mixed, dense))
    assert one == pytest.approx(other, rel=1e-3)
    assert Work.of(mixed, EIGHT, A100).update_bytes > 2 * Work.of(dense, EIGHT, A100).update_bytes


@pytest.mark.parametrize(
    ("training", "field"), [(Training(pipeline=25), "pipeline"), (Training(tensor=3), "tensor")]
)
def test_an_impossible_division_is_an_error(training, field):
    with pytest.raises(ConfigError, match="must") as error:
        iteration_time(SMALL, training, A100)
    assert error.value.field == field


@pytest.mark.parametrize("value", [0, -1, math.nan, "fast"])
def test_a_constant_must_be_positive(value):
    with pytest.raises(ConfigError, match=r"achieved\.matrix: .*must be positive"):
        Achieved(matrix=value)


def test_zero_2_and_3_exchange_for_each_micro_batch():
    model, device = preset("gpt3-6.7b"), find_device("a100-80g")
    whole = Training(global_batch=64, sequence=1024, tensor=4, pipeline=2, data=8, micro_batch=1)
    secs = [
        iteration_time(model, replace(whole, zero=stage), device).part("data-parallel all-reduce")
        for stage in range(4)
    ]
    assert whole.micro_batches == 8
    assert secs == pytest.approx([secs[0], secs[0], 4.5 * secs[0], 12 * secs[0]])


@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
@pytest.mark.parametrize("name", ["gpt3-6.7b", "llama3.1-8b", "mixtral-8x7b", "palm-8b"])
def test_the_work_of_the_devices_is_the_flops_of_the_training(name, recomputation):
    model = preset(name)
    training = Training(global_batch=8, sequence=1024, tensor=2, recomputation=recomputation)
    work = Work.of(model, training, find_device("a100-80g"))
    layers = work.flops * work.layers * training.tensor * work.micro_batches
    done = layers + work.logit_flops * training.tensor * work.micro_batches
    assert done == pytest.approx(training_flops(model, training).value, rel=2e-3)
