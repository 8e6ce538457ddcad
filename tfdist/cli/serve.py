"""`tfdist serve`: builds, starts and verifies the C++ prediction server."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import NoReturn

from tfdist import serving
from tfdist.cli.arguments import add_json
from tfdist.cli.output import PipeConsole, say
from tfdist.errors import HELD, NOT_HELD, TASK_FAILED, USAGE, ConfigError, DataError, ServerError
from tfdist.lazy import require_tensorflow
from tfdist.serving.process import environment

_DESCRIPTION = """\
Answers requests over HTTP from exported models, by TensorFlow Serving's REST API and by the Open
Inference Protocol (KServe, Triton). The server is a C++ program without Python. The first start
builds it with the libraries of the installed TensorFlow, which takes about 40 s; it needs cmake,
g++, make, and the headers of Boost and simdjson. New versions of a model replace old ones while it
runs.

  tfdist serve MODEL_DIR...       serve models; MODEL_DIR contains the versions 1, 2, ...
  tfdist serve build              only build the server, and print its path
  tfdist serve verify MODEL_DIR   compare its answers with Python's, and time them

For example, on a terminal and on another one:

  tfdist serve models/ratings
  curl http://127.0.0.1:8501/v1/models/ratings:predict -d '{"instances": [{"user": 7, "item": 1}]}'
"""

# Each has the same name as an option of the server, which checks the range of its value.
_OPTIONS = {
    "host": ("ADDRESS", "where to listen (default: 127.0.0.1, this machine only)"),
    "port": ("PORT", "0 for a free one (default: 8501)"),
    "threads": ("N", "how many requests run at the same time (default: one per processor)"),
    "max-batch-rows": ("N", "requests that wait run together, up to so many rows (default: 1)"),
    "max-waiting": ("N", "further requests are answered with 503 (default: 1000)"),
    "max-body-mb": ("N", "a larger body is answered with 413 (default: 16)"),
    "versions": ("N", "how many of the newest versions of a model to serve (default: 1)"),
    "poll-ms": ("N", "milliseconds between two looks for new versions (default: 1000)"),
    "drain-seconds": ("N", "after SIGTERM, for requests that still run (default: 30)"),
    "access-log": ("FILE", "one line for each request; - for standard output (default: none)"),
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `serve` to the subcommands."""
    parser = commands.add_parser(
        "serve",
        help="answer requests from exported models, by a C++ server",
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL_DIR",
        help="the folder of a model, or of a version; NAME=MODEL_DIR names it; or see above",
    )
    for name, (metavar, about) in _OPTIONS.items():
        number = int if metavar in ("N", "PORT") else str
        parser.add_argument(f"--{name}", type=number, metavar=metavar, help=about)
    parser.add_argument(
        "--wait", action="store_true", help="start although a model has no version yet"
    )
    add_json(parser)
    parser.set_defaults(command_function=command)


def command(parsed: argparse.Namespace) -> int:
    """Builds or verifies, or becomes the server; then it does not return."""
    require_tensorflow("tfdist serve")
    action, *rest = parsed.models
    try:
        if action == "build":
            return _build(rest, as_json=parsed.json)
        if action == "verify":
            return _verify(rest, as_json=parsed.json)
        _serve(parsed)
    except DataError as error:
        say(str(error))
        return USAGE
    except ServerError as error:
        say(str(error))
        return TASK_FAILED


def _serve(parsed: argparse.Namespace) -> NoReturn:
    options = [flag for name in _OPTIONS for flag in _given(name, parsed)]
    if parsed.wait:
        options.append("--wait")
    if parsed.json:
        options.append("--json")
    program = serving.build_server()
    os.execve(program, [program, *options, "--", *parsed.models], environment())


def _given(name: str, parsed: argparse.Namespace) -> list[str]:
    value = getattr(parsed, name.replace("-", "_"))
    return [] if value is None else [f"--{name}", str(value)]


def _build(rest: list[str], *, as_json: bool) -> int:
    if rest:
        raise ConfigError("build", rest[0], "takes no folder; a model named build is ./build")
    path = serving.build_server()
    print(json.dumps({"path": path, "exit_code": HELD}) if as_json else path)
    return HELD


def _verify(rest: list[str], *, as_json: bool) -> int:
    if len(rest) != 1:
        raise ConfigError("MODEL_DIR", rest, "must be one folder after verify")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import, which logs
    try:
        found = serving.verify_model(rest[0])
    except ConfigError as error:
        raise ConfigError("MODEL_DIR", error.value, error.rule) from error
    code = NOT_HELD if found.different else HELD
    if as_json:
        print(json.dumps({**asdict(found), "exit_code": code}))
        return code
    console = PipeConsole(highlight=False)
    console.out(f"{found.path}: {found.num_requests} requests of golden.json")
    console.out(f"  largest difference to Python: {found.largest_difference:.3g}")
    console.out(
        f"  p50 {found.p50_ms:.2f} ms, p99 {found.p99_ms:.2f} ms "
        f"({found.num_timed} requests, one after the other)"
    )
    for each in found.different:
        say(f"not the same as Python or as the export: {each}")
    return code
