"""`tfdist repro`: reproduces known hangs of parameter-server jobs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tfdist.cli.arguments import add_json
from tfdist.cli.output import PipeConsole
from tfdist.cluster.fork_server import start_fork_server, stop_fork_server
from tfdist.diagnosis.verdict import Name
from tfdist.doctor.machine import installed
from tfdist.errors import HELD, NOT_HELD, ConfigError
from tfdist.lazy import require_tensorflow
from tfdist.repro.case import Case
from tfdist.repro.lab import Lab, Played
from tfdist.repro.matrix import CASES, FAMILIES, T23846, find
from tfdist.repro.series import (
    REPORT_FILE,
    Row,
    grid,
    hang_rate,
    play_matrix,
    play_often,
    size_flags,
    verdicts,
)

_ISSUE = "tensorflow#{}"

_DESCRIPTION = """\
Runs cases: small jobs that hang, lose data or save too early, each in one known
way. For each case it prints the verdict and the reasons, and it can run the same
job with a fix. Each task is a process on this machine. The command ends them all
before it returns, including the ones that hang.

  tfdist repro list                              find the job that looks like yours
  tfdist repro run sync/worker-short             see it hang, and why
  tfdist repro run sync/worker-short --fixed     see it end
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `repro` to the subcommands."""
    parser = commands.add_parser(
        "repro",
        help="reproduce known hangs of ps jobs, explain them, and run their fixes",
        description=_DESCRIPTION,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_list(actions.add_parser("list", help="list all cases"))
    _add_run(actions.add_parser("run", help="run one case"))
    _add_matrix(actions.add_parser("matrix", help="run all cases, broken and fixed"))


def _add_list(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.set_defaults(command_function=list_cases)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "case", metavar="CASE", help="a name from `tfdist repro list`, such as sync/worker-short"
    )
    parser.add_argument("--fixed", action="store_true", help="run the fixed job")
    parser.add_argument(
        "--runs", type=int, metavar="N", help="number of runs (default: 1; 5 for a race)"
    )
    _add_common(parser)
    group = parser.add_argument_group(f"sizes, only for {T23846.name} (tensorflow#23846)")
    for flag, meaning in {
        "--ps": "numbers of ps, such as 1,2,4 (default: 2)",
        "--workers": "numbers of workers (default: 4)",
        "--inter-op": "numbers of inter-op threads of each server (default: 4)",
    }.items():
        group.add_argument(flag, type=_numbers, metavar="N,N", help=meaning)
    group.add_argument("--epochs", type=int, metavar="N", help="epochs of each run (default: 3)")
    group.add_argument(
        "--iterator",
        choices=("local", "ps", "both"),
        help="where the iterators are placed (default: local)",
    )
    parser.set_defaults(command_function=run)


def _add_matrix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="runs at the same time (default: 2)"
    )
    parser.add_argument("--family", metavar="NAME", help=f"one of: {', '.join(FAMILIES)}")
    _add_common(parser)
    parser.set_defaults(command_function=matrix)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, default=1, metavar="S", help="seed of the first run (default: 1)"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for evidence and reports (default: a new temporary one)",
    )
    add_json(parser)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers from 1, such as 1,2,4")
    return numbers


def _console() -> PipeConsole:
    return PipeConsole(highlight=False, markup=False, emoji=False)


def list_cases(parsed: argparse.Namespace) -> int:
    """Prints all cases."""
    if parsed.json:
        print(json.dumps({"cases": [_case_json(case) for case in CASES]}))
        return HELD
    console = _console()
    for case in CASES:
        expected = " or ".join(name.value for name in case.expects)
        console.print(f"{case.name}: {expected}", soft_wrap=True)
        _show_text(console, case.about, 4, 4)
    return HELD


def run(parsed: argparse.Namespace) -> int:
    """Plays one case, in one size or many; returns 0 if every verdict is an expected one."""
    cases = _sizes(parsed, find(parsed.case))
    if parsed.runs is not None and parsed.runs < 1:
        raise ConfigError("--runs", parsed.runs, "must be at least 1")
    require_tensorflow("tfdist repro")
    console = _console()
    results = []
    with _lab(parsed) as (lab, folder):
        for case in cases:
            times = parsed.runs or (1 if parsed.fixed else case.runs)
            runs = play_often(case, lab, folder, fixed=parsed.fixed, times=times, seed=parsed.seed)
            results.append((case, runs))
            if not parsed.json:
                show = _show_size if len(cases) > 1 else _show_runs
                show(console, case, runs)
        if len(cases) > 1 and not parsed.json:
            every = [played for _, runs in results for played in runs]
            console.print(
                f"{len(cases)} sizes: {_counted(every)}; hung in {hang_rate(every)}; "
                f"TensorFlow {installed('tensorflow')}; reports are in {folder}",
                soft_wrap=True,
            )
    if parsed.json:
        print(json.dumps({"runs": [_series_json(case, runs) for case, runs in results]}))
    as_expected = all(played.as_expected for _, runs in results for played in runs)
    return HELD if as_expected else NOT_HELD


def _sizes(parsed: argparse.Namespace, case: Case) -> list[Case]:
    """The case in the sizes that the flags ask for."""
    given = {
        name: getattr(parsed, name)
        for name in ("ps", "workers", "inter_op", "epochs", "iterator")
        if getattr(parsed, name) is not None
    }
    if case.name != T23846.name:
        for name, value in given.items():
            typed = ",".join(map(str, value)) if isinstance(value, list) else value
            raise ConfigError(f"--{name.replace('_', '-')}", typed, f"only {T23846.name} takes it")
        return [case]
    if not given:
        return [case]
    if (epochs := given.get("epochs", case.settings.epochs)) < 1:
        raise ConfigError("--epochs", epochs, "must be at least 1")
    return grid(
        case,
        ps=given.get("ps", [case.shape.num_ps]),
        workers=given.get("workers", [case.shape.num_workers]),
        inter_op=given.get("inter_op", [case.settings.inter_op]),
        iterator_on_ps={"local": [False], "ps": [True], "both": [False, True]}[
            given.get("iterator", "local")
        ],
        epochs=epochs,
    )


def matrix(parsed: argparse.Namespace) -> int:
    """Plays all cases, broken and fixed; returns 0 if every verdict is an expected one."""
    if parsed.jobs < 1:
        raise ConfigError("--jobs", parsed.jobs, "must be at least 1")
    if parsed.family is not None and parsed.family not in FAMILIES:
        raise ConfigError("--family", parsed.family, f"must be one of {', '.join(FAMILIES)}")
    require_tensorflow("tfdist repro")
    cases = [case for case in CASES if parsed.family in (None, case.family)]
    width = max(len(case.name) for case in cases)
    rows: list[Row] = []
    console = _console()
    with _lab(parsed) as (lab, folder):
        for row in play_matrix(cases, lab, folder, parsed.jobs, parsed.seed):
            rows.append(row)
            if not parsed.json:
                console.print(_row_line(row, width), soft_wrap=True)
        if not parsed.json:
            good = sum(row.as_expected for row in rows)
            summary = f"{good} of {len(rows)} cases as expected; reports are in {folder}"
            console.print(summary, soft_wrap=True)
    if parsed.json:
        print(json.dumps({"cases": [_row_json(row) for row in rows]}))
    return HELD if all(row.as_expected for row in rows) else NOT_HELD


@contextmanager
def _lab(parsed: argparse.Namespace) -> Iterator[tuple[Lab, Path]]:
    """The lab, and the folder for its runs."""
    if parsed.out is None:
        folder = tempfile.mkdtemp(prefix="tfdist-repro-")
    else:
        folder = parsed.out
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                "--out", folder, f"cannot create this folder: {error.strerror}"
            ) from error

    def log(line: str) -> None:
        print(f"tfdist: {line}", file=sys.stderr, flush=True)

    try:
        start_fork_server()
        yield Lab(log), Path(folder)
    finally:
        stop_fork_server()


# Text.


def _row_line(row: Row, width: int) -> str:
    mark = "as expected" if row.as_expected else "NOT AS EXPECTED"
    verdict = row.fixed.verdict
    fixed = verdict.name.value if row.fixed.as_expected else str(verdict)
    if row.fixed.as_expected and verdict.name is not Name.FINE:
        fixed += " (a task was lost)"
    return f"{row.case.name:{width}}  {mark}: {_counted(row.broken)}; fixed: {fixed}"


def _show_size(console: PipeConsole, case: Case, runs: Sequence[Played]) -> None:
    """One size of a grid in one line, and an unexpected run in more."""
    line = f"{size_flags(case)}: {_counted(runs)}; hung in {hang_rate(runs)}"
    console.print(line, soft_wrap=True)
    shown = _run_to_show(runs)
    if not shown.as_expected:
        _show_reasons(console, shown)
        console.print(f"  report: {shown.folder / REPORT_FILE}", soft_wrap=True)


def _show_runs(console: PipeConsole, case: Case, runs: Sequence[Played]) -> None:
    """One run of a case, and the count of all runs."""
    shown = _run_to_show(runs)
    expected = "FINE" if shown.fixed else " or ".join(name.value for name in case.expects)
    mark = "as expected" if shown.as_expected else f"NOT AS EXPECTED (expected {expected})"
    half = " (fixed)" if shown.fixed else ""
    console.print(f"{case.name}{half}: {shown.verdict.name.value}, {mark}", soft_wrap=True)
    if not shown.fixed:
        _show_text(console, f"job: {case.about}")
    _show_reasons(console, shown)
    if len(runs) > 1:
        _show_text(console, f"{len(runs)} runs: {_counted(runs)}; hung in {hang_rate(runs)}")
    _show_text(console, f"fix: {case.fix}")
    if not shown.fixed:
        command = f"  run the fixed job: tfdist repro run {case.name} --fixed"
        console.print(command, soft_wrap=True)
    console.print(f"  report: {shown.folder / REPORT_FILE}", soft_wrap=True)


def _run_to_show(runs: Sequence[Played]) -> Played:
    """The last unexpected run, or the last run if all are as expected."""
    return ([played for played in runs if not played.as_expected] or runs)[-1]


def _show_reasons(console: PipeConsole, played: Played) -> None:
    verdict = played.verdict
    _show_text(console, f"why this verdict ({verdict.confidence.value}):")
    for reason in verdict.because:
        _show_text(console, reason, 4, 6)
    if verdict.would_help:
        _show_text(console, f"to be more certain: {verdict.would_help}", 4, 6)
    took = f"the run took {played.seconds:.1f} s"
    if played.reported_after_secs is not None:
        took = f"reported {played.reported_after_secs:.1f} s after the last progress; {took}"
    _show_text(console, took)


def _show_text(console: PipeConsole, text: str, indent: int = 2, following: int = 4) -> None:
    """Wraps the text at the width of the terminal; `following` is the indent of further lines."""
    wrapped = textwrap.fill(
        text,
        console.width,
        initial_indent=" " * indent,
        subsequent_indent=" " * following,
        break_on_hyphens=False,
    )
    console.print(wrapped, soft_wrap=True)


def _counted(runs: Sequence[Played]) -> str:
    return ", ".join(
        name.value if count == len(runs) else f"{name.value} {count}x"
        for name, count in verdicts(runs).items()
    )


# JSON.


def _case_json(case: Case) -> dict[str, Any]:
    return {
        "case": case.name,
        "about": case.about,
        "expected": [name.value for name in case.expects],
        "fix": case.fix,
        "issues": [_ISSUE.format(number) for number in case.issues],
        "runs": case.runs,
    }


def _series_json(case: Case, runs: Sequence[Played]) -> dict[str, Any]:
    rate = hang_rate(runs)
    return {
        **_case_json(case),
        "ps": case.shape.num_ps,
        "workers": case.shape.num_workers,
        "settings": {} if case.settings is None else asdict(case.settings),
        "fixed": runs[-1].fixed,
        **_verdicts_json(runs),
        "as_expected": all(played.as_expected for played in runs),
        "hangs": rate.hits,
        "played": rate.runs,
        "hang_rate_95": [round(bound, 5) for bound in rate.bounds()],
        "because": runs[-1].verdict.because,
        "seconds": [round(played.seconds, 1) for played in runs],
        "folders": [str(played.folder) for played in runs],
    }


def _row_json(row: Row) -> dict[str, Any]:
    runs = (*row.broken, row.fixed)
    return {
        "case": row.case.name,
        "expected": [name.value for name in row.case.expects],
        "verdict": row.broken[-1].verdict.name.value,
        **_verdicts_json(row.broken),
        "fixed_ok": row.fixed.as_expected,
        "as_expected": row.as_expected,
        "seconds": round(sum(played.seconds for played in runs), 1),
        "stall_secs": row.case.stall_secs,
        "folders": [str(played.folder) for played in runs],
    }


def _verdicts_json(runs: Sequence[Played]) -> dict[str, Any]:
    return {
        "verdicts": {name.value: count for name, count in verdicts(runs).items()},
        "reported_after_secs": [
            played.reported_after_secs and round(played.reported_after_secs, 1) for played in runs
        ],
    }
