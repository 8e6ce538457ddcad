"""Looks at the environment in which a job is about to run, and tells what will go wrong.

Nothing here imports TensorFlow, and no task is started, nothing changed. Only where a ps answers
and `TFDIST_CLUSTER_ID` is set, a process beside this one imports it, to ask the ps of which run it
is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from tfdist.cluster.identity import ID_VARIABLE
from tfdist.deadline import Deadline
from tfdist.doctor import configuration, data, network, script, variables, versions
from tfdist.doctor.asking import ask
from tfdist.doctor.finding import SEVERITIES, Finding, by_severity
from tfdist.doctor.identities import identified
from tfdist.doctor.machine import Machine
from tfdist.errors import ConfigError

__all__ = ["SEVERITIES", "Finding", "Machine", "examine", "task_name"]


def examine(
    environ: Mapping[str, str] = os.environ,
    *,
    script_path: str | None = None,
    data_pattern: str | None = None,
    timeout: float = 5.0,
    machine: Machine | None = None,
) -> list[Finding]:
    """Everything about the job that can be seen before it starts; errors come first.

    Blocks while it calls the tasks that `TF_CONFIG` names, all at once; and for 60 s more at most
    where ps are to tell of which run they are.

    Args:
        environ: the environment of a task.
        script_path: the training script, which is read and not run.
        data_pattern: a glob of the files that the workers share.
        timeout: seconds for calling all tasks together.
        machine: how this machine is asked; for tests.

    Raises:
        ConfigError: the timeout is no positive number, or there is no such script.
    """
    if not (timeout > 0 and math.isfinite(timeout)):
        raise ConfigError("timeout", timeout, "a number of seconds above 0")
    machine = machine or Machine()
    tree, findings = script.parse(script_path) if script_path is not None else (None, [])
    job = configuration.read(environ)
    findings += job.findings
    findings += _network(job, environ.get(ID_VARIABLE), timeout, machine)
    if job.addresses:  # without a cluster whoever starts one sets these
        findings += variables.proxies(environ, job.addresses)
        findings += variables.fail_fast(environ)
        findings += variables.reuse_port(environ, job.addresses.get(job.task or ""))
        findings += variables.gpus(environ, job.task, machine.gpus)
    findings += versions.tensorflow(machine.installed)
    findings += versions.legacy_keras(machine.installed, environ)
    if tree is not None or script_path is None:
        findings += versions.keras_fit(machine.installed, environ, tree)
    if script_path is not None and tree is not None:
        findings += script.check(script_path, tree)
    if data_pattern is not None:
        findings += data.check(data_pattern, job.num_trainers)
    return by_severity(findings)


def task_name(environ: Mapping[str, str] = os.environ) -> str | None:
    """The task that `TF_CONFIG` names, such as "worker:1"; None where that is open."""
    return configuration.read(environ).task


def _network(
    job: configuration.Configuration, identity: str | None, timeout: float, machine: Machine
) -> list[Finding]:
    answers = ask(job.addresses, machine.resolve, Deadline(timeout))
    answers = identified(answers, job.cluster, identity, machine.read_identities)
    own_addresses = machine.own_addresses()
    return [
        *network.others(answers, job.task),
        *network.own_task(answers, job.task, own_addresses, machine.is_taken),
        *network.loopback(job.addresses),
        *network.same_server(answers),
        *network.exposure(own_addresses),
    ]
