"""Arguments that several commands have."""

from __future__ import annotations

import argparse


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds RUN, which `chosen_run` of `tfdist.cluster.live_runs` understands."""
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="the folder of a run, or of runs (default: the only job of yours that runs)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json, for a command that prints nothing else then."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )
