"""The figures of docs/planner/compute.md are what the planner computes."""

import contextlib
import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tfdist.planner import (
    LatentAttention,
    Training,
    Transformer,
    approximation_error,
    compute_optimal,
    count_parameters,
    find_device,
    forward_flops,
    parameter_flops,
    plan_rlhf,
    training_flops,
    training_time,
)

PF_DAY = 8.64e19
PAIRWISE = ("scores", "weighted values")
PAGE = Path(__file__).parents[2] / "docs/planner/compute.md"
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text("utf-8"), re.S)


@pytest.mark.parametrize("code", [code for code, _ in BLOCKS])
def test_every_block_prints_what_the_page_shows(code):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {})
    assert printed.getvalue() == dict(BLOCKS)[code]


def test_the_page_has_its_blocks():
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("```python") == 7


def figures():
    """The figures in the page's text, as the planner computes them."""
    gpt3 = Transformer(96, 12288, 96, 50257, positions=2048)
    gpt2 = Transformer(12, 768, 12, 50257, positions=1024)
    gpt3_6b = Transformer(32, 4096, 32, 50257, positions=2048)
    a100 = find_device("a100-80g")

    def off(model, sequence):
        return -approximation_error("6ND", model, Training(sequence=sequence)).value

    yield f"off by {off(gpt3, 2048):.0%} for GPT-3, by {off(gpt2, 1024):.0%} for GPT-2, and by "
    yield f"{off(gpt3, 32768):.0%} for GPT-3 with texts of 32,768 tokens"

    long = forward_flops(gpt3, 1, 32768)
    pairwise = long.parts[0].part("scores") + long.parts[0].part("weighted values")
    yield f"at 32,768 tokens they are {pairwise / long.value:.1%} of the whole"

    latent = Transformer(1, 7168, 128, 1, latent=LatentAttention(512, 1536, 128, 64, 128))
    expanded, absorbed = (
        sum(forward_flops(latent, 1, 9, absorbed=form).parts[0].part(name) for name in PAIRWISE)
        for form in (False, True)
    )
    yield f"That is {absorbed / expanded:.1f} times as much arithmetic"

    forward = forward_flops(gpt3, 1, 2048).value
    for kind, end in (("none", " forward passes"), ("selective", ""), ("full", "")):
        step = training_flops(gpt3, Training(recomputation=kind)).value
        yield f"| {step / forward:.3f}{end} |"
    padded = replace(gpt3, vocabulary=51200)
    step, once_more = (
        training_flops(padded, Training(recomputation=kind)).value for kind in ("none", "selective")
    )
    yield f"an MFU of 51.4 % makes {51.4 * once_more / step:.1f} %"

    share = gpt2.vocabulary * gpt2.hidden / count_parameters(gpt2).value
    yield f"the embedding, which has {share:.0%} of the parameters of GPT-2 124M"
    size, tokens = compute_optimal(3.23e23)
    yield f"a model of {size.value / 1e9:.0f}B on {tokens.value / 1e12:.1f}T tokens"

    parameters = count_parameters(gpt3).value
    yield f"GPT-3 has {2 * parameters / 1e9:.0f} GB of them in 16 bits"
    yield f"an A100 can compute {a100.flops / a100.memory_bandwidth:.0f} FLOPs in the time"

    yield f"and {parameters / 1e9:.1f} billion parameters"
    yield f"24 h<sup>2</sup> = {24 * 12288**2 / 1e9:.2f} GFLOPs"
    yield f"2,048 tokens add 4 n h = {4 * 2048 * 12288 / 1e9:.2f} GFLOPs"
    yield f"the head make {forward / 2048 / 1e9:.1f} GFLOPs for a token. By 2 N it would be "
    yield f"{2 * parameters / 1e9:.1f}: the difference is attention"
    yield f"training takes {3 * forward / 2048 / 1e9:,.0f} GFLOPs for a token"
    exact = training_flops(gpt3, Training(), 300e9).value
    yield f"{exact:.2e} FLOPs, or {exact / PF_DAY:,.0f} petaflop/s-days".replace("e+", "e")
    short = parameter_flops(parameters, 300e9).value
    yield f"without attention: {short:.2e} FLOPs".replace("e+", "e")
    yield f"have a peak of {1024 * a100.flops / 1e15:.0f} PFLOP/s together"
    yield f"140 TFLOP/s on each, an HFU of {140e12 / a100.flops:.3f}"
    full = Training(recomputation="full")
    estimate = parameter_flops(175e9, 300e9, recomputation="full")
    days = [
        training_time(flops, a100, 1024, hfu=140e12 / a100.flops).value / 86400
        for flops in (estimate, training_flops(gpt3, full, 300e9))
    ]
    yield f"they estimate {days[0]:.0f} days. With attention it is {days[1]:.1f} days"

    phases = plan_rlhf(gpt3, gpt3_6b, a100, 1024, copies=64, mfu=0.41)
    supervised, _, ppo = (phase.flops.value for phase in phases)
    yield f"The plan has {supervised / PF_DAY:.2f} and {ppo / PF_DAY:.1f}, both "
    yield f"{supervised / PF_DAY / 4.9 - 1:.0%} more"
    yield f"both {ppo / PF_DAY / 60 - 1:.0%} more"
    yield f"take {sum(phase.flops.value for phase in phases) / exact:.1%} of the FLOPs of GPT-3"
    generation, learning = phases[2].flops.parts
    yield f"first training take {learning.part('pretraining') / ppo:.0%} of its FLOPs"
    waiting = phases[2].time.part("generation") / phases[2].time.value
    yield f"It has {generation.value / ppo:.0%} of the FLOPs of PPO and takes {waiting:.0%}"


def missing(page):
    """The figures that a page does not have."""
    flat = " ".join(page.split())
    written = [re.sub(r"(?<=\d)%", " %", figure) for figure in figures()]
    return [figure for figure in written if figure not in flat]


def test_the_page_has_every_figure():
    page = PAGE.read_text("utf-8")
    assert missing(page) == []
    assert missing(page.replace("3.4 times", "3.5 times")) == [
        "That is 3.4 times as much arithmetic"
    ]


def test_rounded_coefficients_of_chinchilla_make_its_models_smaller():
    table = PAGE.parents[2] / "tests/unit/planner_tables/chinchilla_table3_A3.csv"
    with open(table, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["approach"] == "3"]
    factor = (0.34 * 406.4 / (0.28 * 410.7)) ** (1 / 0.62)
    shares = []
    for row in rows:
        flops = float(row["flops"]) * (10 if row["note"] else 1)
        shares.append(1 - factor * (flops / 6) ** (0.28 / 0.62) / float(row["params"]))
    assert f"{min(shares):.0%} to {max(shares):.0%}" == "18% to 30%"
    assert "table A3 18 to 30 % smaller" in " ".join(PAGE.read_text("utf-8").split())
