"""How each task ended and what it used, as the last table of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from tfdist.runs.folder import TaskRecord, describe_end


def summary_table(records: Sequence[TaskRecord]) -> Table:
    """A row for each attempt of each task."""
    table = Table("task", box=SIMPLE)
    again = any(record.attempt > 1 for record in records)
    if again:
        table.add_column("attempt", justify="right")
    table.add_column("end")
    for title in ("seconds", "CPU s", "peak MB"):
        table.add_column(title, justify="right")
    for record in records:
        used = record.usage
        table.add_row(
            record.name,
            *([str(record.attempt)] if again else []),
            describe_end(record),
            f"{record.seconds:.1f}",
            f"{used.cpu_secs:.1f}" if used else "?",
            f"{used.peak_bytes / 1e6:.0f}" if used else "?",
        )
    return table


def summary_json(records: Sequence[TaskRecord]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [
        {
            "task": record.name,
            "attempt": record.attempt,
            "exit_code": record.exit_code,
            "terminated": record.terminated,
            "seconds": round(record.seconds, 3),
            "cpu_secs": record.usage and round(record.usage.cpu_secs, 3),
            "peak_bytes": record.usage and record.usage.peak_bytes,
        }
        for record in records
    ]
