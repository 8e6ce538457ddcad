"""`tfdist compose` writes files that their readers understand; the tests read them back."""

import json
import shlex

import pytest
import yaml

from tfdist.cli import main
from tfdist.cli.compose import FORMATS
from tfdist.cluster.shape import Shape
from tfdist.deploy.deployment import Deployment
from tfdist.errors import ConfigError
from tfdist.task import Task
from tfdist.testing import read_compose
from tfdist.testing.compose.service import Volume

SHAPES = [
    Shape(num_ps=2, num_workers=4, chief=True),
    Shape(num_ps=1, num_workers=1),
    Shape(num_ps=2, num_workers=2, coordinator=True),
    Shape(num_ps=0, num_workers=2),
]
# Strings that are special in a shell, in YAML, or as variables of docker and Kubernetes.
HARD = ("1e-3", "yes", "", "a b", "'", '"', "$HOME", "$(HOME)", "$$", "#x", "012", "---", "ü", "-1")


def job(shape=SHAPES[0], **changes):
    return Deployment(shape, "train.py", **changes)


def manifests(job, form="kubernetes"):
    """The documents by kind."""
    found = {}
    for document in yaml.safe_load_all(FORMATS[form](job)):
        found.setdefault(document["kind"], []).append(document)
    return found


def as_kubernetes_expands(text):
    """A text without variables: two dollars become one."""
    return text.replace("$$", "$")


@pytest.fixture
def compose(tmp_path):
    """Writes the job for docker compose and reads it back."""

    def read(job):
        path = tmp_path / "compose.yaml"
        path.write_text(FORMATS["compose"](job))
        return read_compose([path], environ={})

    return read


@pytest.mark.parametrize("shape", SHAPES)
def test_the_name_of_each_service_is_the_address_of_its_task(compose, shape):
    file = compose(job(shape))
    tasks = [Task.from_env(service.environment) for service in file.services.values()]
    wanted = shape.tasks([f"a:{port}" for port in range(1, shape.num_servers + 1)])
    assert [task.name for task in tasks] == [task.name for task in wanted]
    for task, (name, service) in zip(tasks, file.services.items(), strict=True):
        assert task.address == f"{name}:2222"
        assert service.hostname == name
        assert service.command[:2] == ("tfdist", "node")
        assert ("--coordinator" in service.command) == shape.coordinator
        # Docker stops a trainer before its servers.
        others = {} if shape.serves(task) else {t.name.replace(":", "-"): t for t in tasks}
        servers = [name for name, other in others.items() if shape.serves(other)]
        assert service.depends_on == dict.fromkeys(servers, "service_started")


def test_a_compose_file_has_an_internal_network_and_one_volume(compose):
    file = compose(job(checkpoints="/data", source="src"))
    assert all(network.internal for network in file.networks.values())
    for service in file.services.values():
        assert service.networks == ("cluster",)
        assert service.ports == ()
        assert service.init
        assert service.healthcheck.test == ("tfdist", "status", "--local")
        assert service.volumes[0].source.endswith("/src")
        assert service.volumes[0].read_only
        assert service.volumes[1:] == (Volume("checkpoints", "/data", is_bind=False),)
    assert file.volumes == ("checkpoints",)


def test_a_stack_file_follows_the_rules_of_swarm():
    stack = yaml.safe_load(FORMATS["swarm"](job()))
    for service in stack["services"].values():
        # Swarm rejects `security_opt` and silently ignores `tmpfs`.
        assert not {"security_opt", "tmpfs"} & service.keys()
        assert {"type": "tmpfs", "target": "/tmp"} in service["volumes"]
        assert "depends_on" not in service
        assert service["healthcheck"] == {"disable": True}
        assert service["deploy"]["endpoint_mode"] == "dnsrr"
        assert service["deploy"]["restart_policy"] == {"condition": "none"}
    assert stack["networks"] == {"cluster": {"driver": "overlay", "internal": True}}


def test_special_characters_in_arguments_survive(compose):
    hard = job(arguments=HARD)
    for service in compose(hard).services.values():
        assert service.command == ("tfdist", "node", "train.py", "--", *HARD)
    for document in manifests(hard)["Job"]:
        [container] = document["spec"]["template"]["spec"]["containers"]
        assert tuple(map(as_kubernetes_expands, container["command"]))[4:] == HARD
    stack = yaml.safe_load(FORMATS["swarm"](hard))
    assert [word.replace("$$", "$") for word in stack["x-task"]["command"]][4:] == list(HARD)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_names_in_tf_config_resolve_to_the_pods(shape):
    found = manifests(job(shape, name="mine"))
    [service] = found["Service"]
    assert service["spec"]["publishNotReadyAddresses"]
    names = set()
    for document in found["Job"]:
        template = document["spec"]["template"]
        pod = template["spec"]
        environ = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
        task = Task.from_env(environ)
        assert task.address == f"{pod['hostname']}.{pod['subdomain']}:2222"
        assert pod["subdomain"] == service["metadata"]["name"]
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        names.add(document["metadata"]["name"])
        claims = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        assert len(claims) == task.is_chief
        # A restarted ps has lost its variables.
        assert ("podFailurePolicy" in document["spec"]) == (not shape.serves(task))
    assert len(names) == len(found["Job"]) == shape.num_servers


@pytest.mark.parametrize("form", ["kubernetes", "tfjob"])
def test_the_network_policy_admits_only_the_job(form):
    found = manifests(job(), form)
    [policy] = found["NetworkPolicy"]
    [rule] = policy["spec"]["ingress"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert rule["from"] == [{"podSelector": policy["spec"]["podSelector"]}]
    assert [port["port"] for port in rule["ports"]] == [2222]
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    if form == "tfjob":  # the operator puts this label on the pods
        assert dict(selected) == {"training.kubeflow.org/job-name": "train"}
    for document in found.get("Job", []):
        assert selected <= document["spec"]["template"]["metadata"]["labels"].items()


def test_a_pod_has_the_least_privileges():
    for document in manifests(job())["Job"]:
        assert document["spec"]["backoffLimit"] == 0
        pod = document["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        [container] = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize(
    ("shape", "kinds", "keeper", "mode"),
    [
        (SHAPES[0], {"PS": 2, "Chief": 1, "Worker": 4}, "Chief", "ReadWriteOnce"),
        (SHAPES[1], {"PS": 1, "Worker": 1}, "Worker", "ReadWriteOnce"),
        (SHAPES[3], {"Worker": 2}, "Worker", "ReadWriteMany"),
    ],
)
def test_a_tfjob_follows_the_rules_of_the_operator(shape, kinds, keeper, mode):
    found = manifests(job(shape), "tfjob")
    [tfjob], [claim] = found["TFJob"], found["PersistentVolumeClaim"]
    assert tfjob["spec"]["successPolicy"] == "AllWorkers"
    replicas = tfjob["spec"]["tfReplicaSpecs"]
    assert {kind: each["replicas"] for kind, each in replicas.items()} == kinds
    for kind, each in replicas.items():
        [container] = each["template"]["spec"]["containers"]
        assert container["name"] == "tensorflow"
        assert container["ports"] == [{"name": "tfjob-port", "containerPort": 2222}]
        assert "env" not in container  # the operator sets TF_CONFIG
        assert "readinessProbe" not in container
        has_claim = "persistentVolumeClaim" in each["template"]["spec"]["volumes"][0]
        assert has_claim == (kind == keeper)
    assert claim["spec"]["accessModes"] == [mode]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_command_in_the_header_writes_the_same_file(form, shape, capsys):
    changes = {"source": "."} if form == "compose" else {}
    changes |= {"name": "mine"} if form in ("kubernetes", "tfjob") else {}
    image = "images.example/a:1"
    text = FORMATS[form](job(shape, arguments=HARD, image=image, checkpoints="/c", **changes))
    program, *arguments = shlex.split(text.splitlines()[1].removeprefix("#"))
    if form == "compose":
        arguments[arguments.index("--source") + 1] = "no-such-folder"
        text = text.replace("--source .", "--source no-such-folder")
        text = text.replace(".:/srv/job", "./no-such-folder:/srv/job")
    assert program == "tfdist"
    assert main(arguments) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    ("arguments", "field", "rule"),
    [
        (["--workers", "0"], "--workers", "at least 1"),
        (["--ps", "-1"], "--ps", "at least 0"),
        (["--ps", "0", "--coordinator"], "--ps", "at least 1 with --coordinator"),
        (["--classic-flags", "--chief"], "--chief", "cannot be combined with --classic-flags"),
        (["--for", "swarm", "--source", "."], "--source", "needs --for compose"),
        (["--source", ""], "--source", "a folder"),
        (["--source", "/"], "script", "a file in --source /"),
        (["--name", "mine"], "--name", "needs --for kubernetes or"),
        (["--for", "tfjob", "--name", "My_Job"], "--name", "must be at most 40 of a-z"),
        (["--checkpoints", "data"], "--checkpoints", "an absolute path"),
        (["--checkpoints", "/tmp/"], "--checkpoints", "other than /, /tmp"),
        (["--image", ""], "--image", "the name of an image"),
        (["--image", "a\nb"], "--image", "printable"),
    ],
)
def test_bad_input_is_one_line_and_2(arguments, field, rule, capsys):
    assert main(["compose", *arguments, "train.py"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith((f"tfdist: {field}: got ", f"tfdist: {field} cannot be "))
    assert rule in err


def test_a_script_outside_the_working_directory_is_rejected(capsys):
    assert main(["compose", "a/../../x.py"]) == 2
    assert capsys.readouterr().err == "tfdist: script: got 'a/../../x.py'; must be in /srv/job\n"


def test_an_argument_with_a_newline_is_rejected():
    with pytest.raises(ConfigError, match="argument"):
        job(arguments=("a", "b\nservices: {}"))


def test_tf_config_is_what_task_to_env_returns(compose):
    for service in compose(job()).services.values():
        text = service.environment["TF_CONFIG"]
        assert Task.from_env({"TF_CONFIG": text}).to_env() == text
        json.loads(text)
