"""Two figures for the documentation: quality against CPU time, and bias against samples."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import _softmax_bias as bias
from benchmarks import _softmax_quality as quality


def write(folder: Path, quick: bool, seed: int) -> list[Path]:
    """Measures, and writes the figures as SVG and the numbers as JSON; returns the files.

    Raises:
        ModuleNotFoundError: there is no matplotlib; it is in the extra "docs".
    """
    import matplotlib
    import tensorflow as tf

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tfdist"  # the same numbers make the same file
    from matplotlib import pyplot

    tf.get_logger().setLevel("ERROR")  # each point is a function of its own, which is traced
    folder.mkdir(parents=True, exist_ok=True)
    curves, best = quality.measure(1.0 if quick else 10.0, seed)
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.axhline(best, color="gray", linestyle=":", label="best possible")
    axes.set(xlabel="CPU seconds of training", ylabel="exact perplexity, held out", yscale="log")
    axes.legend()
    first = folder / "softmax-quality.svg"
    figure.savefig(first, metadata={"Date": None})

    biases = bias.measure(100 if quick else 2_000, seed)
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, values in biases.items():
        axes.plot(bias.NUMBERS, values, marker=".", label=name)
    axes.set(xlabel="samples", ylabel="relative bias of the gradient", xscale="log", yscale="log")
    axes.set_xticks(bias.NUMBERS, [str(number) for number in bias.NUMBERS], minor=False)
    axes.legend()
    second = folder / "softmax-bias.svg"
    figure.savefig(second, metadata={"Date": None})

    third = folder / "softmax.json"
    figures = {"perplexity": curves, "best": best, "samples": bias.NUMBERS, "bias": biases}
    third.write_text(json.dumps(figures, indent=2))
    return [first, second, third]
