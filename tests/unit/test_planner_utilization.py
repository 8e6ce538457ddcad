"""MFU, HFU, time and cost of published trainings."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tfdist.errors import ConfigError
from tfdist.planner import (
    Experts,
    LatentAttention,
    Quantity,
    Training,
    Transformer,
    count_active_parameters,
    count_parameters,
    find_device,
    hfu,
    mfu,
    parameter_flops,
    training_cost,
    training_flops,
    training_time,
)

TABLES = Path(__file__).parent / "planner_tables"
DAY = 86400
A100, H100 = find_device("a100-80g"), find_device("h100-80g")
ROTARY = {"bias": "none", "norm": "rms", "tied": False, "gated_mlp": True}
GPT3 = Transformer(96, 12288, 96, 51200, positions=2048)
LLAMA_65B = Transformer(80, 8192, 64, 32000, mlp=22016, **ROTARY)
LLAMA_405B = Transformer(126, 16384, 128, 128256, kv_heads=8, mlp=53248, **ROTARY)
PALM = Transformer(
    **{"layers": 118, "hidden": 18432, "heads": 48, "vocabulary": 256_000, "head_dim": 256},
    **{"kv_heads": 1, "mlp": 73728, "gated_mlp": True, "bias": "none"},
    **{"norm": "layer without bias", "norms_per_layer": 1, "parallel_block": True},
)
DEEPSEEK_V3 = Transformer(
    **{"layers": 61, "hidden": 7168, "heads": 128, "vocabulary": 129_280, "mlp": 18432},
    experts=Experts(256, 8, mlp=2048, shared=1, dense_layers=3),
    latent=LatentAttention(512, 1536, 128, 64, 128),
    **ROTARY,
)
FLOPS = training_flops(GPT3, Training(recomputation="full"))


def rows(name):
    with open(TABLES / name, newline="") as file:
        return list(csv.DictReader(file))


CLAIMS = {row["model"]: row for row in rows("training_time_claims.csv")}


def test_palm_reaches_its_published_mfu():
    claim = CLAIMS["PaLM-540B"]
    training = Training(global_batch=2048, sequence=2048, tensor=12, data=512)
    flops = training_flops(PALM, training, float(claim["tok_per_s_total"]))
    found = mfu(flops, 1.0, find_device("tpu-v4"), training.devices)
    assert training.devices == int(claim["devices"])
    assert round(100 * found.value, 1) == float(claim["published_value"]) == 46.2
    # The control: half the scores would be another MFU.
    half = training_flops(PALM, training, float(claim["tok_per_s_total"]), causal=True)
    assert round(100 * mfu(half, 1.0, find_device("tpu-v4"), 6144).value, 1) == 46.0


@pytest.mark.parametrize("name", ["GPT-3 175B (est.)", "GPT 1T (est.)"])
def test_the_days_that_narayanan_estimates(name):
    claim = CLAIMS[name]
    flops = parameter_flops(
        float(claim["params_B"]) * 1e9, float(claim["tokens_B"]) * 1e9, recomputation="full"
    )
    reached = float(claim["tflops_per_dev"]) / float(claim["peak_tflops"])
    found = training_time(flops, A100, int(claim["devices"]), hfu=reached)
    assert found.value / DAY == pytest.approx(float(claim["published_value"]), rel=0.005)


def test_narayanans_estimate_leaves_out_attention():
    training = Training(sequence=2048, recomputation="full")
    exact = training_time(training_flops(GPT3, training, 300e9), A100, 1024, hfu=140 / 312)
    per_token = 96 * 96 * 12288**2 * (1 + 2048 / (6 * 12288) + 51200 / (16 * 96 * 12288))
    assert exact.value == pytest.approx(per_token * 300e9 / (1024 * 140e12))
    assert exact.value / DAY == pytest.approx(34.7, abs=0.05)


def test_llama_65b_takes_21_days():
    claim = CLAIMS["LLaMA-65B"]
    rate = float(claim["tok_per_s_total"])
    training, devices = Training(sequence=2048), int(claim["devices"])
    reached = mfu(training_flops(LLAMA_65B, training, rate), 1.0, A100, devices)
    assert 0.45 < reached.value < 0.55
    flops = training_flops(LLAMA_65B, training, float(claim["tokens_B"]) * 1e9)
    found = training_time(flops, A100, devices, mfu=reached.value)
    assert found.value / DAY == pytest.approx(float(claim["published_value"]), rel=0.01)
    unknown = training_time(flops, A100, devices)
    assert unknown.interval[0] < 21 * DAY < unknown.interval[1]


def test_the_hours_of_deepseek_v3_are_plausible():
    claim = CLAIMS["DeepSeek-V3"]
    assert count_parameters(DEEPSEEK_V3).value == pytest.approx(671e9, rel=0.001)
    assert count_active_parameters(DEEPSEEK_V3).value == pytest.approx(37e9, rel=0.02)
    flops = training_flops(DEEPSEEK_V3, Training(sequence=4096), 14.8e12)
    hours = float(claim["published_value"])
    reached = mfu(flops, hours * 3600, find_device("h800-80g"), 1)  # hours of one GPU
    assert 0.302 < reached.value < 0.563
    # A dense model of 671B in these hours would have had to exceed the peak six times.
    with pytest.raises(ConfigError) as caught:
        mfu(parameter_flops(671e9, 14.8e12), hours * 3600, find_device("h800-80g"), 1)
    assert caught.value.field == "seconds"


def test_the_flops_of_llama_405b():
    claim = CLAIMS["Llama-3.1-405B"]
    parameters = count_parameters(LLAMA_405B).value
    published = float(claim["published_value"])
    assert parameters == pytest.approx(405.85e9, rel=1e-4)
    assert parameter_flops(parameters, 15.6e12).value == pytest.approx(published, rel=0.001)
    exact = training_flops(LLAMA_405B, Training(sequence=8192), 15.6e12).value
    assert exact == pytest.approx(1.077 * published, rel=0.001)  # with attention
    # 400 TFLOP/s on 16,384 devices are an MFU of 0.404, and so some 68 days.
    found = training_time(parameter_flops(parameters, 15.6e12), H100, 16384, mfu=400 / 989)
    assert found.value / DAY == pytest.approx(published / (16384 * 400e12) / DAY, rel=0.001)


@pytest.mark.parametrize("row", rows("megatron2021_table1.csv"), ids=lambda row: row["params_B"])
def test_table_1_of_narayanan(row):
    layers, hidden, heads = (int(row[name]) for name in ("layers", "hidden", "heads"))
    model = Transformer(layers, hidden, heads, 51200, positions=2048)
    assert count_parameters(model).value / 1e9 == pytest.approx(float(row["params_B"]), rel=0.03)

    batch, devices = int(row["batch"]), int(row["gpus"])
    aggregate = float(row["aggregate_pflops"]) * 1e15
    per_device = float(row["tflops_per_gpu"]) * 1e12
    assert devices * per_device == pytest.approx(aggregate, rel=0.004)

    # Equation 3 of the paper gives the seconds of a step, and the exact count the rate from them.
    s, h, v = 2048, hidden, 51200
    step = 96 * batch * s * layers * h**2 * (1 + s / (6 * h) + v / (16 * layers * h)) / aggregate
    training = Training(global_batch=batch, sequence=s, recomputation="full")
    flops = training_flops(model, training)
    reached = hfu(flops, step, A100, devices).value
    assert reached * A100.flops == pytest.approx(per_device, rel=0.004)
    assert 100 * reached == pytest.approx(float(row["pct_peak"]), abs=0.6)
    # Without recomputation the same step is a quarter less of the layers.
    assert mfu(flops, step, A100, devices).value == pytest.approx(0.75 * reached, rel=0.05)


def test_time_and_utilization_are_inverse():
    for kind, measure in (("mfu", mfu), ("hfu", hfu)):
        time = training_time(FLOPS, A100, 8, **{kind: 0.4})
        assert measure(FLOPS, time.value, A100, 8).value == pytest.approx(0.4, rel=1e-12)
        assert time.interval is None
    assert hfu(FLOPS, 1.0, A100, 64).value > mfu(FLOPS, 1.0, A100, 64).value


def test_an_unknown_mfu_gives_an_interval_and_says_why():
    found = training_time(FLOPS, A100, 8)
    least, most = found.interval
    assert least < found.value < most
    assert least == training_time(FLOPS, A100, 8, mfu=0.563).value
    assert most == training_time(FLOPS, A100, 8, mfu=0.302).value
    assert "arXiv" in found.source
    assert training_time(FLOPS, A100, 8, mfu=0.41).source == ""


def test_twice_the_devices_take_half_the_time_at_the_same_cost():
    one, two = (training_time(FLOPS, A100, n) for n in (8, 16))
    assert one.value == 2 * two.value
    assert training_cost(one, A100, 8).value == training_cost(two, A100, 16).value


def test_fp32_has_another_peak():
    fast, slow = (training_time(FLOPS, A100, 8, precision=p) for p in ("mixed", "fp32"))
    assert slow.value == 2 * fast.value  # 312 and 156 TFLOP/s


def test_the_cost_is_hours_times_price():
    hour = Quantity("time", 3600.0, "seconds", interval=(1800.0, 7200.0))
    found = training_cost(hour, A100, 16)
    assert found.value == pytest.approx(16 * 5.12)
    assert found.interval == pytest.approx((8 * 5.12, 32 * 5.12))
    assert found.unit == "USD"
    assert "2024" in found.source
    assert training_cost(replace(hour, interval=None), A100, 16).interval is None


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("flops", lambda: mfu(1e15, 1.0, A100, 8)),
        ("flops", lambda: mfu(count_parameters(GPT3), 1.0, A100, 8)),
        ("flops", lambda: hfu(None, 1.0, A100, 8)),
        ("flops", lambda: training_time(count_parameters(GPT3), A100, 8)),
        ("seconds", lambda: mfu(FLOPS, 0, A100, 8)),
        ("seconds", lambda: mfu(FLOPS, math.nan, A100, 8)),
        ("seconds", lambda: hfu(FLOPS, 1e-9, A100, 8)),
        ("device", lambda: mfu(FLOPS, 1.0, "a100-80g", 8)),
        ("devices", lambda: mfu(FLOPS, 1.0, A100, 0)),
        ("devices", lambda: training_time(FLOPS, A100, 1.5)),
        ("precision", lambda: training_time(FLOPS, A100, 8, precision="bf8")),
        ("mfu", lambda: training_time(FLOPS, A100, 8, mfu=0)),
        ("mfu", lambda: training_time(FLOPS, A100, 8, mfu=45)),
        ("hfu", lambda: training_time(FLOPS, A100, 8, hfu=math.nan)),
        ("hfu", lambda: training_time(FLOPS, A100, 8, mfu=0.4, hfu=0.5)),
        ("time", lambda: training_cost(FLOPS, A100, 8)),
        ("time", lambda: training_cost(3600, A100, 8)),
        ("device", lambda: training_cost(training_time(FLOPS, A100, 8), None, 8)),
        ("devices", lambda: training_cost(training_time(FLOPS, A100, 8), A100, -8)),
    ],
)
def test_wrong_input_names_its_field(field, call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.field == field
