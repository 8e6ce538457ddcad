"""A job with parameter servers (ps): its bytes in each direction, and how many ps it needs.

In a step a worker pulls all dense parameters, and the rows of its batch from each table; it pushes
the gradients of both. Letters in the formulas: D dense parameters, v bytes of a value, i of an id,
W workers, S ps, T tables, N dense variables, R rows that a worker looks up in a table, d their
length, H bytes of a header, B bandwidth in bytes per second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tfdist.errors import (
    ConfigError,
    checked_choice,
    checked_flag,
    checked_integer,
    checked_number,
    checked_secs,
    checked_several,
)
from tfdist.planner.id_distribution import MOST_ROWS, PLACEMENTS, IdDistribution
from tfdist.planner.quantity import Quantity
from tfdist.planner.training import OPTIMIZERS, SLOTS
from tfdist.planner.transformer import LARGEST


@dataclass(frozen=True)
class EmbeddingTable:
    """A table of vectors, and how a batch uses it.

    Attributes:
        rows: number of ids.
        dim: values of a row.
        ids: ids of one example, on average.
        unique: different ids of a worker's batch, as measured; None if it is not known.
        distribution: how often the ids occur; None if it is not known. Without both, all ids of a
            batch count as different.

    Raises:
        ConfigError: a number is out of range.
    """

    rows: int
    dim: int
    ids: float = 1
    unique: float | None = None
    distribution: IdDistribution | None = None

    def __post_init__(self) -> None:
        checked_integer("table.rows", self.rows, 1, MOST_ROWS)
        checked_integer("table.dim", self.dim, 1, LARGEST)
        rule = "must be a positive number of ids"
        checked_number("table.ids", self.ids, lambda n: 0 < n <= LARGEST, rule)
        if self.unique is not None:
            rule = f"must be positive and at most rows ({self.rows})"
            checked_number("table.unique", self.unique, lambda n: 0 < n <= self.rows, rule)
        found: Any = self.distribution
        if found is not None:
            if not isinstance(found, IdDistribution):
                rule = "must be an IdDistribution, or None"
                raise ConfigError("table.distribution", found, rule)
            if self.unique is not None:
                raise ConfigError("table.unique", self.unique, "must be None with a distribution")
            if found.rows != self.rows:
                rule = f"must be the {found.rows} ids of the distribution"
                raise ConfigError("table.rows", self.rows, rule)


@dataclass(frozen=True)
class PsJob:
    """A job with ps.

    Attributes:
        dense: parameters outside the tables, spread evenly over the ps.
        variables: number of variables that have them. Each is pulled and pushed as one message.
        tables: the embedding tables, each sharded over all ps.
        workers: number of workers.
        ps: number of ps.
        batch: examples of a worker's step.
        optimizer: one of OPTIMIZERS.
        deduplicated: whether a worker asks once for an id that its batch has several times.
        placement: how a table is sharded, one of PLACEMENTS.
        value_bytes: of a parameter and of its gradient.
        id_bytes: of an id.
        header_bytes: that a message adds in each direction. In TensorFlow the receiver's request
            names the tensor in some 150 characters, and the answer describes it; gRPC and HTTP/2
            frame both. The default has the right order of magnitude; measure your own.

    Raises:
        ConfigError: a number is out of range.
    """

    dense: int = 0
    variables: int = 1
    tables: tuple[EmbeddingTable, ...] = ()
    workers: int = 1
    ps: int = 1
    batch: int = 1
    optimizer: str = "adagrad"
    deduplicated: bool = True
    placement: str = "contiguous"
    value_bytes: int = 4
    id_bytes: int = 8
    header_bytes: int = 256

    def __post_init__(self) -> None:
        checked_integer("dense", self.dense, 0, MOST_ROWS)
        for name in ("variables", "workers", "ps", "batch"):
            checked_integer(name, getattr(self, name), 1, 10**6 if name == "ps" else LARGEST)
        for name, least in (("value_bytes", 1), ("id_bytes", 1), ("header_bytes", 0)):
            checked_integer(name, getattr(self, name), least, 10**6)
        checked_choice("optimizer", self.optimizer, OPTIMIZERS)
        checked_choice("placement", self.placement, PLACEMENTS)
        checked_flag("deduplicated", self.deduplicated)
        rule = "must be a list of EmbeddingTable"
        object.__setattr__(self, "tables", tuple(checked_several("tables", self.tables, rule)))
        for index, table in enumerate(self.tables):
            if not isinstance(table, EmbeddingTable):
                raise ConfigError("tables", self.tables, rule)
            most = self.batch * table.ids
            if table.unique is not None and table.unique > most:
                rule = f"must be at most the ids of a batch ({most:g})"
                raise ConfigError(f"tables[{index}].unique", table.unique, rule)

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.dense + sum(table.rows * table.dim for table in self.tables)

    def lookups(self, table: EmbeddingTable) -> Quantity:
        """Rows of a table that a worker pulls in a step."""
        ids = self.batch * table.ids
        if self.deduplicated and table.distribution is not None:
            return table.distribution.expected_unique(ids)
        values = {"n": self.batch, "k": table.ids}
        if not self.deduplicated:
            return Quantity("ids", ids, "ids", "n k", values)
        if table.unique is not None:
            return Quantity("unique ids", table.unique, "ids", source="as measured")
        values["rows"] = table.rows
        return Quantity("unique ids", min(ids, table.rows), "ids", "min(n k, rows)", values)


@dataclass(frozen=True)
class PsLoad:
    """Bytes of each ps in a step of all workers.

    Attributes:
        received: the parts are named "ps:0" and so on.
        sent: likewise.
        imbalance: the most that a ps receives, over the mean.
    """

    received: Quantity
    sent: Quantity
    imbalance: Quantity


def worker_sent(job: PsJob) -> Quantity:
    """Bytes that a worker sends in a step: ids, gradients and the requests' headers."""
    parts = [
        _dense(job, "dense gradients"),
        _ids(job, "ids"),
        _rows(job, "row gradients"),
        _ids(job, "ids of gradients"),
        _headers(job),
    ]
    return Quantity.sum_of("sent by a worker", "bytes", parts)


def worker_received(job: PsJob) -> Quantity:
    """Bytes that a worker receives in a step: dense parameters, rows and headers."""
    parts = [_dense(job, "dense parameters"), _rows(job, "rows"), _headers(job)]
    return Quantity.sum_of("received by a worker", "bytes", parts)


def ps_sent(job: PsJob) -> Quantity:
    """Bytes that a ps sends in a step of all workers, on average over the ps."""
    return _mean(job, "sent by a ps", worker_received(job))


def ps_received(job: PsJob) -> Quantity:
    """Bytes that a ps receives in a step of all workers, on average over the ps."""
    return _mean(job, "received by a ps", worker_sent(job))


def ps_load(job: PsJob) -> PsLoad:
    """Bytes of each ps in a step of all workers, in each direction.

    The load of a ps follows from the ids that it has, and not from a division: with contiguous
    shards of a vocabulary that is sorted by frequency, the first ps has all popular ids.

    Raises:
        ConfigError: a table has no distribution.
    """
    v, i = job.value_bytes, job.id_bytes
    even = job.dense * v + _headers(job).value
    sent, received = [even / job.ps] * job.ps, [even / job.ps] * job.ps
    for index, table in enumerate(job.tables):
        if table.distribution is None:
            rule = "must be given, because the load of a ps depends on the ids that it has"
            raise ConfigError(f"tables[{index}].distribution", None, rule)
        ids = job.batch * table.ids
        rows = table.distribution.rows_by_ps(
            ids, job.ps, job.placement, deduplicated=job.deduplicated
        )
        for ps, each in enumerate(rows):
            sent[ps] += each * table.dim * v
            received[ps] += each * (table.dim * v + 2 * i)

    def by_ps(name: str, loads: list[float]) -> Quantity:
        parts = [
            Quantity(f"ps:{ps}", job.workers * each, "bytes", "W x", {"W": job.workers, "x": each})
            for ps, each in enumerate(loads)
        ]
        return Quantity(name, math.fsum(map(float, parts)), "bytes", parts=tuple(parts))

    most, mean = max(received), math.fsum(received) / job.ps
    ratio = most / mean if mean else 1.0
    values = {"most": job.workers * most, "mean": job.workers * mean}
    imbalance = Quantity("imbalance", ratio, "times the mean", "most / mean", values)
    return PsLoad(by_ps("received", received), by_ps("sent", sent), imbalance)


def ps_memory(job: PsJob) -> Quantity:
    """Bytes of all parameters and of the optimizer's slots, on all ps together."""
    slots = len(SLOTS[job.optimizer])
    values = {"P": job.parameters, "v": job.value_bytes, "s": slots}
    value = job.parameters * job.value_bytes * (1 + slots)
    return Quantity("parameters and slots", value, "bytes", "P v (1 + s)", values)


def ps_for_memory(job: PsJob, memory_bytes: float) -> Quantity:
    """The fewest ps whose memory is enough, if each has `memory_bytes` for parameters and slots.

    Raises:
        ConfigError: the memory is not positive.
    """
    rule = "must be a positive number of bytes"
    checked_number("memory_bytes", memory_bytes, lambda n: 0 < n < 1e30, rule)
    needed = ps_memory(job)
    values = {"P v (1 + s)": needed.value, "M": memory_bytes}
    count = max(1, math.ceil(needed.value / memory_bytes))
    return Quantity("ps for memory", count, "ps", "ceil(P v (1 + s) / M)", values)


def ps_for_bandwidth(job: PsJob, bandwidth: float, step_secs: float) -> Quantity:
    """The fewest ps whose network is enough, if every worker makes a step in `step_secs`.

    A link works in both directions at a time, so the larger direction counts. The load is taken to
    be even. With contiguous shards it need not be: check `ps_load` of the job with as many ps.

    Args:
        job: its `ps` changes only the headers: each ps adds messages.
        bandwidth: of a ps, bytes per second in each direction.
        step_secs: seconds between two steps of a worker.

    Raises:
        ConfigError: a number is not positive.
    """
    rule = "must be a positive number of bytes per second"
    checked_number("bandwidth", bandwidth, lambda n: 0 < n < 1e30, rule)
    checked_secs("step_secs", step_secs, may_be_0=False)
    nbytes = max(worker_sent(job).value, worker_received(job).value)
    values = {"W": job.workers, "x": nbytes, "B": bandwidth, "t": step_secs}
    count = max(1, math.ceil(job.workers * nbytes / (bandwidth * step_secs)))
    return Quantity("ps for bandwidth", count, "ps", "ceil(W x / (B t))", values)


def _dense(job: PsJob, name: str) -> Quantity:
    values = {"D": job.dense, "v": job.value_bytes}
    return Quantity(name, job.dense * job.value_bytes, "bytes", "D v", values)


def _rows(job: PsJob, name: str) -> Quantity:
    """The rows of a worker's step, or their gradients."""
    terms = []
    for index, table in enumerate(job.tables):
        found = job.lookups(table)
        values = {"R": found.value, "d": table.dim, "v": job.value_bytes}
        value = found.value * table.dim * job.value_bytes
        terms.append(Quantity(f"table {index}", value, "bytes", "R d v", values, found.source))
    return Quantity.sum_of(name, "bytes", terms)


def _ids(job: PsJob, name: str) -> Quantity:
    """The ids of those rows."""
    terms = []
    for index, table in enumerate(job.tables):
        found = job.lookups(table)
        values = {"R": found.value, "i": job.id_bytes}
        value = found.value * job.id_bytes
        terms.append(Quantity(f"table {index}", value, "bytes", "R i", values, found.source))
    return Quantity.sum_of(name, "bytes", terms)


def _headers(job: PsJob) -> Quantity:
    """Of a worker's step in one direction.

    A dense variable is two messages, and a table four for each ps: ids, rows, gradients and their
    ids.
    """
    n = job.variables if job.dense else 0
    count = 2 * n + 4 * job.ps * len(job.tables)
    values = {"N": n, "S": job.ps, "T": len(job.tables), "H": job.header_bytes}
    return Quantity("headers", count * job.header_bytes, "bytes", "(2 N + 4 S T) H", values)


def _mean(job: PsJob, name: str, of_worker: Quantity) -> Quantity:
    values = {"W": job.workers, "x": of_worker.value, "S": job.ps}
    value = job.workers * of_worker.value / job.ps
    return Quantity(name, value, "bytes", "W x / S", values, of_worker.source)
