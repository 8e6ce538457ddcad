"""How `tfdist plan` prints quantities, clusters and predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from tfdist.cli.output import PipeConsole

if TYPE_CHECKING:  # some of them import NumPy, which starts threads
    from tfdist.planner import Offer, Quantity, TrainingPlan

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_DAY = 86400
_MOST_ERRORS = 10  # rows of the worst predictions


def shown(value: float, unit: str) -> str:
    """A number with its unit, with three digits, such as "45.9 GB"; whole parameters in full."""
    if unit == "parameters":
        return f"{value:,.0f}"
    if unit == "seconds":
        return _time(value)
    if unit == "USD":
        return f"${value:,.2f}" if value < 100 else f"${value:,.0f}"
    if unit == "FLOPs":
        return f"{value:.3g} FLOPs"
    if unit == "bytes":
        size, place = abs(value), 0
        while size >= 999.5 and place < len(_PREFIXES) - 1:
            size, place = size / 1000, place + 1
        name = f"{_PREFIXES[place]}B" if place else "bytes"
        return f"{'-' if value < 0 else ''}{size:.3g} {name}"
    return f"{value:.4g} {unit}".rstrip()


def _time(secs: float) -> str:
    for size, name in ((365 * _DAY, "years"), (_DAY, "days"), (3600, "hours"), (60, "minutes")):
        if secs >= 2 * size:
            return f"{secs / size:,.1f} {name}"
    return f"{secs:.3g} s" if secs >= 1 else f"{1000 * secs:.3g} ms"


def explain(
    console: PipeConsole, quantities: Iterable[Quantity], *, formulas: bool = True, depth: int = 0
) -> None:
    """Prints quantities and their parts, a line each.

    Args:
        console: where to.
        quantities: what to print.
        formulas: whether to print the formulas and sources, and the parts of parts.
        depth: how far to the right.
    """
    for quantity in quantities:
        for level, each in quantity.walk(depth):
            if not formulas and level > depth + 1:
                continue
            console.out(f"{'  ' * level}{each.name}: {shown(each.value, each.unit)}{_range(each)}")
            if not formulas:
                continue
            if each.formula:
                put = ", ".join(f"{name} = {value:.12g}" for name, value in each.values.items())
                console.out(f"{'  ' * level}  = {each.formula}" + (f", {put}" if put else ""))
            if each.source:
                console.out(f"{'  ' * level}  source: {each.source}")


def _range(quantity: Quantity) -> str:
    if quantity.interval is None:
        return ""
    low, high = (shown(end, quantity.unit) for end in quantity.interval)
    return f" ({low} to {high})"


def show_plan(console: PipeConsole, name: str, plan: TrainingPlan) -> None:
    """Prints the plan of a training, a line for each quantity and each of its largest parts."""
    training, device = plan.training, plan.device
    console.out(
        f"{name} on {training.devices} x {device.name}: tensor {training.tensor}, pipeline "
        f"{training.pipeline}, data {training.data}"
    )
    console.out(
        f"batch {training.global_batch:,} x {training.sequence:,} tokens, micro-batch "
        f"{training.micro_batch}, recomputation {training.recomputation}, ZeRO {training.zero}, "
        f"{'sequence parallel, ' if training.sequence_parallel else ''}"
        f"{training.precision}, {training.optimizer}"
    )
    table = Table(box=SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for title, quantity in (
        ("parameters", plan.parameters),
        ("memory of a device", plan.memory),
        ("FLOPs", plan.flops),
        ("sent by a device in a step", plan.traffic),
        ("time", plan.time),
        ("cost", plan.cost),
    ):
        table.add_row(title, shown(quantity.value, quantity.unit), _parts(quantity))
    if plan.active_parameters.value != plan.parameters.value:
        table.add_row("active parameters", shown(plan.active_parameters.value, "parameters"), "")
    table.add_row("MFU", f"{plan.utilization.value:.1%}", "")
    left = plan.left.value
    table.add_row("memory left" if left >= 0 else "memory missing", shown(abs(left), "bytes"), "")
    console.print(table)


def _parts(quantity: Quantity) -> str:
    found = [f"{part.name} {shown(part.value, part.unit)}" for part in quantity.parts]
    return ", ".join(found) if found else _range(quantity).strip(" ()")


def show_warnings(console: PipeConsole, warnings: Sequence[str]) -> None:
    """Prints a line for each warning."""
    for each in warnings:
        console.out(f"warning: {each}")


def show_names(console: PipeConsole, names: dict[str, list[str]]) -> None:
    """Prints the names of the presets and of the devices."""
    for title, found in names.items():
        console.out(f"{title}: {', '.join(found)}")


def show_offers(console: PipeConsole, offers: Sequence[Offer]) -> None:
    """Prints a table of clusters."""
    if not offers:
        console.out("no cluster of the catalogue fits")
        return
    table = Table(box=SIMPLE, pad_edge=False)
    for title in ("devices", "tensor x pipeline x data", "step", "time", "cost"):
        table.add_column(title, justify="left" if title == "devices" else "right", no_wrap=True)
    for each in offers:
        training = each.training
        table.add_row(
            f"{each.devices} x {each.device.name}",
            f"{training.tensor} x {training.pipeline} x {training.data}",
            _time(each.step_secs),
            _time(each.seconds),
            shown(each.usd, "USD"),
        )
    console.print(table)


def show_predictions(console: PipeConsole, found: dict[str, Any]) -> None:
    """Prints a line for each of the worst predictions, and the errors."""
    rows = found["rows"]
    measured = [row for row in rows if row["error"] is not None]
    worst = sorted(measured, key=lambda row: -row["error"])[:_MOST_ERRORS]
    for row in worst or rows:
        division = f"{row['tensor']} x {row['pipeline']} x {row['data']}"
        low, high = row["interval"]
        error = "" if row["error"] is None else f", error {row['error']:.1%}"
        console.out(
            f"{row['layers']} layers of {row['hidden']} on {division} devices: "
            f"{row['predicted_ms']:,.1f} ms ({low:,.1f} to {high:,.1f}){error}"
        )
    if measured:
        console.out(
            f"{len(measured)} rows: mean error {found['mean_error']:.1%}, largest "
            f"{found['max_error']:.1%}"
        )
    fits = found["fits"]
    console.out(
        f"{fits['planned']} rows should fit into memory; {fits['out_of_memory']} of them did not. "
        f"{fits['measured_without']} rows were measured although they should not fit"
    )
