"""The worked example of the page on step times, recomputed from the code that the page shows."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tfdist.planner import predict_step_secs

PAGE = (Path(__file__).parents[2] / "docs/planner/ps-time.md").read_text("utf-8")


@pytest.fixture(scope="module")
def shown():
    """The names of the page's first block."""
    names = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], names)
    return names


def test_the_table_has_the_counts_and_costs_of_each_unit(shown):
    units, costs = shown["units"], shown["costs"]
    for unit, count in asdict(units).items():
        name = "FLOP" if unit == "flop" else unit
        worker, ps = (1e3 * count * getattr(task, unit) for task in (costs.worker, costs.ps))
        assert f"| {name} | {count:,.0f} | {worker:.2f} | {ps:.2f} |" in PAGE
    sums = [1e3 * (units @ task) for task in (costs.worker, costs.ps)]
    assert "| sum | | {:.2f} | {:.2f} |".format(*sums) in PAGE


def test_the_times_and_the_limit_are_those_of_the_code(shown):
    job, here, costs = shown["job"], shown["here"], shown["costs"]
    times = [
        1e3 * predict_step_secs(replace(job, workers=count), here, costs).value
        for count in (1, 2, 4, 8)
    ]
    assert "{:.1f}, {:.1f}, {:.1f} and {:.1f} ms with 1, 2, 4 and 8 workers".format(*times) in PAGE
    assert 1e3 * shown["step"].value == pytest.approx(times[2])
    limit = shown["limit"]
    assert limit.name == "CPU of the machine"
    assert f"with {limit.value:.2f} workers" in PAGE
    assert f"= {1e3 * limit.values['demand']:.2f} ms" in PAGE


def test_the_shares_of_the_introduction_hold(shown):
    units, costs = shown["units"], shown["costs"]
    whole = units @ costs.worker + units @ costs.ps

    def share(unit):
        return (
            getattr(units, unit) * sum(getattr(t, unit) for t in (costs.worker, costs.ps)) / whole
        )

    assert share("flop") < 0.03
    assert 0.45 < share("message") < 0.5
    assert 0.3 < share("ps") < 0.36
