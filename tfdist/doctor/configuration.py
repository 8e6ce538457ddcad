"""Reads `TF_CONFIG` and finds every independent mistake in it.

The rules are those of `Task`, which raises at the first mistake. So each mistake is recorded and
replaced by something valid, and `Task` is called again, until it accepts the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tfdist.doctor.finding import Finding
from tfdist.errors import ConfigError
from tfdist.task import TASK_TYPES, ClusterSpec, Task, cluster_tasks

_LONGEST_VALUE = 80
_PLACE = re.compile(r"(.+)\[([0-9]+)\]")

# For each check: why it matters, and what to do.
_ADVICE = {
    "tf_config.json": (
        "TensorFlow cannot parse it, and a process without a role trains alone or fails.",
        "Write it with json.dumps; in a shell, put single quotes around it.",
    ),
    "tf_config.task": (
        "Without a type and an index the process does not know which task it is.",
        'Add "task": {"type": "worker", "index": 0}, with the task\'s own type and index.',
    ),
    "tf_config.type": (
        "This process has no valid role, so the other tasks wait for a task that never starts.",
        f"Use one of {', '.join(TASK_TYPES)}.",
    ),
    "tf_config.index": (
        "The process has no address in the cluster, so its server cannot start.",
        "Count from 0, and use the same cluster for every process.",
    ),
    "tf_config.cluster": (
        "The other tasks cannot reach a task without an address in the cluster.",
        'Write lists of addresses: "cluster": {"ps": ["host:2222"], "worker": ["host:2223"]}.',
    ),
    "tf_config.evaluator": (
        "TensorFlow expects every task in the cluster to serve, and may wait for the evaluator.",
        "Remove it from 'cluster'; only its own 'task' names it.",
    ),
    "tf_config.chief": (
        "Two chiefs would both initialize and save the model.",
        "Keep one, and make the others workers.",
    ),
    "tf_config.master": (
        "'master' is the chief's name in TensorFlow 1; newer code may not know it.",
        "Write 'chief'.",
    ),
    "tf_config.address": (
        "No other task can connect to this address.",
        "Write host:port, with brackets around an IPv6 address: [fd00::1]:2222.",
    ),
    "tf_config.same_address": (
        "Only one of the two can have the port; the other fails, or gets half of the connections.",
        "Give each task an address of its own.",
    ),
    "tf_config.repeated_key": (
        "JSON keeps only the last one and silently drops the others, with all their tasks.",
        "Merge them under one key.",
    ),
}


@dataclass(frozen=True)
class Configuration:
    """The job that `TF_CONFIG` describes.

    Attributes:
        findings: the mistakes.
        task: the name of this process's task; None if there is none or a mistake hides it.
        cluster: the addresses by type, with an unused name in place of each mistake.
        addresses: the valid addresses by task name.
        num_trainers: the number of chiefs and workers; None without a cluster.
    """

    findings: tuple[Finding, ...]
    task: str | None
    cluster: ClusterSpec
    addresses: Mapping[str, str]
    num_trainers: int | None


def read(environ: Mapping[str, str]) -> Configuration:
    """Reads `TF_CONFIG`; a mistake becomes a finding, not an exception."""
    text = environ.get("TF_CONFIG", "")
    if not text.strip():
        return Configuration((_absent("TF_CONFIG" in environ),), None, {}, {}, None)
    repeated: list[str] = []
    try:
        config = json.loads(text, object_pairs_hook=partial(_object, repeated))
    except json.JSONDecodeError:
        config = None
    findings = [
        _advise("tf_config.repeated_key", f"TF_CONFIG has {key!r} twice") for key in repeated
    ]
    if isinstance(config, dict):
        findings += _rename_master(config)
        findings += _remove_evaluator(config)
        text = json.dumps(config)
    stated = json.dumps(config["task"]) if isinstance(config, dict) and "task" in config else ""
    placeholders: set[str] = set()
    task = None
    while task is None:
        try:
            task = Task.from_env({"TF_CONFIG": text})
        except ConfigError as error:
            findings.append(_mistake(error, config))
            if not isinstance(config, dict):
                return Configuration(tuple(findings), None, {}, {}, None)
            placeholders.add(placeholder := f"mistake-{len(findings)}.invalid:1")
            _repair(config, error.field, placeholder)
            text = json.dumps(config)
    addresses = {
        each.name: each.address
        for each in cluster_tasks(task.cluster_spec)
        if each.address not in placeholders
    }
    return Configuration(
        tuple(findings),
        task.name if stated == json.dumps(config["task"]) else None,
        task.cluster_spec,
        addresses,
        len(task.trainers) if task.cluster_spec else None,
    )


def _absent(is_set: bool) -> Finding:
    return Finding(
        "tf_config.absent",
        "note",
        "TF_CONFIG is set but empty" if is_set else "TF_CONFIG is not set",
        "This process has no cluster, so there are no addresses and no role to check.",
        "`tfdist run` sets it for each task that it starts. Otherwise set it yourself, or let your "
        "scheduler set it.",
    )


def _advise(check: str, what: str, severity: str = "error") -> Finding:
    why, fix = _ADVICE[check]
    return Finding(check, severity, what, why, fix)


def _object(repeated: list[str], pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            repeated.append(key)
        found[key] = value
    return found


def _rename_master(config: dict[str, Any]) -> list[Finding]:
    """Renames the master to chief, unless the cluster has both, which `Task` rejects."""
    task, cluster = config.get("task"), config.get("cluster")
    where = []
    if isinstance(task, dict) and task.get("type") == "master":
        task["type"] = "chief"
        where.append("task.type")
    if isinstance(cluster, dict) and "master" in cluster and "chief" not in cluster:
        cluster["chief"] = cluster.pop("master")
        where.append("cluster")
    if not where:
        return []
    what = f"TF_CONFIG has 'master' in {' and '.join(where)}; tfdist reads it as 'chief'"
    return [_advise("tf_config.master", what, "note")]


def _remove_evaluator(config: dict[str, Any]) -> list[Finding]:
    """Removes the evaluator from the cluster, as `Task` does."""
    cluster = config.get("cluster")
    if not isinstance(cluster, dict) or "evaluator" not in cluster:
        return []
    what = f"TF_CONFIG.cluster.evaluator is {cluster.pop('evaluator')!r}; tfdist ignores it"
    return [_advise("tf_config.evaluator", what, "warning")]


def _mistake(error: ConfigError, config: object) -> Finding:
    value = repr(error.value)
    if len(value) > _LONGEST_VALUE:
        value = value[: _LONGEST_VALUE - 3] + "..."
    return _advise(_check(error, config), f"{error.field}: got {value}; {error.rule}")


def _check(error: ConfigError, config: object) -> str:
    match error.field.split(".", 2)[1:]:
        case []:
            return "tf_config.task" if isinstance(config, dict) else "tf_config.json"
        case ["task"]:
            return "tf_config.task"
        case ["task", part]:
            return f"tf_config.{part}"
        case ["cluster"]:
            # An object is rejected only for having both a chief and a master.
            both = isinstance(config, dict) and isinstance(config.get("cluster"), dict)
            return "tf_config.chief" if both else "tf_config.cluster"
        case [_, "chief"] if isinstance(error.value, list):
            return "tf_config.chief"
        case [_, part] if _PLACE.fullmatch(part):
            is_valid = _is_address(error.value)
            return "tf_config.same_address" if is_valid else "tf_config.address"
        case _:
            return "tf_config.cluster"


def _is_address(value: Any) -> bool:
    try:
        Task("worker", 0, {"worker": [value]})
    except ConfigError:
        return False
    return True


def _repair(config: dict[str, Any], field: str, placeholder: str) -> None:
    """Replaces `field` by something valid.

    A consequence of the mistake must not become a second finding: if a task's list is gone, its
    index is not wrong. Such a task becomes an evaluator, whose index has no upper bound.
    """
    task: Any = config.get("task")
    cluster: Any = config.get("cluster")
    match field.split(".", 2)[1:]:
        case []:
            if "type" in task:
                task["index"] = 0
                _forget_place(task)
            else:
                task["type"] = "evaluator"
        case ["task"]:
            config["task"] = {"type": "evaluator", "index": 0}
        case ["task", part]:
            task["type"] = "evaluator"
            if part == "index":
                task["index"] = 0
        case ["cluster"] if isinstance(cluster, dict):
            del cluster["master"]  # the cluster has a chief too
        case ["cluster"]:
            config["cluster"] = {}
            _forget_place(task)
        case [_, "chief"] if isinstance(cluster["chief"], list):
            del cluster["chief"][1:]
            if task["type"] == "chief":
                _forget_place(task)
        case [_, part] if part in cluster:
            del cluster[part]
            _forget_place(task)
        case [_, part]:
            place = _PLACE.fullmatch(part)
            assert place is not None
            addresses = list(cluster[place[1]])
            addresses[int(place[2])] = placeholder
            cluster[place[1]] = addresses


def _forget_place(task: Any) -> None:
    if isinstance(task, dict) and task.get("type") in TASK_TYPES:
        task["type"] = "evaluator"
