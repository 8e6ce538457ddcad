"""How each task ended and what it used, as the last table of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from tfdist.cluster.run_folder import TaskRecord
from tfdist.errors import signal_name


def summary_table(lives: Sequence[TaskRecord]) -> Table:
    """A row for each life of each task."""
    table = Table("task", box=SIMPLE)
    again = any(life.attempt > 1 for life in lives)
    if again:
        table.add_column("attempt", justify="right")
    table.add_column("end")
    for title in ("seconds", "CPU s", "peak MB"):
        table.add_column(title, justify="right")
    for life in lives:
        used = life.usage
        table.add_row(
            life.name,
            *([str(life.attempt)] if again else []),
            describe_end(life),
            f"{life.seconds:.1f}",
            f"{used.cpu_secs:.1f}" if used else "?",
            f"{used.peak_bytes / 1e6:.0f}" if used else "?",
        )
    return table


def summary_json(lives: Sequence[TaskRecord]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [
        {
            "task": life.name,
            "attempt": life.attempt,
            "exit_code": life.exit_code,
            "stopped": life.stopped,
            "seconds": round(life.seconds, 3),
            "cpu_secs": life.usage and round(life.usage.cpu_secs, 3),
            "peak_bytes": life.usage and life.usage.peak_bytes,
        }
        for life in lives
    ]


def describe_end(life: TaskRecord) -> str:
    """In a few words."""
    if life.exit_code is None:
        return "still runs"
    if life.stopped:
        return "ended by tfdist"
    if life.exit_code < 0:
        return f"killed by {signal_name(-life.exit_code)}"
    return f"exit code {life.exit_code}"
