"""`tfdist compose`: a job as a file for docker compose, docker swarm or Kubernetes."""

from __future__ import annotations

import argparse
import os

from tfdist.cli.arguments import add_script, script_of
from tfdist.cluster.shape import Shape
from tfdist.deploy import CHECKPOINTS, FORMATS, WORKING_DIR, Deployment
from tfdist.errors import ConfigError

_DESCRIPTION = """\
Writes a parameter-server job to standard output, for what runs containers: a service for each
task, with its TF_CONFIG, on a network of their own. Each runs `tfdist node`. The file begins with
how to use it.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `compose` to the subcommands."""
    parser = commands.add_parser(
        "compose",
        help="write a job for docker compose, swarm or Kubernetes",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--for",
        dest="form",
        choices=FORMATS,
        default="compose",
        help="what will run it (default: compose)",
    )
    parser.add_argument("--ps", type=int, default=1, help="parameter servers (default: 1)")
    parser.add_argument("--workers", type=int, default=2, help="workers (default: 2)")
    parser.add_argument(
        "--chief", action="store_true", help="have a task `chief`; else worker 0 is the chief"
    )
    parser.add_argument(
        "--coordinator",
        action="store_true",
        help="for a ClusterCoordinator: the chief alone runs the script, the workers are servers",
    )
    parser.add_argument(
        "--classic-flags",
        action="store_true",
        help="also give the script --ps_hosts, --worker_hosts, --job_name and --task_index",
    )
    parser.add_argument(
        "--image", default=Deployment.image, help=f"with tfdist in it (default: {Deployment.image})"
    )
    parser.add_argument(
        "--source",
        metavar="DIR",
        help=f"a folder, as seen from the file, that is {WORKING_DIR} in each task, read-only; "
        "only for compose (default: the image has the script)",
    )
    parser.add_argument(
        "--checkpoints",
        metavar="DIR",
        default=CHECKPOINTS,
        help=f"where a task finds the folder that outlives it (default: {CHECKPOINTS})",
    )
    parser.add_argument(
        "--name",
        default=Deployment.name,
        help=f"of the job, for kubernetes and tfjob (default: {Deployment.name})",
    )
    add_script(parser, f"the Python script, from {WORKING_DIR} on")
    parser.set_defaults(command_function=command)


def command(parsed: argparse.Namespace) -> int:
    """Prints the file and returns the exit code."""
    if parsed.ps < 0:
        raise ConfigError("--ps", parsed.ps, "at least 0")
    if parsed.workers < 1:
        raise ConfigError("--workers", parsed.workers, "at least 1")
    if parsed.classic_flags and (parsed.chief or parsed.coordinator):
        other = "--chief" if parsed.chief else "--coordinator"
        raise ConfigError(other, True, "--classic-flags know only ps and workers")
    if parsed.source is not None:
        _check_source(parsed)
    if parsed.name != Deployment.name and parsed.form not in ("kubernetes", "tfjob"):
        raise ConfigError("--name", parsed.name, "only for kubernetes and tfjob")
    script = script_of(parsed)
    job = Deployment(
        Shape(parsed.ps, parsed.workers, parsed.chief, coordinator=parsed.coordinator),
        script.path,
        tuple(script.arguments),
        script.classic_flags,
        parsed.image,
        parsed.checkpoints,
        parsed.source,
        parsed.name,
    )
    print(FORMATS[parsed.form](job), end="")
    return 0


def _check_source(parsed: argparse.Namespace) -> None:
    if parsed.form != "compose":
        rule = f"only for compose; {parsed.form} takes the script from the image"
        raise ConfigError("--source", parsed.source, rule)
    if not parsed.source or ":" in parsed.source:
        raise ConfigError("--source", parsed.source, "a folder, without a : in its path")
    # As seen from here: where the file will lie is not known.
    path = os.path.join(parsed.source, parsed.script)
    if os.path.isdir(parsed.source) and not os.path.isfile(path):
        raise ConfigError("script", parsed.script, f"a file in --source {parsed.source}")
