"""Keeps TensorFlow parameter-server jobs from hanging, losing data and saving too early.

The names below are loaded when they are first used: `import tfdist` does not import TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfdist.barrier import Barrier, BarrierStatistics
    from tfdist.cluster.local import LocalCluster, local_cluster
    from tfdist.cluster.server import serve_ps, trainer_server
    from tfdist.cluster.watchdog import Watchdog
    from tfdist.deadline import Deadline
    from tfdist.eos import anyone_has_value, padded
    from tfdist.errors import (
        BarrierBroken,
        BarrierError,
        BarrierTimeout,
        ClusterError,
        ConfigError,
        DataError,
        EpochError,
        RunTimeout,
        SplitLost,
        StallError,
        StartTimeout,
        TaskFailed,
        TfdistError,
    )
    from tfdist.files.entry import FileEntry
    from tfdist.files.file_set import FileSet
    from tfdist.files.preflight import FileWarning
    from tfdist.ledger import Audit, Ledger, audit
    from tfdist.progress import Progress
    from tfdist.split_queue import Split, SplitQueue, SplitReport
    from tfdist.task import Task, one_line_errors
    from tfdist.train.coordinator import SplitScheduler
    from tfdist.train.epoch import Epoch, EpochResult, EpochStatus
    from tfdist.train.split_batches import SplitBatches

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "Barrier",
    "BarrierBroken",
    "BarrierError",
    "BarrierStatistics",
    "BarrierTimeout",
    "ClusterError",
    "ConfigError",
    "DataError",
    "Deadline",
    "Epoch",
    "EpochError",
    "EpochResult",
    "EpochStatus",
    "FileEntry",
    "FileSet",
    "FileWarning",
    "Ledger",
    "LocalCluster",
    "Progress",
    "RunTimeout",
    "Split",
    "SplitBatches",
    "SplitLost",
    "SplitQueue",
    "SplitReport",
    "SplitScheduler",
    "StallError",
    "StartTimeout",
    "Task",
    "TaskFailed",
    "TfdistError",
    "Watchdog",
    "anyone_has_value",
    "audit",
    "local_cluster",
    "one_line_errors",
    "padded",
    "serve_ps",
    "trainer_server",
]

_HOMES = {
    "Audit": "tfdist.ledger",
    "Barrier": "tfdist.barrier",
    "BarrierBroken": "tfdist.errors",
    "BarrierError": "tfdist.errors",
    "BarrierStatistics": "tfdist.barrier",
    "BarrierTimeout": "tfdist.errors",
    "ClusterError": "tfdist.errors",
    "ConfigError": "tfdist.errors",
    "DataError": "tfdist.errors",
    "Deadline": "tfdist.deadline",
    "Epoch": "tfdist.train.epoch",
    "EpochError": "tfdist.errors",
    "EpochResult": "tfdist.train.epoch",
    "EpochStatus": "tfdist.train.epoch",
    "FileEntry": "tfdist.files.entry",
    "FileSet": "tfdist.files.file_set",
    "FileWarning": "tfdist.files.preflight",
    "Ledger": "tfdist.ledger",
    "LocalCluster": "tfdist.cluster.local",
    "Progress": "tfdist.progress",
    "RunTimeout": "tfdist.errors",
    "Split": "tfdist.split_queue",
    "SplitBatches": "tfdist.train.split_batches",
    "SplitLost": "tfdist.errors",
    "SplitQueue": "tfdist.split_queue",
    "SplitReport": "tfdist.split_queue",
    "SplitScheduler": "tfdist.train.coordinator",
    "StallError": "tfdist.errors",
    "StartTimeout": "tfdist.errors",
    "Task": "tfdist.task",
    "TaskFailed": "tfdist.errors",
    "TfdistError": "tfdist.errors",
    "Watchdog": "tfdist.cluster.watchdog",
    "anyone_has_value": "tfdist.eos",
    "audit": "tfdist.ledger",
    "local_cluster": "tfdist.cluster.local",
    "one_line_errors": "tfdist.task",
    "padded": "tfdist.eos",
    "serve_ps": "tfdist.cluster.server",
    "trainer_server": "tfdist.cluster.server",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
