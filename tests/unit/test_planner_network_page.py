"""Each figure of the page on the network comes from the planner."""

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tfdist import planner

PAGE = (Path(__file__).parents[2] / "docs/planner/network.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def program():
    """The names that the code of the page defines, and what each block prints."""
    names, printed = {}, []
    for code, _ in BLOCKS:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "network.md", "exec"), names)
        printed.append(out.getvalue())
    return names, printed


def in_prose(text):
    """Asserts that the page says so, wherever its lines break."""
    assert text in " ".join(PAGE.split())


def test_the_code_prints_what_the_page_shows(program):
    assert len(BLOCKS) == PAGE.count("```python")
    _, printed = program
    assert printed == [text for _, text in BLOCKS]


def test_the_ring_is_what_the_page_says():
    link = planner.Link(bandwidth=100e9, latency=10e-6)
    cost = planner.all_reduce(10**9, 8, link)
    sent, seconds = cost.sent.value, cost.seconds.value
    in_prose(f"sends {sent / 1e9:.2f} GB, and needs {seconds * 1e3:.2f} ms")
    rounds = round((seconds - sent / link.bandwidth) / link.latency)
    in_prose(f"The latency counts {rounds} times")
    small = planner.all_reduce(10**6, 8, link)
    assert small.sent.value / link.bandwidth < rounds * link.latency  # "the larger term"


def test_gpt3_by_hand_is_gpt3_by_formula(program):
    names, _ = program
    tensor = 2 * 2048 * 12288
    traffic = planner.step_traffic(names["gpt3"], names["training"])
    data, tensors, pipeline = traffic.parts
    in_prose(f"2 x 2048 x 12288 = {tensor:,} bytes")
    in_prose(f"which is {2 * 7 / 8 * tensor / 1e6:.0f} MB")
    assert tensors.part("layers") == 12 * 4 * 64 * 2 * 7 / 8 * tensor
    in_prose(f"12 x 4 x 64 x 88 MB = {tensors.part('layers') / 1e9:.1f} GB")
    in_prose(f"for the head: {tensors.part('embedding and head') / 1e9:.1f} GB more")
    in_prose(f"2 x 64 x {tensor / 1e6:.1f} MB = {pipeline.part('activations') / 1e9:.1f} GB")
    in_prose(f"that they share, {pipeline.part('tied embedding') / 1e9:.2f} GB")
    held = data.parts[0].values["P"]
    in_prose(f"holds {held / 1e9:.2f} billion parameters")
    in_prose(f"2 x 23/24 x 2 bytes of each are {2 * 23 / 24 * 2 * held / 1e9:.1f} GB")
    a100 = planner.find_device("a100-80g")
    in_prose(f"link of {a100.link_bandwidth / 1e9:.0f} GB/s")
    in_prose(f"network of {a100.network_bandwidth / 1e9:.0f} GB/s")
    assert a100.per_machine == 8
    flat = replace(names["training"], zero=3, tensor=1, pipeline=1, data=1536)
    (gradients,) = planner.traffic_seconds(names["gpt3"], flat, a100).parts[0].parts
    assert 1 - gradients.values["o"] == pytest.approx(7 / 8, abs=1e-3)  # "seven bytes of eight"


def test_the_recommender_by_hand_is_the_recommender_by_formula(program):
    names, _ = program
    job = names["job"]
    ids = sum(job.lookups(table).value for table in job.tables)
    in_prose(f"have {ids:,.0f} different ids")
    in_prose(f"{ids:,.0f} x 64 x 4 bytes = {ids * 64 * 4 / 1e6:.2f} MB")
    in_prose(f"the ids {ids:,.0f} x 8 = {ids * 8 / 1e6:.2f} MB")
    headers = planner.worker_sent(job).part("headers")
    assert headers == job.header_bytes * (2 * 12 + 4 * 4 * 8)


def test_the_number_of_ps_is_what_the_page_says(program):
    names, _ = program
    job = names["job"]
    needed, load = planner.ps_memory(job).value, planner.ps_load(job).received
    assert needed == 8 * job.parameters
    in_prose(f"each of {job.parameters:,} parameters: {needed / 1e9:.2f} GB, two ps of 8 GB")
    in_prose(f"8 workers send {8 * planner.worker_sent(job).value / 1e6:.1f} MB")
    limit = 1.25e9 * 0.05
    in_prose(f"receives at most {limit / 1e6:.1f} MB")
    in_prose(f"ps 0 alone receives {load.parts[0].value / 1e6:.1f} MB")
    assert load.parts[0].value > limit > planner.ps_received(replace(job, ps=2)).value


def test_the_barrier_by_hand_is_the_barrier_by_formula(program):
    names, _ = program
    steps = names["steps"]
    for workers in (1, 10, 100):
        by_hand = 1 + 9 * (1 - 0.99**workers)
        assert planner.barrier_seconds(steps, workers).value == pytest.approx(by_hand)
    in_prose(f"needs {sum(steps) / 100:.2f} s on average")
    exact = planner.barrier_seconds(steps, 10).value
    in_prose(f"its exact {exact:.2f} s are in the interval")
    low, high = planner.bounded_staleness_seconds(steps, 10, 0).interval
    assert low < exact < high
