"""`tfdist repro`: the hang lab."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.padding import Padding

from tfdist.cli.arguments import add_json
from tfdist.cli.pipe import PipeConsole
from tfdist.cluster.processes import start_fork_server, stop_fork_server
from tfdist.diagnosis.page import Report, docs_page, page_of
from tfdist.diagnosis.timeline import timeline
from tfdist.doctor.machine import installed
from tfdist.errors import ConfigError
from tfdist.repro.case import Case
from tfdist.repro.lab import Played, Plays
from tfdist.repro.matrix import CASES, T23846, find
from tfdist.repro.series import Row, grid, hang_rate, play_matrix, size_flags, verdicts
from tfdist.runs.folder import RunFolder

_NOT_AS_EXPECTED = 1
PAGE_FILE = "report.html"
_ISSUE = "tensorflow#{}"

_DESCRIPTION = """\
Plays small jobs that hang, lose data or save too early, each in one known way, and says what is the
matter with them; and the same jobs fixed. The watchdog is this process, which has no TensorFlow in
it: whatever hangs, every process of the job is gone when the command returns.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `repro` to the subcommands."""
    parser = commands.add_parser(
        "repro",
        help="reproduce the hangs of ps jobs, and see them named and fixed",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_list(actions.add_parser("list", help="show all cases", allow_abbrev=False))
    _add_run(actions.add_parser("run", help="play one case", allow_abbrev=False))
    _add_matrix(actions.add_parser("matrix", help="play all cases", allow_abbrev=False))


def _add_list(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.set_defaults(command_function=list_cases)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", metavar="CASE", help="as `tfdist repro list` shows it")
    parser.add_argument("--fixed", action="store_true", help="play it with the fix")
    parser.add_argument("--runs", type=int, metavar="N", help="how often (default: by the case)")
    _add_common(parser)
    group = parser.add_argument_group(f"only for {T23846.name}, the job of tensorflow#23846")
    for flag, meaning in {
        "--ps": "numbers of ps, such as 1,2,4",
        "--workers": "numbers of workers",
        "--inter-op": "numbers of threads for operations",
    }.items():
        group.add_argument(flag, type=_numbers, metavar="N,N", help=meaning)
    group.add_argument("--epochs", type=int, metavar="N", help="of each run")
    group.add_argument(
        "--iterator",
        choices=("local", "ps", "both"),
        help="where the iterator of the job is",
    )
    parser.set_defaults(command_function=run)


def _add_matrix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="cases at the same time (default: 2)"
    )
    parser.add_argument("--family", help="only the cases of this one")
    _add_common(parser)
    parser.set_defaults(command_function=matrix)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="(default: 1)")
    parser.add_argument(
        "--out", metavar="DIR", help="keep evidence and reports there (default: a new folder)"
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


def list_cases(parsed: argparse.Namespace) -> int:
    """Prints all cases."""
    if parsed.json:
        print(json.dumps({"cases": [_case_json(case) for case in CASES]}))
        return 0
    console = PipeConsole(highlight=False, markup=False, emoji=False)
    for case in CASES:
        expected = " or ".join(name.value for name in case.expects)
        console.print(f"{case.name}: {expected}", soft_wrap=True)
        console.print(Padding(case.about, (0, 0, 0, 4)))
    return 0


def _case_json(case: Case) -> dict[str, Any]:
    return {
        "case": case.name,
        "about": case.about,
        "expected": [name.value for name in case.expects],
        "fix": case.fix,
        "issues": [_ISSUE.format(number) for number in case.issues],
        "runs": case.runs,
    }


def run(parsed: argparse.Namespace) -> int:
    """Plays one case, perhaps often or in many sizes; 0 if each verdict is one that is expected."""
    cases = _sizes(parsed, find(parsed.case))
    if parsed.runs is not None and parsed.runs < 1:
        raise ConfigError("--runs", parsed.runs, "at least 1")
    console = PipeConsole(highlight=False, markup=False, emoji=False, soft_wrap=True)
    results = []
    with _lab(parsed) as lab:
        for case in cases:
            runs = lab.plays_often(
                case, parsed.fixed, parsed.runs or (1 if parsed.fixed else case.runs)
            )
            results.append((case, runs))
            if not parsed.json:
                lines = _size_lines if len(cases) > 1 else _run_lines
                for line in lines(case, runs):
                    console.print(line)
        if len(cases) > 1 and not parsed.json:
            console.print(_grid_line([runs for _, runs in results], lab.folder))
    is_expected = all(played.as_expected for _, runs in results for played in runs)
    if parsed.json:
        print(json.dumps({"runs": [_series_json(case, runs) for case, runs in results]}))
    return 0 if is_expected else _NOT_AS_EXPECTED


def _sizes(parsed: argparse.Namespace, case: Case) -> list[Case]:
    """The case in the sizes that are wanted."""
    given = {
        name: getattr(parsed, name)
        for name in ("ps", "workers", "inter_op", "epochs", "iterator")
        if getattr(parsed, name) is not None
    }
    if case.name != T23846.name:
        for name, value in given.items():
            raise ConfigError(f"--{name.replace('_', '-')}", value, f"goes with {T23846.name} only")
        return [case]
    if not given:
        return [case]
    if (epochs := given.get("epochs", case.settings["epochs"])) < 1:
        raise ConfigError("--epochs", epochs, "at least 1")
    return grid(
        case,
        ps=given.get("ps", [case.shape.num_ps]),
        workers=given.get("workers", [case.shape.num_workers]),
        inter_op=given.get("inter_op", [case.settings["inter_op"]]),
        iterator_on_ps={"local": [False], "ps": [True], "both": [False, True]}[
            given.get("iterator", "local")
        ],
        epochs=epochs,
    )


def matrix(parsed: argparse.Namespace) -> int:
    """Plays all cases, broken and fixed; 0 if all is as expected."""
    if parsed.jobs < 1:
        raise ConfigError("--jobs", parsed.jobs, "at least 1")
    families = list(dict.fromkeys(case.family for case in CASES))
    if parsed.family is not None and parsed.family not in families:
        raise ConfigError("--family", parsed.family, f"one of {', '.join(families)}")
    cases = [case for case in CASES if parsed.family in (None, case.family)]
    width = max(len(case.name) for case in cases)
    rows: list[Row] = []
    console = PipeConsole(highlight=False, markup=False, emoji=False, soft_wrap=True)
    with _lab(parsed) as lab:
        for row in play_matrix(cases, lab.plays, lab.folder, parsed.jobs, parsed.seed):
            for played in (*row.broken, row.fixed):
                lab.report(played)
            rows.append(row)
            if not parsed.json:
                console.print(_row_line(row, width))
        if not parsed.json:
            good = sum(row.as_expected for row in rows)
            console.print(f"{good} of {len(rows)} cases as expected; reports are in {lab.folder}")
    if parsed.json:
        print(json.dumps({"cases": [row.as_json() for row in rows]}))
    return 0 if all(row.as_expected for row in rows) else _NOT_AS_EXPECTED


def _row_line(row: Row, width: int) -> str:
    mark = "as expected" if row.as_expected else "NOT AS EXPECTED"
    fixed = "fixed: all examples" if row.fixed_ok else f"fixed: {row.fixed.verdict}"
    return f"{row.case.name:{width}}  {mark}: {_counted(row.broken)}; {fixed}"


def _size_lines(case: Case, runs: Sequence[Played]) -> Iterator[str]:
    """Of one size in a grid; more of it where something is not as expected."""
    yield f"{size_flags(case)}: {_counted(runs)}; {_hangs(runs)}"
    if strange := [played for played in runs if not played.as_expected]:
        for reason in strange[-1].verdict.because:
            yield f"  {reason}"
        yield f"  report: {strange[-1].folder / PAGE_FILE}"


def _grid_line(sizes: Sequence[Sequence[Played]], folder: Path) -> str:
    every = [played for runs in sizes for played in runs]
    found = f"{len(sizes)} sizes: {_counted(every)}; {_hangs(every)}"
    return f"{found}; TensorFlow {installed('tensorflow')}; reports are in {folder}"


def _counted(runs: Sequence[Played]) -> str:
    return ", ".join(
        name.value if count == len(runs) else f"{name.value} {count}x"
        for name, count in verdicts(runs).items()
    )


def _hangs(runs: Sequence[Played]) -> str:
    return f"hangs: {hang_rate(runs)}, at 95 %"


def _run_lines(case: Case, runs: Sequence[Played]) -> Iterator[str]:
    last = runs[-1]
    told = "as expected" if all(played.as_expected for played in runs) else "not as expected"
    half = " (fixed)" if last.fixed else ""
    yield f"{case.name}{half}: {last.verdict.name.value}, {told}"
    for reason in last.verdict.because:
        yield f"  {reason}"
    if last.verdict.would_help:
        confidence, more = last.verdict.confidence.value, last.verdict.would_help
        yield f"  this is {confidence}; what would tell more: {more}"
    if last.told_secs is not None:
        yield f"  told {last.told_secs:.1f} s after anybody got on; {last.seconds:.1f} s in all"
    if len(runs) > 1:
        yield f"  {len(runs)} runs: {_counted(runs)}; {_hangs(runs)}"
    if not last.fixed:
        yield f"  fix: {case.fix}: tfdist repro run {case.name} --fixed"
    yield f"  report: {last.folder / PAGE_FILE}"


def _series_json(case: Case, runs: Sequence[Played]) -> dict[str, Any]:
    rate = hang_rate(runs)
    low, high = rate.bounds()
    return {
        **_case_json(case),
        "ps": case.shape.num_ps,
        "workers": case.shape.num_workers,
        "settings": dict(case.settings),
        "fixed": runs[-1].fixed,
        "verdicts": {name.value: count for name, count in verdicts(runs).items()},
        "as_expected": all(played.as_expected for played in runs),
        "hangs": rate.hits,
        "of": rate.runs,
        "hang_rate_95": [round(low, 5), round(high, 5)],
        "because": runs[-1].verdict.because,
        "seconds": [round(played.seconds, 1) for played in runs],
        "told_secs": [played.told_secs and round(played.told_secs, 1) for played in runs],
        "folders": [str(played.folder) for played in runs],
    }


@dataclass(frozen=True)
class _Lab:
    """Plays, and keeps what comes of it in a folder."""

    plays: Plays
    folder: Path
    seed: int

    def plays_often(self, case: Case, fixed: bool, times: int) -> list[Played]:
        """Plays it so often, each time with another seed."""
        runs = []
        for number in range(times):
            path = Path(tempfile.mkdtemp(prefix=f"{case.name.replace('/', '-')}-", dir=self.folder))
            played = self.plays(case, fixed=fixed, seed=self.seed + number, folder=path)
            self.report(played)
            runs.append(played)
        return runs

    def report(self, played: Played) -> None:
        """Writes the page of a run."""
        case, half = played.case, " --fixed" if played.fixed else ""
        size = f" {flags}" if (flags := size_flags(case)) else ""
        report = Report(
            title=f"{case.name}{' (fixed)' if played.fixed else ''}",
            about=case.about,
            verdict=played.verdict,
            evidence=played.evidence,
            tracks=timeline(RunFolder(played.folder), played.diagnosed_secs),
            seconds=played.diagnosed_secs,
            reproduce=f"tfdist repro run {case.name}{size}{half} --seed {played.seed}",
            fix=case.fix,
            page=docs_page(f"hangs/{case.module}.md"),
        )
        (played.folder / PAGE_FILE).write_text(page_of(report), "utf-8")


@contextmanager
def _lab(parsed: argparse.Namespace) -> Iterator[_Lab]:
    if parsed.out is None:
        folder = tempfile.mkdtemp(prefix="tfdist-repro-")
    else:
        folder = parsed.out
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise ConfigError("--out", folder, f"a folder; {error}") from error

    def told(line: str) -> None:
        print(f"tfdist: {line}", file=sys.stderr, flush=True)

    try:
        start_fork_server()
        yield _Lab(Plays(told), Path(folder), parsed.seed)
    finally:
        stop_fork_server()
