"""Every mistake in TF_CONFIG is reported once; the rest of it is still read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfdist import Task
from tfdist.doctor.configuration import read

CLUSTER = {"ps": ["p0:1"], "worker": ["w0:1", "w1:1"]}


def of(cluster=CLUSTER, task_type="worker", index=1):
    config = {"cluster": cluster, "task": {"type": task_type, "index": index}}
    return read({"TF_CONFIG": json.dumps(config)})


def of_text(text):
    return read({"TF_CONFIG": text})


def checks(configuration):
    return [finding.check.removeprefix("tf_config.") for finding in configuration.findings]


@pytest.mark.parametrize("task", [("worker", 1), ("ps", 0), ("evaluator", 3)])
def test_a_valid_configuration_has_no_findings(task):
    job = of(CLUSTER, *task)
    assert job.findings == ()
    assert job.task == f"{task[0]}:{task[1]}"
    assert job.addresses == {"ps:0": "p0:1", "worker:0": "w0:1", "worker:1": "w1:1"}
    assert job.num_trainers == 2


@pytest.mark.parametrize("environ", [{}, {"TF_CONFIG": " "}])
def test_no_configuration_is_a_note(environ):
    job = read(environ)
    assert checks(job) == ["absent"]
    assert job.findings[0].severity == "note"
    assert "tfdist run" in job.findings[0].fix
    what = "TF_CONFIG is set but empty" if environ else "TF_CONFIG is not set"
    assert job.findings[0].what == what
    assert (job.task, job.addresses, job.num_trainers) == (None, {}, None)


def test_an_unknown_type_suggests_a_known_one():
    assert of(CLUSTER, "wroker", 0).findings[0].what.endswith("; did you mean worker?")


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("{'cluster'", ["json"]),
        ("[1]", ["json"]),
        ("{}", ["task", "cluster"]),
        ('{"cluster": {"worker": ["a:1"]}}', ["task"]),
        ('{"cluster": {"worker": ["a:1"]}, "task": {}}', ["task", "task"]),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}', ["task"]),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"index": "x"}}', ["task", "index"]),
        ('{"cluster": [], "task": {"type": "worker", "index": 5}}', ["cluster"]),
        ('{"cluster": [], "task": {"type": "boss", "index": -1}}', ["cluster", "type", "index"]),
    ],
)
def test_a_malformed_configuration_is_an_error(text, reported):
    assert checks(of_text(text)) == reported


@pytest.mark.parametrize(
    ("cluster", "reported"),
    [
        (CLUSTER | {"evaluator": ["e0:1"]}, ["evaluator"]),
        (CLUSTER | {"worker": ["w0:1", "w0"]}, ["address"]),
        (CLUSTER | {"worker": ["w0:1", "w1:0"], "ps": ["p0"]}, ["address", "address"]),
        (CLUSTER | {"ps": ["w1:1"]}, ["same_address"]),
        (CLUSTER | {"ps": ["p0", "p0"]}, ["address", "address"]),
        (CLUSTER | {"chief": ["c0:1", "c1:1"]}, ["chief"]),
        (CLUSTER | {"chief": ["c0:1"], "master": ["c1:1"]}, ["chief"]),
        (CLUSTER | {"master": ["c0:1"]}, ["master"]),
        (CLUSTER | {"wroker": ["a:1"]}, ["cluster"]),
        (CLUSTER | {"ps": "p0:1"}, ["cluster"]),
        (CLUSTER | {"ps": {"1": "p1:1"}}, ["cluster"]),
        (
            {"evaluator": ["e:1"], "x": [], "chief": ["c", "d:1"]},
            ["evaluator", "cluster", "address", "chief"],
        ),
    ],
)
def test_mistakes_in_the_cluster_are_reported(cluster, reported):
    assert checks(of(cluster, "evaluator", 0)) == reported


@pytest.mark.parametrize(
    ("task", "reported"),
    [
        (("worker", 2), ["index"]),
        (("worker", -1), ["index"]),
        (("worker", None), ["index"]),
        (("boss", 0), ["type"]),
        (("boss", 1.5), ["type", "index"]),
        (("master", 0), ["master", "index"]),
    ],
)
def test_mistakes_in_the_task_are_reported(task, reported):
    job = of(CLUSTER, *task)
    assert checks(job) == reported
    assert job.task is None


def test_all_independent_mistakes_are_reported():
    cluster = {"ps": ["p0"], "worker": ["w0:1", "w0:1"], "evaluator": ["e:1"]}
    assert checks(of(cluster, "ps", 4)) == ["evaluator", "address", "same_address", "index"]


def test_a_wrong_address_does_not_hide_the_task_and_the_other_addresses():
    job = of(CLUSTER | {"ps": ["p0"]})
    assert job.task == "worker:1"
    assert job.addresses == {"worker:0": "w0:1", "worker:1": "w1:1"}


def test_a_consequence_of_a_mistake_is_not_reported():
    # worker:1 is missing only because its list has the wrong key.
    assert checks(of({"workers": ["w0:1", "w1:1"], "ps": ["p0:1"]})) == ["cluster"]


def test_a_master_is_read_as_the_chief():
    job = of({"master": ["c0:1"], "worker": ["w0:1"]}, "master", 0)
    assert (checks(job), job.findings[0].severity, job.task) == (["master"], "note", "chief:0")


def test_a_duplicate_key_is_reported():
    text = '{"cluster": {"ps": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}'
    job = of_text(text)
    assert checks(job) == ["repeated_key"]
    assert "'ps' twice" in job.findings[0].what


def test_a_long_value_is_cut():
    (finding,) = of_text("{" + "x" * 1000).findings
    assert len(finding.what) < 250


def test_the_message_is_that_of_task_from_env():
    (finding,) = of(CLUSTER, "worker", 7).findings
    rule = "got 7; the cluster has 2 worker task(s), numbered from 0"
    assert (finding.what, finding.severity) == (f"TF_CONFIG.task.index: {rule}", "error")


KEYS = st.sampled_from(["ps", "worker", "chief", "master", "evaluator", "x", "ps[0]", "a.b"])
JSON = st.recursive(
    st.none() | st.integers(-2, 3) | st.sampled_from(["", "a:1", "x"]), st.lists, max_leaves=4
)
ADDRESSES = st.lists(st.sampled_from(["a:1", "b:1", "c:1", "d", ""]) | JSON, max_size=4)
CLUSTERS = JSON | st.dictionaries(KEYS, ADDRESSES | JSON, max_size=4)
TASKS = JSON | st.fixed_dictionaries({}, optional={"type": KEYS | JSON, "index": JSON})


@pytest.mark.filterwarnings("ignore:task type 'master'")
@given(st.fixed_dictionaries({}, optional={"cluster": CLUSTERS, "task": TASKS}))
def test_any_configuration_is_read(config):
    text = json.dumps(config)
    job = of_text(text)
    errors = [finding for finding in job.findings if finding.severity == "error"]
    try:
        task = Task.from_env({"TF_CONFIG": text})
    except ValueError:
        assert errors
    else:
        assert errors == []
        assert job.task == task.name
