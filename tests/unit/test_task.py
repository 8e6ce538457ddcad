"""Task: read from TF_CONFIG, flags or a resolver; an error names the wrong field."""

import argparse
import json
import re
from types import SimpleNamespace

import pytest
from absl import flags as absl_flags
from hypothesis import given
from hypothesis import strategies as st

from tfdist import ConfigError, Task
from tfdist.task import cluster_tasks, parse_address, session_target

CLUSTER = {"ps": ["p0:1", "p1:1"], "worker": ["w0:1", "w1:1", "w2:1"]}
WITH_CHIEF = {**CLUSTER, "chief": ["c0:1"]}


def from_env(cluster=CLUSTER, task_type="worker", task_index=1) -> Task:
    config = {"cluster": cluster, "task": {"type": task_type, "index": task_index}}
    return Task.from_env({"TF_CONFIG": json.dumps(config)})


def from_text(text: str) -> Task:
    return Task.from_env({"TF_CONFIG": text})


class TestFromEnv:
    def test_reads_type_index_and_cluster(self):
        assert from_env() == Task("worker", 1, CLUSTER)

    def test_reads_the_environment_of_the_process_by_default(self, monkeypatch):
        monkeypatch.setenv("TF_CONFIG", Task("ps", 1, CLUSTER).to_env())
        assert Task.from_env() == Task("ps", 1, CLUSTER)

    def test_accepts_an_index_as_a_string(self):
        assert from_env(task_index="2").task_index == 2

    def test_ignores_other_keys(self):
        config = json.loads(Task("worker", 0, CLUSTER).to_env()) | {"environment": "cloud"}
        assert from_text(json.dumps(config)) == Task("worker", 0, CLUSTER)

    @pytest.mark.parametrize("environ", [{}, {"TF_CONFIG": ""}, {"TF_CONFIG": " \n"}])
    def test_a_missing_variable_is_an_error_that_says_how_to_set_it(self, environ):
        with pytest.raises(ConfigError, match="tfdist run") as caught:
            Task.from_env(environ)
        assert caught.value.field == "TF_CONFIG"

    def test_malformed_json_is_an_error_with_its_position(self):
        with pytest.raises(ConfigError, match="line 1 column 2") as caught:
            from_text("{'cluster'")
        assert caught.value.field == "TF_CONFIG"

    @pytest.mark.parametrize("text", ["[]", "3", "null", '"worker"'])
    def test_json_other_than_an_object_is_an_error(self, text):
        with pytest.raises(ConfigError) as caught:
            from_text(text)
        assert (caught.value.field, caught.value.value) == ("TF_CONFIG", text)

    @pytest.mark.parametrize("value", [None, [], "worker:0"])
    @pytest.mark.parametrize("key", ["task", "cluster"])
    def test_a_part_other_than_an_object_is_named(self, key, value):
        config = json.loads(Task("worker", 0, CLUSTER).to_env()) | {key: value}
        with pytest.raises(ConfigError) as caught:
            from_text(json.dumps(config))
        assert caught.value.field == f"TF_CONFIG.{key}"

    @pytest.mark.parametrize("key", ["task", "cluster"])
    def test_a_missing_part_is_named(self, key):
        config = json.loads(Task("worker", 0, CLUSTER).to_env())
        del config[key]
        with pytest.raises(ConfigError) as caught:
            from_text(json.dumps(config))
        assert caught.value.field == f"TF_CONFIG.{key}"

    @pytest.mark.parametrize("key", ["type", "index"])
    def test_a_missing_key_of_the_task_is_named(self, key):
        config = json.loads(Task("worker", 0, CLUSTER).to_env())
        del config["task"][key]
        with pytest.raises(ConfigError, match=rf"'task' has no key '{key}'"):
            from_text(json.dumps(config))

    @pytest.mark.parametrize("index", [3, -1, "3", True, False, 1.0, None, "one", "-1", "", [0]])
    def test_an_index_without_a_worker_is_an_error(self, index):
        with pytest.raises(ConfigError) as caught:
            from_env(task_index=index)
        assert caught.value.field == "TF_CONFIG.task.index"

    @pytest.mark.parametrize("task_type", ["parameter_server", "Worker", "", None, 3, []])
    def test_an_unknown_type_is_an_error(self, task_type):
        with pytest.raises(ConfigError, match="chief, worker, ps, evaluator") as caught:
            from_env(task_type=task_type, task_index=0)
        assert (caught.value.field, caught.value.value) == ("TF_CONFIG.task.type", task_type)

    def test_a_type_without_tasks_is_an_error(self):
        with pytest.raises(ConfigError, match=r"0 chief task\(s\)"):
            from_env(task_type="chief", task_index=0)


WITH_MASTER = {**CLUSTER, "master": ["c0:1"]}


class TestMaster:
    def test_becomes_the_chief_with_a_warning_at_the_line_of_the_caller(self):
        text = json.dumps({"cluster": WITH_MASTER, "task": {"type": "master", "index": 0}})
        with pytest.warns(UserWarning, match="'master' is taken as 'chief'") as warned:
            task = Task.from_env({"TF_CONFIG": text})
        assert task == Task("chief", 0, WITH_CHIEF)
        assert warned[0].filename == __file__

    def test_is_the_chief_for_the_workers_too(self):
        with pytest.warns(UserWarning, match="'master' is taken as 'chief'"):
            assert from_env(WITH_MASTER, "worker", 1).trainers[0] == "chief:0"

    def test_together_with_a_chief_is_an_error(self):
        with pytest.raises(ConfigError, match="must not contain both") as caught:
            from_env({**WITH_CHIEF, "master": ["m0:1"]})
        assert caught.value.field == "TF_CONFIG.cluster"


class TestEvaluator:
    def test_stays_outside_the_cluster(self):
        task = from_env(CLUSTER, "evaluator", 0)
        assert (task.name, task.is_trainer, task.is_chief) == ("evaluator:0", False, False)

    def test_inside_the_cluster_is_an_error(self):
        with pytest.raises(ConfigError, match="outside") as caught:
            Task("worker", 1, {**CLUSTER, "evaluator": ["e0:1"]})
        assert caught.value.field == "cluster.evaluator"

    @pytest.mark.parametrize(("task_type", "index"), [("worker", 1), ("evaluator", 0)])
    def test_listed_in_the_cluster_by_a_scheduler_is_removed(self, task_type, index):
        task = from_env({**CLUSTER, "evaluator": ["e0:1"]}, task_type, index)
        assert task == Task(task_type, index, CLUSTER)

    def test_with_a_negative_index_is_an_error(self):
        with pytest.raises(ConfigError) as caught:
            from_env(CLUSTER, "evaluator", -1)
        assert caught.value.field == "TF_CONFIG.task.index"

    def test_has_no_address(self):
        with pytest.raises(ConfigError, match="evaluator"):
            _ = Task("evaluator", 0, CLUSTER).address


class TestCluster:
    @pytest.mark.parametrize(
        "address",
        [
            "w1",
            "w1:",
            ":1",
            "w1:0",
            "w1:65536",
            "w1:123456",
            "w1:http",
            "w1:-1",
            "grpc://w1:1",
            "w1:1/",
            " w1:1",
            "w1:1 ",
            "w1:1\n",  # a line of a host file
            "",
            None,
            1,
        ],
    )
    def test_an_address_without_a_host_or_a_possible_port_is_named(self, address):
        with pytest.raises(ConfigError) as caught:
            Task("worker", 0, {"worker": ["w0:1", address]})
        assert (caught.value.field, caught.value.value) == ("cluster.worker[1]", address)

    @pytest.mark.parametrize("port", [1, 65535])
    def test_the_smallest_and_the_largest_port_are_valid(self, port):
        assert Task("worker", 0, {"worker": [f"w0:{port}"]}).address == f"w0:{port}"

    @pytest.mark.parametrize(
        ("cluster", "field", "owner"),
        [
            ({"worker": ["a:1", "b:1", "a:1"]}, "cluster.worker[2]", "cluster.worker[0]"),
            ({"ps": ["a:1"], "worker": ["b:1", "a:1"]}, "cluster.worker[1]", "cluster.ps[0]"),
        ],
    )
    def test_an_address_of_two_tasks_is_named_with_both(self, cluster, field, owner):
        with pytest.raises(ConfigError) as caught:
            Task("worker", 0, cluster)
        assert (caught.value.field, caught.value.value) == (field, "a:1")
        assert caught.value.rule == f"{owner} has the same address"

    def test_two_ports_of_one_host_are_distinct_addresses(self):
        assert Task("worker", 1, {"worker": ["a:1", "a:2"]}).address == "a:2"

    def test_two_chiefs_are_an_error(self):
        with pytest.raises(ConfigError, match="must be at most one address") as caught:
            Task("worker", 0, {**CLUSTER, "chief": ["c0:1", "c1:1"]})
        assert caught.value.field == "cluster.chief"

    def test_sparse_addresses_are_an_error_with_the_reason(self):
        with pytest.raises(ConfigError, match="sparse") as caught:
            from_env({**CLUSTER, "worker": {"1": "w1:1"}})
        assert caught.value.field == "TF_CONFIG.cluster.worker"
        assert caught.value.value == {"1": "w1:1"}

    @pytest.mark.parametrize("addresses", ["w0:1", None, 3])
    def test_addresses_other_than_a_list_are_named(self, addresses):
        with pytest.raises(ConfigError) as caught:
            Task("worker", 0, {"worker": addresses})
        assert caught.value.field == "cluster.worker"

    def test_an_unknown_type_of_task_is_named(self):
        with pytest.raises(ConfigError) as caught:
            Task("worker", 0, {**CLUSTER, "workers": ["x:1"]})
        assert caught.value.field == "cluster.workers"

    @pytest.mark.parametrize("cluster", [None, [], "w0:1"])
    def test_a_cluster_other_than_a_mapping_is_an_error(self, cluster):
        with pytest.raises(ConfigError) as caught:
            Task("worker", 0, cluster)
        assert caught.value.field == "cluster"

    def test_a_task_keeps_its_own_copy_of_the_cluster(self):
        mine = {"ps": ["p0:1"], "worker": ["w0:1"]}
        task = Task("worker", 0, mine)
        mine["worker"].append("w1:1")
        mine["chief"] = ["c0:1"]
        assert task.cluster_spec == {"ps": ["p0:1"], "worker": ["w0:1"]}


class TestTFJob:
    """TF_CONFIG as Kubeflow's training operator writes it (genTFConfigJSONStr, v1)."""

    def host(self, replica, index) -> str:
        return f"ctr-{replica}-{index}.ads.svc:2222"

    def cluster(self, **counts) -> dict[str, list[str]]:
        return {name: [self.host(name, i) for i in range(count)] for name, count in counts.items()}

    def config(self, **members) -> Task:
        return from_text(json.dumps(members))

    @pytest.mark.parametrize(("task_type", "index"), [("chief", 0), ("worker", 2), ("ps", 1)])
    def test_reads_services_and_an_environment(self, task_type, index):
        cluster = self.cluster(chief=1, ps=2, worker=3)
        task = {"type": task_type, "index": index}
        read = self.config(cluster=cluster, task=task, environment="cloud")
        assert (read, read.address) == (
            Task(task_type, index, cluster),
            self.host(task_type, index),
        )
        assert read.trainers == ("chief:0", "worker:0", "worker:1", "worker:2")

    def test_reads_a_custom_domain(self):
        cluster = {"worker": ["ctr-worker-0.ads.svc.cluster.local:2222"]}
        read = self.config(cluster=cluster, task={"type": "worker", "index": 0})
        assert read.address == "ctr-worker-0.ads.svc.cluster.local:2222"

    def test_reads_a_listed_evaluator(self):
        cluster = self.cluster(chief=1, ps=1, worker=1)
        listed = {**cluster, "evaluator": [self.host("evaluator", 0)]}
        read = self.config(cluster=listed, task={"type": "ps", "index": 0}, environment="cloud")
        assert read == Task("ps", 0, cluster)

    @pytest.mark.parametrize("task_type", ["worker", "ps"])
    def test_dynamic_workers_are_an_error_that_says_what_to_do(self, task_type):
        sparse = {"worker": {"1": self.host("worker", 1)}, "ps": [self.host("ps", 0)]}
        if task_type == "ps":  # a ps knows only itself, whatever its index
            sparse["worker"] = {}
        with pytest.raises(ConfigError, match="leave out enableDynamicWorker") as caught:
            self.config(sparseCluster=sparse, task={"type": task_type, "index": 1})
        assert (caught.value.field, caught.value.value) == ("TF_CONFIG.sparseCluster", sparse)


class Resolver:
    """The methods that `from_resolver` calls; tests/tf has TensorFlow's resolvers."""

    def __init__(self, cluster=CLUSTER, task_type="worker", task_id=1):
        self.cluster, self.task_type, self.task_id = cluster, task_type, task_id

    def cluster_spec(self):
        return SimpleNamespace(as_dict=lambda: self.cluster)


class Late(Resolver):
    """Like SlurmClusterResolver it knows its task only after `cluster_spec`."""

    def __init__(self):
        super().__init__(task_type=None, task_id=None)

    def cluster_spec(self):
        self.task_type, self.task_id = "ps", 1
        return super().cluster_spec()


class TestFromResolver:
    def test_reads_the_cluster_and_the_task(self):
        assert Task.from_resolver(Resolver()) == Task("worker", 1, CLUSTER)

    def test_reads_the_cluster_before_the_task(self):
        assert Task.from_resolver(Late()) == Task("ps", 1, CLUSTER)

    def test_accepts_an_id_as_a_string(self):
        assert Task.from_resolver(Resolver(task_id="2")).task_index == 2

    def test_a_master_becomes_the_chief_with_a_warning_at_the_line_of_the_caller(self):
        with pytest.warns(UserWarning, match="'master' is taken as 'chief'") as warned:
            task = Task.from_resolver(Resolver(WITH_MASTER, "master", 0))
        assert task == Task("chief", 0, WITH_CHIEF)
        assert warned[0].filename == __file__

    def test_accepts_a_job_without_tasks(self):
        assert Task.from_resolver(Resolver({"worker": ["w0:1"], "ps": {}}, task_id=0)).num_ps == 0

    def test_removes_an_evaluator_from_the_cluster(self):
        cluster = {**CLUSTER, "evaluator": ["e0:1"]}
        assert Task.from_resolver(Resolver(cluster)) == Task("worker", 1, CLUSTER)

    @pytest.mark.parametrize(
        ("resolver", "field", "value", "rule"),
        [
            (Resolver(task_type=None), "task_type", None, "set its task_type"),
            (Resolver(task_id=None), "task_id", None, "set its task_id"),
            (Resolver(task_type="Worker"), "task_type", "Worker", "one of chief"),
            (Resolver(task_type=""), "task_type", "", "one of chief"),
            (Resolver(task_id=3), "task_id", 3, "has 3 worker"),
            (Resolver(task_id=-1), "task_id", -1, "at least 0"),
            (Resolver({}), "task_id", 1, "has 0 worker"),
            (
                Resolver({**CLUSTER, "worker": {1: "w1:1"}}),
                "cluster_spec.worker",
                {1: "w1:1"},
                "sparse",
            ),
            (Resolver({"worker": ["w0:1", "w1"]}), "cluster_spec.worker[1]", "w1", "'host:port'"),
            (Resolver({**CLUSTER, "tpu": ["t:1"]}), "cluster_spec.tpu", ["t:1"], "the task type"),
            (
                Resolver({**WITH_MASTER, **WITH_CHIEF}),
                "cluster_spec",
                ["chief", "master", "ps", "worker"],
                "both",
            ),
        ],
    )
    def test_wrong_input_is_named_as_the_resolver_spells_it(self, resolver, field, value, rule):
        with pytest.raises(ConfigError, match=re.escape(rule)) as caught:
            Task.from_resolver(resolver)
        assert (caught.value.field, caught.value.value) == (f"resolver.{field}", value)

    @pytest.mark.parametrize("resolver", [None, CLUSTER, SimpleNamespace(cluster_spec=CLUSTER)])
    def test_an_object_other_than_a_resolver_is_an_error(self, resolver):
        with pytest.raises(ConfigError, match="a ClusterResolver") as caught:
            Task.from_resolver(resolver)
        assert caught.value.field == "resolver"


def flags(**changes) -> dict[str, object]:
    given = {"ps_hosts": "p0:1,p1:1", "worker_hosts": "w0:1,w1:1,w2:1"}
    return {**given, "job_name": "worker", "task_index": 1, **changes}


class TestFromFlags:
    def test_reads_a_namespace_of_argparse(self):
        parser = argparse.ArgumentParser()
        for name in ("ps_hosts", "worker_hosts", "job_name"):
            parser.add_argument(f"--{name}")
        parser.add_argument("--task_index", type=int)
        parsed = parser.parse_args([f"--{name}={value}" for name, value in flags().items()])
        assert Task.from_flags(parsed) == Task("worker", 1, CLUSTER)

    def test_reads_the_flags_of_absl(self):
        values = absl_flags.FlagValues()
        absl_flags.DEFINE_list("ps_hosts", [], "", flag_values=values)
        absl_flags.DEFINE_string("worker_hosts", "", "", flag_values=values)
        absl_flags.DEFINE_string("job_name", None, "", flag_values=values)
        absl_flags.DEFINE_integer("task_index", 0, "", flag_values=values)
        values(["train.py"] + [f"--{name}={value}" for name, value in flags().items()])
        assert Task.from_flags(values) == Task("worker", 1, CLUSTER)

    @pytest.mark.parametrize("ps_hosts", ["", None, []])
    def test_without_ps_hosts_there_is_no_ps(self, ps_hosts):
        assert Task.from_flags(SimpleNamespace(**flags(ps_hosts=ps_hosts))).num_ps == 0

    @pytest.mark.parametrize("name", ["ps_hosts", "worker_hosts", "job_name", "task_index"])
    def test_a_missing_flag_is_named(self, name):
        given = flags()
        del given[name]
        with pytest.raises(ConfigError) as caught:
            Task.from_flags(SimpleNamespace(**given))
        assert caught.value.field == name

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("job_name", "chef"),
            ("job_name", None),
            ("task_index", 3),
            ("task_index", -1),
            ("task_index", True),
            ("task_index", None),
            ("ps_hosts", "p0"),
            ("ps_hosts", "p0:1,p0:1"),
            ("ps_hosts", 5),
            ("worker_hosts", "w0:1,w1:1,"),
            ("worker_hosts", "w0:1, w1:1"),
            ("worker_hosts", "w0:1,p0:1"),
        ],
    )
    def test_a_wrong_flag_is_named_as_the_user_spells_it(self, name, value):
        with pytest.raises(ConfigError) as caught:
            Task.from_flags(SimpleNamespace(**flags(**{name: value})))
        assert caught.value.field == name


@st.composite
def tasks(draw) -> Task:
    """Any task of any small cluster."""
    counts = {"chief": st.integers(0, 1), "ps": st.integers(0, 3), "worker": st.integers(1, 4)}
    cluster = {
        task_type: [f"{task_type}{index}:2222" for index in range(draw(count))]
        for task_type, count in counts.items()
    }
    return draw(st.sampled_from([*cluster_tasks(cluster), Task("evaluator", 0, cluster)]))


@given(tasks())
def test_to_env_and_from_env_are_inverse(task):
    assert from_text(task.to_env()) == task


@given(tasks())
def test_ranks_number_the_trainers_and_the_first_is_the_chief(task):
    trainers = [each for each in cluster_tasks(task.cluster_spec) if each.is_trainer]
    assert [each.rank for each in trainers] == list(range(len(trainers)))
    assert [each.name for each in trainers] == list(task.trainers)
    assert [each.rank for each in trainers if each.is_chief] == [0][: len(trainers)]


class TestRoles:
    def test_the_chief_comes_before_the_workers(self):
        task = Task("worker", 1, WITH_CHIEF)
        assert task.trainers == ("chief:0", "worker:0", "worker:1", "worker:2")
        assert (task.rank, task.is_chief) == (2, False)
        assert Task("chief", 0, WITH_CHIEF).is_chief
        assert not Task("worker", 0, WITH_CHIEF).is_chief

    def test_worker_0_is_the_chief_without_a_task_chief(self):
        assert Task("worker", 0, CLUSTER).is_chief
        assert Task("worker", 1, CLUSTER).rank == 1

    @pytest.mark.parametrize("task_type", ["ps", "evaluator"])
    def test_only_trainers_have_a_rank(self, task_type):
        task = Task(task_type, 0, CLUSTER)
        assert (task.is_trainer, task.is_chief) == (False, False)
        with pytest.raises(ConfigError) as caught:
            _ = task.rank
        assert caught.value.field == "task.type"

    def test_the_chief_is_not_counted_as_a_worker(self):
        task = Task("worker", 1, WITH_CHIEF)
        assert (task.num_ps, task.num_workers, task.name) == (2, 3, "worker:1")

    def test_the_address_is_that_of_the_task(self):
        assert [Task("ps", i, CLUSTER).address for i in (0, 1)] == ["p0:1", "p1:1"]

    def test_the_tasks_of_a_cluster_are_ps_then_trainers_by_rank(self):
        names = [task.name for task in cluster_tasks(WITH_CHIEF)]
        assert names == ["ps:0", "ps:1", "chief:0", "worker:0", "worker:1", "worker:2"]


@pytest.mark.parametrize("task_type", ["chief", "worker", "ps"])
def test_device_filters_are_every_ps_and_the_task_itself(task_type):
    task = Task(task_type, 0, WITH_CHIEF)
    assert task.device == f"/job:{task_type}/task:0"
    assert task.device_filters == ["/job:ps", task.device]


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("host1:2222", "grpc://host1:2222"),
        ("10.0.0.7:2222", "grpc://10.0.0.7:2222"),
        ("localhost:2222", "grpc://127.0.0.1:2222"),
        ("127.0.0.1:2222", "grpc://localhost:2222"),
        ("[fd00::7]:2222", "grpc://[fd00::7]:2222"),
    ],
)
def test_the_session_target_of_a_local_server_differs_from_its_address(address, target):
    assert session_target(address) == target


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("host1.lan:2222", "host1.lan", 2222),
        ("10.0.0.7:1", "10.0.0.7", 1),
        ("[::1]:65535", "::1", 65535),
    ],
)
def test_an_address_is_split_into_host_and_port_and_written_as_before(text, host, port):
    address = parse_address(text)
    assert address == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["host1", "host1:", ":2222", "host1:0", "host1:65536", "::1:22", 7]
)
def test_a_malformed_address_is_an_error_that_names_its_field(text):
    with pytest.raises(
        ConfigError, match=r"ps_hosts: got .*'host:port', with a port of 1 to 65535"
    ):
        parse_address(text, "ps_hosts")


@pytest.mark.parametrize(
    "addresses", [{"w0:1", "w1:1"}, frozenset({"w0:1"}), (name for name in ["w0:1"]), {"w0:1": 0}]
)
def test_addresses_without_an_order_of_their_own_are_refused(addresses):
    with pytest.raises(ConfigError, match=r"^cluster\.worker: got "):
        Task("worker", 0, {"worker": addresses})


def test_an_absent_key_is_missing_and_a_null_is_none():
    with pytest.raises(ConfigError, match=r"^TF_CONFIG.cluster: missing; must be an object$"):
        from_text('{"task": {"type": "worker", "index": 0}}')
    with pytest.raises(ConfigError, match=r"^TF_CONFIG.cluster: got None; must be an object$"):
        from_text('{"cluster": null, "task": {"type": "worker", "index": 0}}')
