"""Prints the report of benchmarks/scale.py as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from benchmarks._report import (
    describe_machine,
    make_console,
    make_table,
    print_targets,
    shown_range,
)

Row = dict[str, Any]


def print_report(report: dict[str, Any]) -> None:
    """Prints each part of the report, and the targets."""
    console = make_console()
    console.print(f"{describe_machine(report['machine'])}, seed {report['seed']}")
    for row in report["rows"]:
        if row.get("note"):
            console.print(row["note"].splitlines()[0])
    for part, show in (
        ("cost", _print_costs),
        ("check", _print_check),
        ("job", _print_jobs),
        ("limit", _print_limits),
        ("change", _print_changes),
    ):
        rows = [row for row in report["rows"] if row["part"] == part and not row.get("note")]
        if rows:
            show(console, rows)
    if report["targets"]:
        print_targets(report["targets"])


def _print_costs(console: Console, rows: list[Row]) -> None:
    console.print("\nCosts of a message in ms: median (min .. max) over the rounds.")
    columns = ["CPU of the ps", "of a trainer", "alone, until the answer"]
    table = make_table(["message", "size", "trainers"], columns)
    names = ("ps_ms", "trainer_ms", "alone_ms")
    for row in sorted(rows, key=lambda row: (row["kind"], row["parties"] or 0, row["n"])):
        counts = [f"{row[name]:,}" if row[name] else "" for name in ("n", "parties")]
        table.add_row(row["kind"], *counts, *(shown_range(row["spread"][name]) for name in names))
    console.print(table)


def _print_check(console: Console, rows: list[Row]) -> None:
    *rungs, crossing = rows
    work = 1e3 * crossing["step_secs"]
    console.print(f"\nA real job on this machine; its trainers work {work:.0f} ms in each step.")
    columns = ["steps/s", "in the model", "real / model", "CPU of the ps, ms a step", "of trainers"]
    table = make_table(["trainers"], columns)
    for row in rungs:
        table.add_row(
            str(row["n"]),
            shown_range(row["spread"]["steps_per_sec"]),
            shown_range(row["spread"]["model"]),
            shown_range(row["spread"]["ratio"]),
            f"{row['ps_ms']:.2f}",
            f"{row['trainer_ms']:.2f}",
        )
    table.add_section()
    table.add_row(
        "crossing",
        shown_range(crossing["spread"]["trainers"]),
        shown_range(crossing["spread"]["model"]),
        shown_range(crossing["spread"]["ratio"]),
    )
    console.print(table)
    growth = shown_range(crossing["spread"]["last_growth"])
    console.print(f"The most trainers took {growth} times as many steps as the next fewer.")


def _print_jobs(console: Console, rows: list[Row]) -> None:
    console.print("\nJobs in the model.")
    columns = ["steps/s", "of the ideal", "busiest", "in use", "work", "variables", "splits"]
    table = make_table(["ps", "trainers"], [*columns, "barrier"])
    before = None
    for row in rows:
        if before not in (None, row["num_ps"]):
            table.add_section()
        before = row["num_ps"]
        table.add_row(
            str(row["num_ps"]),
            f"{row['n']:,}",
            f"{row['steps_per_sec']:,.0f}",
            f"{row['of_ideal']:.0%}",
            row["busiest"],
            f"{row['use'][row['busiest']]:.0%}",
            *(f"{share:.0%}" for share in row["shares"].values()),
        )
    console.print(table)


def _print_limits(console: Console, rows: list[Row]) -> None:
    console.print("\nThe number of trainers from which on each resource is always in use.")
    table = make_table(["ps", "resource"], ["trainers"])
    for row in rows:
        trainers = "never" if row["trainers"] is None else f"{row['trainers']:,.0f}"
        table.add_row(str(row["num_ps"]), row["kind"], trainers)
    console.print(table)


def _print_changes(console: Console, rows: list[Row]) -> None:
    console.print("\nThe lowest of these limits after a change.")
    table = make_table(["ps", "change"], ["trainers"])
    for row in rows:
        table.add_row(str(row["num_ps"]), row["kind"], f"{row['trainers']:,.0f}")
    console.print(table)
