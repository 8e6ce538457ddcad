"""The command `tfdist`."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from importlib import metadata

from tfdist import __version__
from tfdist.cli import compose, doctor, export, node, plan, repro, run, serve, stacks, status
from tfdist.cli.arguments import Parser
from tfdist.cli.output import open_closed_streams, reader_may_leave, say
from tfdist.errors import INTERRUPTED, USAGE, ConfigError


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser: argparse.ArgumentParser = Parser(
        prog="tfdist",
        description="Runs and diagnoses TensorFlow parameter-server jobs.",
    )
    parser.add_argument(
        "--version",
        action=_ShowVersions,
        nargs=0,
        help="print the versions of tfdist, TensorFlow and Python",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run.add_parser(commands)
    node.add_parser(commands)
    compose.add_parser(commands)
    doctor.add_parser(commands)
    stacks.add_parser(commands)
    status.add_parser(commands)
    repro.add_parser(commands)
    export.add_parser(commands)
    serve.add_parser(commands)
    plan.add_parser(commands)
    return parser


class _ShowVersions(argparse.Action):
    """Prints the versions that a bug report needs, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"tfdist {__version__}")
        print(f"TensorFlow {_tensorflow_version()}")
        print(f"Python {platform.python_version()}")
        parser.exit()


def _tensorflow_version() -> str:
    """The version of each distribution that provides TensorFlow; nothing is imported."""
    names = metadata.packages_distributions().get("tensorflow", [])
    found = [f"{metadata.version(name)} ({name})" for name in sorted(set(names))]
    return ", ".join(found) or "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    The code is 2 for wrong input and for a missing TensorFlow, 130 after Ctrl-C.

    Raises:
        SystemExit: wrong usage, or no process reads the output.
    """
    open_closed_streams()
    with reader_may_leave():
        try:
            parsed = build_parser().parse_args(arguments)
            code: int = parsed.command_function(parsed)
        except ConfigError as error:
            say(str(error))
            return USAGE
        except ModuleNotFoundError as error:
            if error.name != "tensorflow":
                raise
            say(str(error))
            return USAGE
        except KeyboardInterrupt:
            return INTERRUPTED
        return code
