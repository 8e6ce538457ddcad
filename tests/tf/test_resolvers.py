"""Task.from_resolver with TensorFlow's own resolvers, as a scheduler sets their environment."""

import json

import pytest
import tensorflow as tf

from tfdist import ConfigError, Task

resolvers = tf.distribute.cluster_resolver
CLUSTER = {"ps": ["p0:1"], "worker": ["w0:1", "w1:1"]}


def slurm_step(monkeypatch, rank, *, nodes="n[1-2],n4", tasks_per_node="2(x2),1"):
    """The variables that srun sets for one of five tasks."""
    step = {"NUM_TASKS": "5", "NODELIST": nodes, "TASKS_PER_NODE": tasks_per_node}
    monkeypatch.setenv("SLURM_PROCID", str(rank))
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_STEP_{name}", value)


def slurm_task(**options) -> Task:
    """The resolver of docs/cluster.md for machines without GPUs."""
    resolver = resolvers.SlurmClusterResolver(
        gpus_per_node=2, gpus_per_task=1, auto_set_gpu=False, **options
    )
    return Task.from_resolver(resolver)


class TestSlurm:
    def test_each_rank_is_a_different_task_of_the_same_cluster(self, monkeypatch):
        tasks = []
        for rank in range(5):
            slurm_step(monkeypatch, rank)
            tasks.append(slurm_task(jobs={"ps": 2, "worker": 3}, port_base=2222))
        assert [task.name for task in tasks] == ["ps:0", "ps:1", "worker:0", "worker:1", "worker:2"]
        addresses = ["n1:2222", "n1:2223", "n2:2222", "n2:2223", "n4:2222"]
        assert [task.address for task in tasks] == addresses
        assert all(task.cluster_spec == tasks[0].cluster_spec for task in tasks)

    def test_a_chief_comes_first(self, monkeypatch):
        slurm_step(monkeypatch, 0)
        task = slurm_task(jobs={"worker": 3, "ps": 1, "chief": 1})
        assert (task.name, task.is_chief, task.num_workers) == ("chief:0", True, 3)

    def test_without_jobs_all_are_workers(self, monkeypatch):
        slurm_step(monkeypatch, 4)
        task = slurm_task()
        assert (task.name, task.num_workers, task.num_ps) == ("worker:4", 5, 0)


def test_the_resolver_of_tf_config_yields_the_task_of_from_env(monkeypatch):
    config = {"cluster": CLUSTER, "task": {"type": "worker", "index": "1"}, "environment": "cloud"}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    task = Task.from_resolver(resolvers.TFConfigClusterResolver())
    assert task == Task.from_env() == Task("worker", 1, CLUSTER)


def test_without_tf_config_its_resolver_does_not_know_the_task(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ConfigError) as caught:
        Task.from_resolver(resolvers.TFConfigClusterResolver())
    assert caught.value.field == "resolver.task_type"


def simple(cluster, **task) -> Task:
    spec = tf.train.ClusterSpec(cluster)
    return Task.from_resolver(resolvers.SimpleClusterResolver(spec, **task))


def test_a_simple_resolver_yields_its_arguments():
    assert simple(CLUSTER, task_type="ps", task_id=0) == Task("ps", 0, CLUSTER)


def test_a_job_without_tasks_is_none():
    task = simple({"worker": ["w0:1"], "ps": []}, task_type="worker", task_id=0)
    assert (task.num_ps, task.num_workers) == (0, 1)


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({}, "resolver.task_type"),
        ({"task_type": "worker"}, "resolver.task_id"),
        ({"task_type": "worker", "task_id": 2}, "resolver.task_id"),
    ],
)
def test_a_missing_argument_of_a_resolver_is_named(task, field):
    with pytest.raises(ConfigError) as caught:
        simple(CLUSTER, **task)
    assert caught.value.field == field


@pytest.mark.parametrize("tasks", [{1: "w1:1"}, {"1": "w1:1"}, {0: "w0:1", 2: "w2:1"}])
def test_sparse_tasks_are_an_error(tasks):
    with pytest.raises(ConfigError, match="sparse") as caught:
        simple({**CLUSTER, "worker": tasks}, task_type="worker", task_id=1)
    assert caught.value.field == "resolver.cluster_spec.worker"


def test_numbered_tasks_without_a_gap_are_a_list():
    task = simple({"worker": {1: "w1:1", 0: "w0:1"}}, task_type="worker", task_id=1)
    assert task == Task("worker", 1, {"worker": ["w0:1", "w1:1"]})
