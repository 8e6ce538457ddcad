"""The parser of the commands, and arguments that several of them have."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import textwrap
from collections.abc import Sequence
from typing import Any

from tfdist.cluster.script import Script
from tfdist.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Parses a command, or one of its subcommands.

    An unknown flag is an error of the subcommand, with a suggestion; argparse would report it with
    the usage of the whole command.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **options)

    def parse_known_args(  # type: ignore[override]  # the overloads differ only in the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parses the arguments; ends the program if one is unknown."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = [one[2:].partition("=")[0] for one in unknown if one.startswith("--")]
            close = self._like(flags[0]) if flags else []
            hint = f"; did you mean --{close[0]}?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed, unknown

    def _like(self, typed: str) -> list[str]:
        """The flag that was probably meant: the shortest that starts so, or the most similar."""
        known = [flag[2:] for flag in self._option_string_actions if flag.startswith("--")]
        longer = sorted((flag for flag in known if flag.startswith(typed)), key=len)
        return longer[:1] or difflib.get_close_matches(typed, known, 1)


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps the paragraphs of a description, except indented examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = textwrap.dedent(text).strip().split("\n\n")
        return "\n\n".join(
            part if part.startswith(" ") else textwrap.fill(" ".join(part.split()), width)
            for part in parts
        )

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.REMAINDER:
            return f"[{default_metavar} ...]"
        return super()._format_args(action, default_metavar)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds RUN, which `tfdist.runs.live.chosen_run` reads."""
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="the folder of a run, or a folder that contains runs (default: your only running job)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )


def check_counts(parsed: argparse.Namespace) -> None:
    """Raises ConfigError if --ps or --workers is too small."""
    if parsed.ps < 0:
        raise ConfigError("--ps", parsed.ps, "must be at least 0")
    if parsed.ps < 1 and parsed.coordinator:
        raise ConfigError("--ps", parsed.ps, "must be at least 1 with --coordinator")
    if parsed.workers < 1:
        raise ConfigError("--workers", parsed.workers, "must be at least 1")


def check_grace(parsed: argparse.Namespace) -> None:
    """Raises ConfigError if --grace is no time."""
    if not 0 <= parsed.grace < math.inf:
        raise ConfigError("--grace", parsed.grace, "must be a number of seconds, at least 0")


def add_module(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds -m, with which the script is a module, for `script_of`."""
    parser.add_argument(
        "-m",
        "--module",
        action="store_true",
        help="the script is a module, such as trainer.task, and runs as under `python -m`",
    )


def add_script(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Adds the script and its arguments, for `script_of`."""
    parser.add_argument("script", help=meaning)
    rest = parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="arguments for the script; a -- may come before them",
    )
    rest.required = False  # or Python 3.11 reports it as missing when the script is


def check_script(parsed: argparse.Namespace) -> None:
    """Raises ConfigError if the script is no file that can be read.

    Only a task knows whether a module exists.
    """
    path = parsed.script
    if parsed.module:
        if path.startswith(".") or path.endswith(".py"):
            raise ConfigError("-m", path, "must be the full name of a module, without .py")
        return
    if os.path.isdir(path):
        raise ConfigError("script", path, "must be a file, and is a folder")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise ConfigError("script", path, "must be a regular file")
    if not os.path.isfile(path):
        raise ConfigError("script", path, "the file does not exist")
    try:
        open(path, "rb").close()
    except OSError as error:
        raise ConfigError("script", path, f"cannot be read: {error.strerror}") from error


def script_of(parsed: argparse.Namespace) -> Script:
    """The script, its arguments, and whether it gets the classic flags."""
    arguments = parsed.arguments[1:] if parsed.arguments[:1] == ["--"] else parsed.arguments
    is_module = getattr(parsed, "module", False)
    return Script(parsed.script, arguments, parsed.classic_flags, is_module)
