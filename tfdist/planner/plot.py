"""Drawings of plans, with matplotlib (the extra `docs`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tfdist.errors import ConfigError, checked_path

if TYPE_CHECKING:
    from tfdist.planner.search import Offer
    from tfdist.planner.training_plan import TrainingPlan

_SIZE = (8.0, 4.0)  # inches


def plot_plan(plan: TrainingPlan, path: str | os.PathLike[str]) -> None:
    """Draws memory by part and time by part.

    Args:
        plan: of `plan_training`.
        path: of the picture; its ending is the format, such as .png or .svg.

    Raises:
        ConfigError: matplotlib is not installed, or it cannot write this file.
    """
    figure, (memory, time) = _pyplot().subplots(1, 2, figsize=_SIZE, layout="constrained")
    _bars(memory, {part.name: part.value / 1e9 for part in plan.memory.parts})
    memory.axvline(plan.device.memory_bytes / 1e9, color="black", linestyle="--")
    memory.set_xlabel(f"GB; the dashed line is the memory of {plan.device.name}")
    _bars(time, {part.name: part.value / 86400 for part in plan.time.parts})
    time.set_xlabel("days")
    _save(figure, path)


def plot_offers(offers: Sequence[Offer], path: str | os.PathLike[str]) -> None:
    """Draws time against cost, a point for each cluster.

    Args:
        offers: of `cheapest_clusters`.
        path: as of `plot_plan`.

    Raises:
        ConfigError: as of `plot_plan`.
    """
    figure, axes = _pyplot().subplots(figsize=_SIZE, layout="constrained")
    for name in sorted({offer.device.name for offer in offers}):
        own = [offer for offer in offers if offer.device.name == name]
        points = [offer.usd for offer in own], [offer.seconds / 86400 for offer in own]
        axes.plot(*points, marker="o", linestyle="", label=name)
        for offer in own:
            axes.annotate(str(offer.devices), (offer.usd, offer.seconds / 86400))
    axes.set(xscale="log", yscale="log", xlabel="US dollars", ylabel="days")
    if offers:
        axes.legend(title="a number is that of devices")
    _save(figure, path)


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("agg")  # draws without a screen
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        rule = "needs matplotlib, which is in the extra 'docs'"
        raise ConfigError("plot", "without matplotlib", rule) from error
    return pyplot


def _bars(axes: Any, values: dict[str, float]) -> None:
    axes.barh(list(values)[::-1], list(values.values())[::-1])


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    try:
        figure.savefig(checked_path("plot", path))
    except (OSError, ValueError) as error:  # a folder that is missing, an unknown format
        raise ConfigError("plot", path, f"must be a file that can be written ({error})") from error
    finally:
        _pyplot().close(figure)
