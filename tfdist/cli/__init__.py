"""The command `tfdist`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tfdist.cli import compose, doctor, node, repro, run, stacks, status
from tfdist.cli.pipe import reader_may_leave
from tfdist.errors import ConfigError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="tfdist",
        description="Runs TensorFlow parameter-server jobs that do not hang.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run.add_parser(commands)
    node.add_parser(commands)
    compose.add_parser(commands)
    doctor.add_parser(commands)
    stacks.add_parser(commands)
    status.add_parser(commands)
    repro.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 2 for bad input, 130 after Ctrl-C.

    Raises:
        SystemExit: bad usage, or nobody reads what it prints.
    """
    with reader_may_leave():
        try:
            parsed = build_parser().parse_args(arguments)
            code: int = parsed.command_function(parsed)
        except ConfigError as error:
            print(f"tfdist: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return INTERRUPTED
        return code
