"""What the benchmarks share: options, the machine, the spread over rounds, targets, tables."""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table


def add_options(parser: argparse.ArgumentParser, quick: str) -> None:
    """Adds the options that every benchmark has; `quick` is the help text of --quick."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--seed",
        type=int,
        default=random.SystemRandom().randrange(10**6),
        help="seed of everything random (default: a new one)",
    )


def machine() -> dict[str, Any]:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "tensorflow": version("tensorflow"),
    }


def describe_machine(figures: dict[str, Any]) -> str:
    return (
        f"{figures['cpu']}, {figures['cores']} cores, Python {figures['python']}, "
        f"TensorFlow {figures['tensorflow']}"
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    quartiles = np.percentile(values, [0, 25, 50, 75, 100]).tolist()
    return dict(zip(("min", "q1", "median", "q3", "max"), quartiles, strict=True))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def with_spread(values: Mapping[str, list[float]]) -> dict[str, Any]:
    """The median of each value over the rounds, and under "spread" how far the rounds differ."""
    spreads = {name: spread(rounds) for name, rounds in values.items()}
    return {name: each["median"] for name, each in spreads.items()} | {"spread": spreads}


def target(
    name: str, value: float | None, bound: float, *, at_least: bool = False
) -> dict[str, Any]:
    """A target with its outcome; without a value it is neither held nor missed.

    The bound is the largest value that holds it, with `at_least` the smallest one.
    """
    held = None
    if value is not None:
        held = value >= bound if at_least else value <= bound
    return {"name": name, "value": value, "bound": bound, "at_least": at_least, "held": held}


def print_targets(targets: list[dict[str, Any]]) -> None:
    table = make_table(["target"], ["measured", "bound", "held"])
    for each in targets:
        measured = "not measured" if each["value"] is None else f"{each['value']:.2f}"
        answer = {None: "", True: "yes", False: "NO"}[each["held"]]
        bound = f"at {'least' if each['at_least'] else 'most'} {each['bound']:.2f}"
        table.add_row(each["name"], measured, bound, answer)
    make_console().print(table)


def make_table(left: list[str], right: list[str]) -> Table:
    table = Table()
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def make_console() -> Console:
    # In a file or a log, rich would wrap the tables at 80 columns.
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def shown_range(figures: dict[str, float]) -> str:
    return f"{figures['median']:.2f} ({figures['min']:.2f} .. {figures['max']:.2f})"


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
