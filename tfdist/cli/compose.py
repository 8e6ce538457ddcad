"""`tfdist compose`: writes a job as a file for docker compose, docker swarm or Kubernetes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping

from tfdist.cli.arguments import add_script, check_counts, script_of
from tfdist.cluster.shape import Shape
from tfdist.deploy.deployment import CHECKPOINTS, WORKING_DIR, Deployment
from tfdist.deploy.docker import compose_file, stack_file
from tfdist.deploy.kubernetes import kubernetes_manifest, tfjob_manifest
from tfdist.errors import HELD, ConfigError

FORMATS: Mapping[str, Callable[[Deployment], str]] = {
    "compose": compose_file,
    "swarm": stack_file,
    "kubernetes": kubernetes_manifest,
    "tfjob": tfjob_manifest,
}

_DESCRIPTION = """\
Writes a parameter-server job as one file to standard output, and starts nothing. Each task is a
service or pod that runs `tfdist node` with its own TF_CONFIG, on a network that only the job can
reach. The first lines of the file are comments that say how to start and end the job.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `compose` to the subcommands."""
    parser = commands.add_parser(
        "compose",
        help="write a job for docker compose, swarm or Kubernetes",
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "--for",
        dest="form",
        choices=FORMATS,
        default="compose",
        help="the system that runs the job (default: compose)",
    )
    parser.add_argument("--ps", type=int, default=1, metavar="N", help="number of ps (default: 1)")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="number of workers (default: 2)"
    )
    parser.add_argument(
        "--chief", action="store_true", help="add a task `chief`; without it worker 0 is the chief"
    )
    parser.add_argument(
        "--coordinator",
        action="store_true",
        help="for ClusterCoordinator: only the chief runs the script; the workers are servers",
    )
    parser.add_argument(
        "--classic-flags",
        action="store_true",
        help="also pass --ps_hosts, --worker_hosts, --job_name and --task_index to the script",
    )
    parser.add_argument(
        "--image",
        default=Deployment.image,
        metavar="IMAGE",
        help=f"the image; it must contain tfdist (default: {Deployment.image})",
    )
    parser.add_argument(
        "--source",
        metavar="DIR",
        help=f"folder to mount read-only as {WORKING_DIR} in each task, relative to the file; "
        "compose only (default: the image contains the script)",
    )
    parser.add_argument(
        "--checkpoints",
        metavar="DIR",
        default=CHECKPOINTS,
        help=f"the folder in each task that outlives the task (default: {CHECKPOINTS})",
    )
    parser.add_argument(
        "--name",
        default=Deployment.name,
        metavar="NAME",
        help=f"the job's name; kubernetes and tfjob only (default: {Deployment.name})",
    )
    add_script(parser, f"the Python script, relative to {WORKING_DIR}")
    parser.set_defaults(command_function=command)


def command(parsed: argparse.Namespace) -> int:
    """Prints the file and returns the exit code."""
    check_counts(parsed)
    if parsed.classic_flags and (parsed.chief or parsed.coordinator):
        other = "--chief" if parsed.chief else "--coordinator"
        raise ConfigError(other, True, "cannot be combined with --classic-flags")
    if parsed.source is not None:
        _check_source(parsed)
    if parsed.name != Deployment.name and parsed.form not in ("kubernetes", "tfjob"):
        raise ConfigError("--name", parsed.name, "needs --for kubernetes or --for tfjob")
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
    return HELD


def _check_source(parsed: argparse.Namespace) -> None:
    if parsed.form != "compose":
        rule = f"needs --for compose; with {parsed.form} the image contains the script"
        raise ConfigError("--source", parsed.source, rule)
    if not parsed.source or ":" in parsed.source:
        raise ConfigError("--source", parsed.source, "must be a folder whose path has no colon")
    # Seen from the current folder, because the place of the file is not known yet.
    path = os.path.join(parsed.source, parsed.script)
    if os.path.isdir(parsed.source) and not os.path.isfile(path):
        raise ConfigError("script", parsed.script, f"must be a file in --source {parsed.source}")
