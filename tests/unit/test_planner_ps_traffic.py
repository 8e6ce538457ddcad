"""The bytes of a job with ps are those of its messages, counted for every possible batch."""

import math
from collections import Counter
from itertools import product

import pytest

from tfdist.errors import ConfigError
from tfdist.planner import (
    EmbeddingTable,
    IdDistribution,
    PsJob,
    ps_for_bandwidth,
    ps_for_memory,
    ps_load,
    ps_memory,
    ps_received,
    ps_sent,
    worker_received,
    worker_sent,
)

COUNTS = [(4, 1, 1), (1, 2, 1, 0, 4)]


def small_job(**changes):
    tables = tuple(
        EmbeddingTable(len(counts), dim, ids, distribution=IdDistribution.from_counts(counts))
        for counts, dim, ids in zip(COUNTS, (8, 2), (1, 1.5), strict=True)
    )
    settings = {"dense": 30, "variables": 3, "tables": tables, "workers": 3, "ps": 2, "batch": 2}
    return PsJob(**{**settings, **changes})


def counted(job):
    """What each task sends and receives in the steps of all workers, over all batches."""
    sent, received = Counter(), Counter()

    def send(source, target, nbytes, chance=1.0):
        sent[source] += chance * nbytes
        received[target] += chance * nbytes

    for worker, ps in product([f"worker:{k}" for k in range(job.workers)], range(job.ps)):
        there = f"ps:{ps}"
        send(there, worker, job.dense / job.ps * job.value_bytes)
        send(worker, there, job.dense / job.ps * job.value_bytes)
        for counts, table in zip(COUNTS, job.tables, strict=True):
            for batch in product(range(table.rows), repeat=int(job.batch * table.ids)):
                chance = math.prod(counts[each] / sum(counts) for each in batch)
                asked = set(batch) if job.deduplicated else batch
                here = sum(owner(job, table, each) == ps for each in asked)
                send(worker, there, here * job.id_bytes, chance)
                send(there, worker, here * table.dim * job.value_bytes, chance)
                send(worker, there, here * table.dim * job.value_bytes, chance)
                send(worker, there, here * job.id_bytes, chance)
    return sent, received


def owner(job, table, row):
    if job.placement == "modulo":
        return row % job.ps
    return min(ps for ps in range(job.ps) if row < -(-table.rows * (ps + 1) // job.ps))


CHANGES = [
    {},
    {"deduplicated": False},
    {"placement": "modulo"},
    {"ps": 1},
    {"ps": 3, "workers": 1, "placement": "modulo"},
    {"value_bytes": 2, "id_bytes": 4, "workers": 1},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_bytes_are_those_of_the_messages(change):
    job = small_job(header_bytes=0, **change)
    sent, received = counted(job)
    assert worker_sent(job).value == pytest.approx(sent["worker:0"])
    assert worker_received(job).value == pytest.approx(received["worker:0"])
    load = ps_load(job)
    for ps in range(job.ps):
        assert load.received.part(f"ps:{ps}") == pytest.approx(received[f"ps:{ps}"])
        assert load.sent.part(f"ps:{ps}") == pytest.approx(sent[f"ps:{ps}"])


def test_headers_are_those_of_the_messages():
    # Each variable is on one of the ps; three on three ps are even.
    job = small_job(ps=3, header_bytes=100)
    messages = 3 + 3 + 2 * 3 * 4  # pulls, pushes, and four for each table and ps
    for each in (worker_sent(job), worker_received(job)):
        assert each.part("headers") == 100 * messages
    assert worker_sent(small_job(ps=3, header_bytes=0)).part("headers") == 0
    assert worker_sent(small_job(dense=0)).part("headers") == 256 * 2 * 2 * 4


@pytest.mark.parametrize("change", [*CHANGES, {"placement": "hashed"}], ids=str)
def test_what_workers_send_the_ps_receive(change):
    job = small_job(**change)
    load = ps_load(job)
    for of_worker, by_ps, mean in (
        (worker_sent(job), load.received, ps_received(job)),
        (worker_received(job), load.sent, ps_sent(job)),
    ):
        total = job.workers * of_worker.value
        assert by_ps.value == pytest.approx(total)
        assert sum(part.value for part in by_ps.parts) == pytest.approx(total)
        assert mean.value * job.ps == pytest.approx(total)
        assert len(by_ps.parts) == job.ps


def test_the_parts_have_names():
    sent, received = worker_sent(small_job()), worker_received(small_job())
    names = ["dense gradients", "ids", "row gradients", "ids of gradients", "headers"]
    assert [part.name for part in sent.parts] == names
    assert [part.name for part in received.parts] == ["dense parameters", "rows", "headers"]
    assert sent.part("dense gradients") == received.part("dense parameters") == 30 * 4
    assert sent.part("row gradients") == received.part("rows")
    assert [part.name for part in received.parts[1].parts] == ["table 0", "table 1"]


def test_deduplication_saves_what_a_batch_repeats():
    plain, unique = small_job(deduplicated=False, batch=64), small_job(batch=64)
    assert worker_received(plain).part("rows") == 64 * (8 + 1.5 * 2) * 4
    assert worker_received(unique).part("rows") < 3 * 8 * 4 + 4 * 2 * 4 + 1e-9
    assert worker_received(plain).part("dense parameters") == 30 * 4


def test_a_measured_number_of_unique_ids_is_used():
    job = PsJob(tables=[EmbeddingTable(1000, 4, 10, unique=70)], batch=10)
    assert worker_received(job).part("rows") == 70 * 4 * 4
    assert worker_sent(job).part("ids") == 70 * 8


@pytest.mark.parametrize(("rows", "expected"), [(1000, 100), (60, 60)])
def test_without_knowledge_all_ids_are_different(rows, expected):
    job = PsJob(tables=[EmbeddingTable(rows, 4, 10)], batch=10)
    assert worker_sent(job).part("ids") == expected * 8


def test_the_imbalance_is_that_of_the_busiest_ps():
    load = ps_load(small_job(dense=0, header_bytes=0, ps=3))
    parts = [part.value for part in load.received.parts]
    assert load.imbalance.value == pytest.approx(max(parts) / (sum(parts) / 3))
    assert load.imbalance.value > 1.2
    assert ps_load(small_job(ps=1)).imbalance.value == 1
    assert ps_load(PsJob(dense=10, ps=4)).imbalance.value == 1


def test_a_load_needs_a_distribution():
    job = PsJob(tables=[EmbeddingTable(1000, 4, 10, unique=70)], batch=10)
    with pytest.raises(ConfigError) as caught:
        ps_load(job)
    assert caught.value.field == "tables[0].distribution"
    assert ps_received(job).value > 0  # the mean needs none


@pytest.mark.parametrize(
    ("optimizer", "copies"), [("sgd", 1), ("momentum", 2), ("adagrad", 2), ("adam", 3)]
)
def test_memory_is_that_of_parameters_and_slots(optimizer, copies):
    job = small_job(optimizer=optimizer)
    parameters = 30 + 3 * 8 + 5 * 2
    assert job.parameters == parameters
    assert ps_memory(job).value == parameters * 4 * copies
    need = parameters * 4 * copies
    for memory, count in ((need, 1), (need - 1, 2), (need / 2, 2), (need / 10, 10), (10**9, 1)):
        assert ps_for_memory(job, memory).value == count


def test_the_number_of_ps_is_the_fewest_with_enough_bandwidth():
    job = PsJob(dense=10**6, workers=8, header_bytes=0)
    # 8 workers x 4 MB a step; 100 ms at 100 MB/s are 10 MB each way.
    assert ps_for_bandwidth(job, 100e6, 0.1).value == 4
    assert ps_for_bandwidth(job, 100e6, 0.32).value == 1
    assert ps_for_bandwidth(job, 100e6, 0.319).value == 2
    # The larger direction counts: ids travel to the ps alone.
    sparse = PsJob(tables=[EmbeddingTable(10**6, 1, 100)], batch=100, header_bytes=0)
    sent = worker_sent(sparse).value
    assert sent > worker_received(sparse).value
    assert ps_for_bandwidth(sparse, sent / 3, 1).value == 3


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, "1", None])
def test_wrong_limits_are_refused(wrong):
    for call, field in (
        (lambda: ps_for_memory(small_job(), wrong), "memory_bytes"),
        (lambda: ps_for_bandwidth(small_job(), wrong, 1), "bandwidth"),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert caught.value.field == field


@pytest.mark.parametrize("wrong", [0, -1, math.nan, "1"])
def test_a_wrong_step_is_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        ps_for_bandwidth(small_job(), 1, wrong)
    assert caught.value.field == "step_secs"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dense": -1}, "dense"),
        ({"dense": 1.5}, "dense"),
        ({"workers": 0}, "workers"),
        ({"ps": 0}, "ps"),
        ({"ps": 10**9}, "ps"),
        ({"batch": True}, "batch"),
        ({"variables": 0}, "variables"),
        ({"value_bytes": 0}, "value_bytes"),
        ({"header_bytes": -1}, "header_bytes"),
        ({"optimizer": "Adam"}, "optimizer"),
        ({"placement": "div"}, "placement"),
        ({"deduplicated": "no"}, "deduplicated"),
        ({"tables": EmbeddingTable(1, 1)}, "tables"),
        ({"tables": [3]}, "tables"),
        ({"tables": [EmbeddingTable(10, 1, 2, unique=5)], "batch": 2}, "tables[0].unique"),
    ],
)
def test_a_wrong_job_is_refused(change, field):
    with pytest.raises(ConfigError) as caught:
        small_job(**change)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((0, 1), "table.rows"),
        ((1, 0), "table.dim"),
        ((1, 1, 0), "table.ids"),
        ((1, 1, math.nan), "table.ids"),
        ((5, 1, 1, 6), "table.unique"),
        ((5, 1, 1, 0), "table.unique"),
        ((5, 1, 1, None, [1, 2]), "table.distribution"),
        ((5, 1, 1, 3, IdDistribution.zipf(5)), "table.unique"),
        ((5, 1, 1, None, IdDistribution.zipf(6)), "table.rows"),
    ],
)
def test_a_wrong_table_is_refused(arguments, field):
    with pytest.raises(ConfigError) as caught:
        EmbeddingTable(*arguments)
    assert caught.value.field == field
