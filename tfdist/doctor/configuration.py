"""What `TF_CONFIG` says, and every mistake in it that can be told apart.

The rules are those of `Task`, which stops at the first mistake. So that mistake is noted and mended
with something that is certainly right, and `Task` is asked again, until it has nothing to say.
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

# Why it matters and what to do, by check.
_ADVICE = {
    "tf_config.json": (
        "TensorFlow cannot read it, and a process without a role trains alone or fails.",
        "Write it with json.dumps, and in a shell put single quotes around it.",
    ),
    "tf_config.task": (
        "Without type and index a process does not know which task of the cluster it is.",
        'Give it "task": {"type": "worker", "index": 0}, with its own type and index.',
    ),
    "tf_config.type": (
        "The process has no role, so the others wait for a task that never comes.",
        f"Use one of {', '.join(TASK_TYPES)}.",
    ),
    "tf_config.index": (
        "The process has no address in the cluster, so its server cannot start.",
        "Count from 0, and let every process have the same cluster.",
    ),
    "tf_config.cluster": (
        "Tasks that the cluster does not name rightly cannot be reached.",
        'Give it lists of addresses: "cluster": {"ps": ["host:2222"], "worker": ["host:2223"]}.',
    ),
    "tf_config.evaluator": (
        "TensorFlow's own tasks take it for one that serves, and may wait for it.",
        "Take it out of 'cluster'; only its own 'task' says that it is one.",
    ),
    "tf_config.chief": (
        "Two chiefs would both initialise and save the model.",
        "Keep one, and make the others workers.",
    ),
    "tf_config.master": (
        "TensorFlow 1 called the chief 'master', and newer code may not know it.",
        "Write 'chief'.",
    ),
    "tf_config.address": (
        "Nobody can reach the task, and whoever tries waits.",
        "Write host:port, and an IPv6 address in brackets: [fd00::1]:2222.",
    ),
    "tf_config.same_address": (
        "Only one of the two can have the port; the other fails, or takes half of its connections.",
        "Give each task an address of its own.",
    ),
    "tf_config.repeated_key": (
        "JSON takes the last one and drops the others in silence, with all their tasks.",
        "Merge them under one key.",
    ),
}


@dataclass(frozen=True)
class Configuration:
    """What the doctor knows of the job.

    Attributes:
        findings: the mistakes.
        task: name of this process's task; None where there is none, or a mistake leaves it open.
        cluster: addresses by type, with a name that nobody has in place of each mistake.
        addresses: those without a mistake, by task name.
        num_trainers: how many chiefs and workers; None without a cluster.
    """

    findings: tuple[Finding, ...]
    task: str | None
    cluster: ClusterSpec
    addresses: Mapping[str, str]
    num_trainers: int | None


def read(environ: Mapping[str, str]) -> Configuration:
    """Reads `TF_CONFIG`; a mistake is a finding, never an error."""
    text = environ.get("TF_CONFIG", "")
    if not text.strip():
        return Configuration((_absent(),), None, {}, {}, None)
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
        findings += _leave_out_evaluator(config)
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
            _mend(config, error.field, placeholder)
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


def _absent() -> Finding:
    return Finding(
        "tf_config.absent",
        "note",
        "TF_CONFIG is not set",
        "This process has no cluster, so there is no task to reach and no role to check.",
        "`tfdist run` sets it for each task it starts; elsewhere your scheduler has to, or you.",
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
    """Makes the master a chief; both in one cluster is a mistake, and left for `Task` to tell."""
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
    what = f"TF_CONFIG has 'master' in {' and '.join(where)}; it is taken as 'chief'"
    return [_advise("tf_config.master", what, "note")]


def _leave_out_evaluator(config: dict[str, Any]) -> list[Finding]:
    """Takes it out of the cluster, as `Task` does."""
    cluster = config.get("cluster")
    if not isinstance(cluster, dict) or "evaluator" not in cluster:
        return []
    what = f"TF_CONFIG.cluster.evaluator is {cluster.pop('evaluator')!r}; tfdist leaves it out"
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
            # Where it is an object, it has a chief and a master.
            both = isinstance(config, dict) and isinstance(config.get("cluster"), dict)
            return "tf_config.chief" if both else "tf_config.cluster"
        case [_, "chief"] if isinstance(error.value, list):
            return "tf_config.chief"
        case [_, part] if _PLACE.fullmatch(part):
            right = _is_address(error.value)
            return "tf_config.same_address" if right else "tf_config.address"
        case _:
            return "tf_config.cluster"


def _is_address(value: Any) -> bool:
    try:
        Task("worker", 0, {"worker": [value]})
    except ConfigError:
        return False
    return True


def _mend(config: dict[str, Any], field: str, placeholder: str) -> None:
    """Puts something right in place of `field`.

    What depends on it can no longer be told: a task whose list is gone has no wrong index. It
    becomes an evaluator, whose index has no upper bound.
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
            del cluster["master"]  # a chief is there too
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
