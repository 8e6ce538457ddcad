"""Which tasks a cluster has, and which of them train."""

from __future__ import annotations

from dataclasses import dataclass

from tfdist.errors import ConfigError, checked_flag, checked_integer
from tfdist.task import ClusterSpec, Task, cluster_tasks

# Each task has a port of this machine, of some 28,000 for such use.
_MOST_TASKS = 10_000


@dataclass(frozen=True)
class Shape:
    """The tasks of a cluster by type.

    Attributes:
        num_ps: number of parameter servers; with a coordinator at least 1.
        num_workers: number of workers, at least 1.
        chief: whether there is a task `chief`; otherwise worker 0 is the chief.
        evaluator: whether there is an evaluator. It has no server and no place in the cluster.
        coordinator: for a ClusterCoordinator: only the chief trains, and the workers serve it.
    """

    num_ps: int = 1
    num_workers: int = 2
    chief: bool = False
    evaluator: bool = False
    coordinator: bool = False

    def __post_init__(self) -> None:
        for field, least in (("num_ps", 0), ("num_workers", 1)):
            number = checked_integer(field, getattr(self, field), least, _MOST_TASKS)
            object.__setattr__(self, field, number)
        for field in ("chief", "evaluator", "coordinator"):
            object.__setattr__(self, field, checked_flag(field, getattr(self, field)))
        if self.coordinator and self.num_ps == 0:
            raise ConfigError("num_ps", 0, "must be at least 1 for a ClusterCoordinator")

    @property
    def num_servers(self) -> int:
        """The number of tasks with an address."""
        return self.num_ps + self.num_chiefs + self.num_workers

    @property
    def num_chiefs(self) -> int:
        """1 if there is a task `chief`, else 0."""
        return int(self.chief or self.coordinator)

    def cluster_spec(self, addresses: list[str]) -> ClusterSpec:
        """The addresses by type; `addresses` has `num_servers` of them."""
        counts = {"ps": self.num_ps, "chief": self.num_chiefs, "worker": self.num_workers}
        rest = iter(addresses)
        spec = {name: [next(rest) for _ in range(count)] for name, count in counts.items()}
        return {name: part for name, part in spec.items() if part}

    def tasks(self, addresses: list[str]) -> list[Task]:
        """All tasks: the ps, the trainers by rank, the evaluator."""
        spec = self.cluster_spec(addresses)
        evaluators = [Task("evaluator", 0, spec)] if self.evaluator else []
        return [*cluster_tasks(spec), *evaluators]

    def serves(self, task: Task) -> bool:
        """True if the task is a server, which ends when the trainers are done."""
        return task.task_type == "ps" or (self.coordinator and task.task_type == "worker")
