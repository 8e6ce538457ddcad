"""Arguments that several commands have."""

from __future__ import annotations

import argparse

from tfdist.cluster.script import Script


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds RUN, which `tfdist.runs.live.chosen_run` reads."""
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="the folder of a run or of several runs (default: your only running job)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )


def add_script(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Adds the script and its arguments, for `script_of`."""
    parser.add_argument("script", help=meaning)
    rest = parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="arguments of the script; -- may stand before them",
    )
    rest.required = False  # or Python 3.11 reports it as missing when the script is


def script_of(parsed: argparse.Namespace) -> Script:
    """The script, its arguments, and whether it gets the classic flags."""
    arguments = parsed.arguments[1:] if parsed.arguments[:1] == ["--"] else parsed.arguments
    return Script(parsed.script, arguments, parsed.classic_flags)
