"""Examines the environment of a task before its job starts.

Starts no task, changes nothing, and does not import TensorFlow. There is one exception: if
`TFDIST_CLUSTER_ID` is set and a ps answers, a helper process imports TensorFlow to read the ps's
id.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping

from tfdist.cluster.identity import ID_VARIABLE
from tfdist.deadline import Deadline
from tfdist.doctor import configuration, environment, network, script
from tfdist.doctor.finding import Finding, by_severity
from tfdist.doctor.machine import Machine
from tfdist.errors import ConfigError, checked_path, checked_secs


def examine(
    environ: Mapping[str, str] = os.environ,
    *,
    script_path: str | None = None,
    data_pattern: str | None = None,
    timeout: float = 5.0,
    machine: Machine | None = None,
) -> list[Finding]:
    """Returns what will or may go wrong with the job, errors first.

    Blocks for `timeout` seconds while it connects to all tasks of `TF_CONFIG` in parallel, and for
    up to 60 s more if it reads the id of a ps.

    Args:
        environ: the environment of a task.
        script_path: the training script, which is read and not run.
        data_pattern: a glob of the files that the workers share.
        timeout: in seconds, for all tasks together.
        machine: how to ask this machine; for tests.

    Raises:
        ConfigError: the timeout is not a positive number, or the script cannot be read.
    """
    if not isinstance(environ, Mapping):
        raise ConfigError("environ", environ, "must be environment variables by name")
    if script_path is not None:
        script_path = checked_path("script_path", script_path)
    if data_pattern is not None:
        data_pattern = checked_path("data_pattern", data_pattern)
    try:
        timeout = checked_secs("timeout", timeout, may_be_0=False, most=1e9)
    except ConfigError:
        raise ConfigError("timeout", timeout, "must be a number of seconds above 0") from None
    machine = machine or Machine()
    tree, findings = script.parse(script_path) if script_path is not None else (None, [])
    job = configuration.read(environ)
    findings += job.findings
    findings += _network(job, environ.get(ID_VARIABLE), timeout, machine)
    if job.addresses:  # without a cluster its launcher still has to set these
        findings += environment.proxies(environ, job.addresses)
        findings += environment.fail_fast(environ)
        findings += environment.reuse_port(environ, job.addresses.get(job.task or ""))
        findings += environment.gpus(environ, job.task, machine.gpus)
    findings += environment.tensorflow(machine.installed)
    findings += environment.legacy_keras(machine.installed, environ)
    if tree is not None or script_path is None:
        findings += environment.keras_fit(machine.installed, environ, tree)
    if script_path is not None and tree is not None:
        findings += script.check(script_path, tree)
    if data_pattern is not None:
        findings += check_data(data_pattern, job.num_trainers)
    return by_severity(findings)


def task_name(environ: Mapping[str, str] = os.environ) -> str | None:
    """The task that `TF_CONFIG` names, such as "worker:1"; None if it names no valid one."""
    return configuration.read(environ).task


def _network(
    job: configuration.Configuration, identity: str | None, timeout: float, machine: Machine
) -> list[Finding]:
    answers = network.probe(job.addresses, machine.resolve, Deadline(timeout))
    answers = network.identified(answers, job.cluster, identity, machine.read_identities)
    own_addresses = machine.own_addresses()
    return [
        *network.others(answers, job.task),
        *network.own_task(answers, job.task, own_addresses, machine.is_taken),
        *network.loopback(job.addresses),
        *network.same_server(answers),
        *network.exposure(own_addresses),
    ]


def check_data(pattern: str, num_trainers: int | None) -> list[Finding]:
    """Checks the files that match `pattern`, in which `**` matches any number of folders."""
    if "://" in pattern:
        return [
            Finding(
                "data.remote",
                "note",
                f"{pattern} was not checked",
                "Only TensorFlow can read this file system.",
                "Count the files with that system's own tools.",
            )
        ]
    files = [path for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)]
    if not files:
        return [
            Finding(
                "data.no_match",
                "error",
                f"no file on this machine matches {pattern}",
                "There is nothing to train on, and a worker without data may hang the others.",
                "Check the pattern and what is mounted here. In a shell, quote the pattern.",
            )
        ]
    findings = []
    if empty := [path for path in files if os.path.getsize(path) == 0]:
        findings.append(
            Finding(
                "data.empty",
                "warning",
                f"{len(empty)} of {len(files)} files are empty: {', '.join(empty)}",
                "A trainer that gets only such files has no examples and ends before the others.",
                "Check the program that wrote them, or exclude them.",
            )
        )
    if num_trainers is not None and len(files) < num_trainers:
        findings.append(
            Finding(
                "data.too_few_files",
                "warning",
                f"{len(files)} files for {num_trainers} trainers",
                "If each trainer reads its share of the files, some trainers get none. They end at "
                "the start, and in synchronous training the others wait for them.",
                "Split the data into more files, shard by examples, or start fewer workers.",
            )
        )
    return findings
