"""`tfdist doctor`: prints what would keep a job from starting."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections import Counter
from dataclasses import asdict

from rich.text import Text

from tfdist.cli.arguments import add_json
from tfdist.cli.output import PipeConsole
from tfdist.doctor.examination import examine, task_name
from tfdist.doctor.finding import SEVERITIES, Finding
from tfdist.errors import HELD, NOT_HELD, ConfigError

_COLORS = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_NARROWEST = 20

_DESCRIPTION = """\
Checks the environment of one task of a parameter-server job: TF_CONFIG, the addresses of the other
tasks, ports, proxies, GPUs, versions, and the script if you name it. Run it where the task will
run. It starts no task and changes nothing. Exit code 1 means that it found at least one error.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `doctor` to the subcommands."""
    parser = commands.add_parser(
        "doctor",
        help="check the environment of a task before the job starts",
        description=_DESCRIPTION,
    )
    add_json(parser)
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds to wait for all tasks together (default: 5)",
    )
    parser.add_argument("--data", metavar="GLOB", help="the files that the workers share; quote it")
    parser.add_argument("script", nargs="?", help="the training script, which is read and not run")
    parser.set_defaults(command_function=command)


def command(parsed: argparse.Namespace) -> int:
    """Prints the findings and returns the exit code."""
    try:
        findings = examine(
            script_path=parsed.script, data_pattern=parsed.data, timeout=parsed.timeout
        )
    except ConfigError as error:
        if error.field != "timeout":
            raise
        raise ConfigError("--timeout", error.value, error.rule) from None
    counts = Counter(finding.severity for finding in findings)
    if parsed.json:
        report = {
            "task": task_name(),
            "findings": [asdict(finding) for finding in findings],
            "errors": counts["error"],
            "warnings": counts["warning"],
            "notes": counts["note"],
        }
        print(json.dumps(report))
    else:
        _print(findings, counts)
    return NOT_HELD if counts["error"] else HELD


def _print(findings: list[Finding], counts: Counter[str]) -> None:
    console = PipeConsole(highlight=False)
    for finding in findings:
        console.print(
            Text.assemble((finding.severity, _COLORS[finding.severity]), f"  {finding.check}")
        )
        for label, text in (("", finding.what), ("why: ", finding.why), ("fix: ", finding.fix)):
            console.print(Text(_wrapped(label, text, console.width)), soft_wrap=True)
        console.print()
    parts = [
        f"{counts[severity]} {severity}{'' if counts[severity] == 1 else 's'}"
        for severity in SEVERITIES
    ]
    console.print(", ".join(parts), soft_wrap=True)


def _wrapped(label: str, text: str, width: int) -> str:
    return textwrap.fill(
        text,
        max(width, _NARROWEST),
        initial_indent="  " + label,
        subsequent_indent="  " + " " * len(label),
        break_on_hyphens=False,
    )
