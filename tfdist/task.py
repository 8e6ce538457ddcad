"""Which task of which cluster this program is.

TensorFlow, Kubernetes' TFJob, Slurm scripts and `tfdist run` name it in `TF_CONFIG`::

    {"cluster": {"ps": ["host0:2222"], "worker": ["host1:2222", "host2:2222"]},
     "task": {"type": "worker", "index": 1}}

Scripts of TensorFlow 1 have the flags `ps_hosts worker_hosts job_name task_index` instead, and
TensorFlow 2 has cluster resolvers. Each becomes a `Task`, and a wrong value becomes a ConfigError
that names the field.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tfdist.errors import ConfigError, checked_integer, did_you_mean

ClusterSpec = dict[str, list[str]]

# `tfdist run` sets it: the file in which the task may note its progress.
PROGRESS_VARIABLE = "TFDIST_PROGRESS_FILE"

TRAINER_TYPES = ("chief", "worker")
TASK_TYPES = (*TRAINER_TYPES, "ps", "evaluator")
_ADDRESS = re.compile(r"(?:([^\s:/\[\]]+)|\[([0-9a-fA-F:]+)\]):([0-9]{1,5})")
_HIGHEST_PORT = 65535
_NOT_SPARSE = (
    "must name every task, which a sparse cluster does not (for a TFJob, leave out "
    "enableDynamicWorker)"
)


class Address(NamedTuple):
    """The two parts of "host:port"; an IPv6 host has no brackets here, and has them in the text."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: object, field: str = "address") -> Address:
    """Splits "host:port" or "[ipv6]:port".

    Args:
        text: the address. The addresses of a `Task` are valid.
        field: the name of the address in an error.

    Raises:
        ConfigError: the text is no address.
    """
    match = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
    if match is None or not 1 <= int(match[3]) <= _HIGHEST_PORT:
        raise ConfigError(field, text, f"must be 'host:port', with a port of 1 to {_HIGHEST_PORT}")
    return Address(match[1] or match[2], int(match[3]))


@dataclass(frozen=True)
class Task:
    """One task of a cluster; plain data, made by `from_env`, `from_flags` or `from_resolver`.

    A *trainer* is a chief or a worker. If the cluster has no task `chief`, worker 0 is the chief.

    Attributes:
        task_type: "chief", "worker", "ps" or "evaluator".
        task_index: its place in `cluster_spec[task_type]`.
        cluster_spec: addresses "host:port" of all tasks by type. An evaluator is never in it.
    """

    task_type: str
    task_index: int
    cluster_spec: ClusterSpec

    def __post_init__(self) -> None:
        object.__setattr__(self, "cluster_spec", _checked_cluster(self.cluster_spec))
        if not isinstance(self.task_type, str) or self.task_type not in TASK_TYPES:
            raise ConfigError("task.type", self.task_type, _task_type_rule(self.task_type))
        object.__setattr__(self, "task_index", checked_integer("task.index", self.task_index, 0))
        if self.task_type == "evaluator":
            return
        addresses = self.cluster_spec.get(self.task_type, [])
        if self.task_index >= len(addresses):
            raise ConfigError(
                "task.index",
                self.task_index,
                f"the cluster has {len(addresses)} {self.task_type} task(s), numbered from 0",
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Task:
        """The task that `TF_CONFIG` names.

        Raises:
            ConfigError: it is missing, is no JSON, or names no task of its cluster.
        """
        if environ is not None and not isinstance(environ, Mapping):
            raise ConfigError("environ", environ, "must be environment variables by name")
        text = (os.environ if environ is None else environ).get("TF_CONFIG", "")
        if not isinstance(text, str):
            raise ConfigError("TF_CONFIG", text, "must be a text")
        if not text.strip():
            raise ConfigError(
                "TF_CONFIG", None, "start the script with `tfdist run`, which sets it", missing=True
            )
        try:
            config = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError("TF_CONFIG", text, f"is not JSON: {error}") from error
        if not isinstance(config, dict):
            raise ConfigError(
                "TF_CONFIG", text, "must be an object with the keys 'cluster' and 'task'"
            )
        if "sparseCluster" in config:  # Kubeflow's TFJob writes it instead of 'cluster'
            raise ConfigError("TF_CONFIG.sparseCluster", config["sparseCluster"], _NOT_SPARSE)
        task, cluster = _member(config, "task"), _member(config, "cluster")
        for key in ("type", "index"):
            if key not in task:
                raise ConfigError("TF_CONFIG", text, f"'task' has no key {key!r}")
        try:
            return cls(
                _without_master(task["type"]), _index(task["index"]), _training_cluster(cluster)
            )
        except ConfigError as error:
            raise ConfigError(f"TF_CONFIG.{error.field}", error.value, error.rule) from None

    @classmethod
    def from_flags(cls, flags: object) -> Task:
        """The task that the flags of a TensorFlow 1 script name.

        Args:
            flags: has the attributes `ps_hosts` and `worker_hosts` (addresses with commas between
                them), `job_name` and `task_index`: absl's FLAGS, or argparse's Namespace.

        Raises:
            ConfigError: a flag is missing, or the flags name no task of their cluster.
        """
        values = {}
        for name in ("ps_hosts", "worker_hosts", "job_name", "task_index"):
            if not hasattr(flags, name):
                raise ConfigError(name, None, "the flags have no such attribute", missing=True)
            values[name] = getattr(flags, name)
        job_name = values["job_name"]
        if not isinstance(job_name, str) or job_name not in ("ps", "worker"):
            raise ConfigError("job_name", job_name, "must be ps or worker")
        hosts = {key: values[f"{key}_hosts"] for key in ("ps", "worker")}
        cluster: dict[str, Any] = {
            key: value.split(",") if isinstance(value, str) else value
            for key, value in hosts.items()
            if not isinstance(value, str | list | tuple | None) or value
        }
        try:
            return cls(values["job_name"], values["task_index"], cluster)
        except ConfigError as error:
            renamed = {
                "task.index": "task_index",
                "cluster.ps": "ps_hosts",
                "cluster.worker": "worker_hosts",
            }
            field = renamed.get(error.field.split("[")[0], error.field)
            raise ConfigError(field, error.value, error.rule) from None

    @classmethod
    def from_resolver(cls, resolver: Any) -> Task:
        """The task that a cluster resolver of TensorFlow names.

        Errors of the resolver itself pass through.

        Args:
            resolver: a `tf.distribute.cluster_resolver.ClusterResolver`: its `cluster_spec()`,
                `task_type` and `task_id` are read.

        Raises:
            ConfigError: it is no resolver, does not know which task this is, or names no task of
                its cluster.
        """
        if not callable(getattr(resolver, "cluster_spec", None)):
            raise ConfigError("resolver", resolver, "must be a ClusterResolver of tf.distribute")
        # First, because SlurmClusterResolver knows its task only after this call.
        cluster = resolver.cluster_spec().as_dict()
        for name in ("task_type", "task_id"):
            if getattr(resolver, name) is None:
                rule = f"this resolver does not know which task this is: set its {name}"
                raise ConfigError(f"resolver.{name}", None, rule)
        # as_dict has an empty dict for a job without tasks.
        cluster = {task_type: tasks or [] for task_type, tasks in cluster.items()}
        try:
            return cls(
                _without_master(resolver.task_type),
                _index(resolver.task_id),
                _training_cluster(cluster),
            )
        except ConfigError as error:
            renamed = {"task.type": "task_type", "task.index": "task_id"}
            field = renamed.get(error.field) or error.field.replace("cluster", "cluster_spec", 1)
            raise ConfigError(f"resolver.{field}", error.value, error.rule) from None

    def to_env(self) -> str:
        """The value of `TF_CONFIG` for this task."""
        return json.dumps(
            {
                "cluster": self.cluster_spec,
                "task": {"type": self.task_type, "index": self.task_index},
            }
        )

    @property
    def name(self) -> str:
        """Such as "worker:1"."""
        return f"{self.task_type}:{self.task_index}"

    @property
    def address(self) -> str:
        """Its own "host:port".

        Raises:
            ConfigError: the task is an evaluator, which has no server.
        """
        if self.task_type == "evaluator":
            raise ConfigError("task.type", self.task_type, "an evaluator has no address")
        return self.cluster_spec[self.task_type][self.task_index]

    @property
    def num_ps(self) -> int:
        """The number of ps."""
        return len(self.cluster_spec.get("ps", []))

    @property
    def num_workers(self) -> int:
        """The number of workers, without a chief."""
        return len(self.cluster_spec.get("worker", []))

    @property
    def trainers(self) -> tuple[str, ...]:
        """Names of all trainers by rank, chief first."""
        return tuple(
            f"{task_type}:{index}"
            for task_type in TRAINER_TYPES
            for index in range(len(self.cluster_spec.get(task_type, [])))
        )

    @property
    def is_trainer(self) -> bool:
        """True for a chief and for a worker."""
        return self.task_type in TRAINER_TYPES

    @property
    def rank(self) -> int:
        """Its number among the trainers; that of the chief is 0.

        Raises:
            ConfigError: the task is no trainer.
        """
        if not self.is_trainer:
            raise ConfigError("task.type", self.task_type, "only a chief or a worker has a rank")
        return self.trainers.index(self.name)

    @property
    def is_chief(self) -> bool:
        """True for the trainer of rank 0."""
        return self.is_trainer and self.rank == 0

    @property
    def device(self) -> str:
        """Its machine in TensorFlow's notation: "/job:worker/task:1"."""
        return f"/job:{self.task_type}/task:{self.task_index}"

    @property
    def device_filters(self) -> list[str]:
        """The tasks that its session depends on: every ps and itself, never another trainer.

        Without filters a session waits for trainers that have not started yet, or have ended.
        """
        return ["/job:ps", self.device]


def checked_task(task: Any) -> Task:
    """The value of a parameter `task`.

    Raises:
        ConfigError: it is no Task.
    """
    if not isinstance(task, Task):
        raise ConfigError("task", task, "must be a tfdist.Task")
    return task


def cluster_tasks(cluster_spec: ClusterSpec) -> list[Task]:
    """All tasks of a cluster: ps first, then the trainers by rank."""
    return [
        Task(task_type, index, cluster_spec)
        for task_type in ("ps", *TRAINER_TYPES)
        for index in range(len(cluster_spec.get(task_type, [])))
    ]


def session_target(address: str) -> str:
    """The target of a session with the server at `address` that always uses gRPC.

    For a server in the same process TensorFlow bypasses gRPC, and with it deadlines: a run that is
    cancelled before its start then blocks for ever (LocalMaster, TensorFlow 2.21). TensorFlow finds
    its own servers by the address at their start, so this target uses the machine's other name.
    """
    host, port = parse_address(address)
    other_name = {"localhost": "127.0.0.1", "127.0.0.1": "localhost"}
    return f"grpc://{Address(other_name.get(host, host), port)}"


def _member(config: dict[str, object], key: str) -> dict[str, object]:
    value = config.get(key)
    if not isinstance(value, dict):
        rule = "must be an object"
        raise ConfigError(f"TF_CONFIG.{key}", value, rule, missing=key not in config)
    return value


def _index(value: object) -> int:
    # Kubernetes and shell templates often write the index as a string.
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value  # type: ignore[return-value]  # Task checks it and names it


def _without_master(task_type: object) -> str:
    # Task checks any other value.
    return "chief" if task_type == "master" else task_type  # type: ignore[return-value]


def _training_cluster(cluster: dict[str, object]) -> ClusterSpec:
    """`cluster` with a chief for a master, and without evaluators.

    An evaluator is outside the cluster, but Kubeflow's TFJob lists it, and TensorFlow accepts it.
    """
    if "master" in cluster:
        if "chief" in cluster:
            raise ConfigError(
                "cluster", sorted(cluster), "must not contain both 'master' and 'chief'"
            )
        warnings.warn("task type 'master' is taken as 'chief'", stacklevel=3)
    training = {_without_master(key): value for key, value in cluster.items() if key != "evaluator"}
    return training  # type: ignore[return-value]  # Task checks it


def _task_type_rule(task_type: object) -> str:
    hint = did_you_mean(task_type, TASK_TYPES) if isinstance(task_type, str) else ""
    return f"must be one of {', '.join(TASK_TYPES)}{hint}"


def _checked_cluster(cluster: Mapping[str, Sequence[str]]) -> ClusterSpec:
    """A plain copy of `cluster`, checked."""
    if not isinstance(cluster, Mapping):
        raise ConfigError("cluster", cluster, "must be addresses 'host:port' by task type")
    checked: ClusterSpec = {}
    for task_type, addresses in cluster.items():
        if not isinstance(task_type, str):
            raise ConfigError("cluster", task_type, f"the task type {_task_type_rule(task_type)}")
        field = f"cluster.{task_type}"
        if task_type == "evaluator":
            raise ConfigError(field, addresses, "must be outside 'cluster'")
        if task_type not in TASK_TYPES:
            raise ConfigError(field, addresses, f"the task type {_task_type_rule(task_type)}")
        if isinstance(addresses, Mapping):
            raise ConfigError(field, dict(addresses), _NOT_SPARSE)
        # A set has another order in each process, so each would have other ranks.
        if isinstance(addresses, str) or not isinstance(addresses, Sequence):
            raise ConfigError(field, addresses, "must be a list or tuple of addresses 'host:port'")
        checked[task_type] = list(addresses)
        for index, address in enumerate(checked[task_type]):
            parse_address(address, f"{field}[{index}]")
    if len(checked.get("chief", [])) > 1:
        raise ConfigError("cluster.chief", checked["chief"], "must be at most one address")
    _check_distinct(checked)
    return checked


def _check_distinct(cluster: ClusterSpec) -> None:
    owner: dict[str, str] = {}
    for task_type, addresses in cluster.items():
        for index, address in enumerate(addresses):
            field = f"cluster.{task_type}[{index}]"
            if address in owner:
                raise ConfigError(field, address, f"{owner[address]} has the same address")
            owner[address] = field
