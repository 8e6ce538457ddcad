"""Services of a compose file follow the file, on each back end.

The tests with docker run if DOCKER_HOST is set, as under scripts/with-dockerd.
"""

import json
import os
import shutil
import subprocess

import pytest

from tests.multinode.conftest import ECHO
from tfdist.errors import ClusterError, ConfigError, RunTimeout, StartTimeout
from tfdist.testing import compose_nodes, faults, poll_until

BACKENDS = ["netns", *(["compose"] if "DOCKER_HOST" in os.environ else [])]

# An empty image with the programs of this machine.
HEAD = """
x-any: &any
  image: tfdist-empty
  stop_grace_period: 1s
  tmpfs: [/tmp]
  networks: [inside]
  volumes:
    - /usr:/usr:ro
    - /bin:/bin:ro
    - /lib:/lib:ro
    - /lib64:/lib64:ro
    - shared:/srv/shared
networks:
  inside:
    internal: true
volumes:
  shared:
services:
"""
PROGRAMS = ("usr", "bin", "lib", "lib64")
# Healthy once its file is there.
READY = "{test: [CMD, test, -f, /tmp/ready], interval: 100ms, timeout: 5s, retries: 3}"
UNTIL_TERM = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done"


def service(name, script, *more):
    lines = [f"<<: *any\n    command: [sh, -c, {json.dumps(script)}]", *more]
    return f"  {name}:\n" + "".join(f"    {line}\n" for line in lines)


@pytest.fixture(params=BACKENDS)
def project(request, tmp_path):
    """Makes the nodes of a file with these services, which are not up yet."""
    if request.param == "compose":
        empty = f"tar --create --files-from {os.devnull} | docker import - tfdist-empty"
        subprocess.run(empty, shell=True, check=True, stdout=subprocess.DEVNULL, timeout=60)
    opened = []

    def make(*services):
        (tmp_path / "compose.yaml").write_text(HEAD + "".join(services))
        environ = {**os.environ, "TFDIST_NODES": request.param}
        nodes = compose_nodes([tmp_path / "compose.yaml"], environ=environ)
        opened.append(nodes)
        assert nodes.backend == request.param
        return nodes

    yield make
    for nodes in opened:
        nodes.close()


def test_a_service_starts_when_its_conditions_hold(project):
    nodes = project(
        service("last", "cat /srv/shared/*; exit 5", "depends_on:",
                "  first: {condition: service_healthy}",
                "  once: {condition: service_completed_successfully}"),
        service("once", "sleep 0.3; echo once >/srv/shared/2"),
        service("first", "echo first >/srv/shared/1; sleep 1; touch /tmp/ready; sleep 600",
                # More than three checks fail in the start period, and do not count.
                f"healthcheck: {READY[:-1]}, start_period: 1m}}"),
    )  # fmt: skip
    nodes.up(60)
    assert nodes.wait("last", 30) == 5
    assert nodes.output("last") == "first\nonce\n"
    assert nodes.health("first") == "healthy"
    assert nodes.health("last") == ""
    nodes.kill("first")
    poll_until(lambda: nodes.health("first") == "unhealthy", "first is unhealthy")


@pytest.mark.parametrize(
    ("script", "condition"),
    [
        ("sleep 600", "service_healthy"),
        ("exit 7", "service_completed_successfully"),
    ],
)
def test_a_condition_that_can_no_longer_hold_is_an_error(project, script, condition):
    nodes = project(
        service("first", script, f"healthcheck: {READY}"),
        service("last", "true", "depends_on:", f"  first: {{condition: {condition}}}"),
    )
    with pytest.raises(ClusterError, match="first"):
        nodes.up(60)


@pytest.mark.parametrize("project", ["netns"], indirect=True)
def test_an_ended_service_can_no_longer_be_healthy(project):
    # docker-compose 1.29 starts `last` anyway in one of six runs.
    nodes = project(
        service("first", "exit 7", f"healthcheck: {READY}"),
        service("last", "true", "depends_on:", "  first: {condition: service_healthy}"),
    )
    with pytest.raises(ClusterError, match="first has ended"):
        nodes.up(60)


def test_the_time_to_start_is_limited(project):
    nodes = project(
        service("first", "sleep 600"),
        service("last", "true", "depends_on:",
                "  first: {condition: service_completed_successfully}"),
    )  # fmt: skip
    with pytest.raises(StartTimeout, match="last"):
        nodes.up(2)


def test_a_service_has_its_name_folder_variables_and_mounts(project):
    value = json.dumps({"cluster": {"ps": ["a:1"]}, "text": "two words, a ' and a $$ sign"})
    nodes = project(
        service("one", "hostname; pwd; echo \"$$VALUE\"; env | grep -c LEAKED; ls -A /tmp /srv",
                "working_dir: /srv/shared", "environment:", f"  VALUE: {json.dumps(value)}"),
    )  # fmt: skip
    os.environ["LEAKED"] = "yes"
    try:
        nodes.up(60)
    finally:
        del os.environ["LEAKED"]
    nodes.wait("one", 30)
    host, folder, found, leaked, *listed = nodes.output("one").splitlines()
    if nodes.backend == "netns":  # docker uses the id of a container without `hostname`
        assert host == "one"
    assert folder == "/srv/shared"
    assert found == value.replace("$$", "$")
    assert (leaked, listed) == ("0", ["/srv:", "shared", "", "/tmp:"])


def test_services_reach_one_another_by_name_and_nothing_outside(project):
    mounts = f"- {os.path.dirname(ECHO[-1])}:/srv/tests:ro"
    python = "/usr/bin/python3 -I -S /srv/tests/echo.py"
    volumes = ["volumes:", f"  {mounts}", *(f"  - /{x}:/{x}:ro" for x in PROGRAMS)]
    nodes = project(
        service("server", f"{python} serve", *volumes),
        service("client", f"until {python} ask server 1 10 | grep trips; do :; done; "
                f"{python} ask 192.0.2.1 2 1", *volumes, "depends_on: [server]"),
    )  # fmt: skip
    nodes.up(60)
    assert nodes.wait("client", 30) == 0
    reached, outside = map(json.loads, nodes.output("client").splitlines()[-2:])
    assert len(reached["trips"]) == 6
    assert "error" in outside


def test_stop_sends_sigterm_and_sigkill_after_the_grace(project):
    nodes = project(
        service("polite", UNTIL_TERM), service("deaf", "trap '' TERM; echo ready; sleep 600")
    )
    nodes.up(60)
    for name in ("polite", "deaf"):
        poll_until(lambda name=name: "ready" in nodes.output(name), "the service runs")
        nodes.stop(name)
    assert nodes.wait("polite", 10) == 3
    assert nodes.output("polite") == "ready\nbye\n"
    assert nodes.wait("deaf", 10) == 137


def test_a_service_is_killed_and_restarted(project):
    nodes = project(service("one", "echo started >>/srv/shared/starts; " + UNTIL_TERM))
    nodes.up(60)
    poll_until(lambda: nodes.output("one") == "ready\n", "the service runs")
    with pytest.raises(RunTimeout, match="one"):
        nodes.wait("one", 0.5)
    with faults.Restart("one").on(nodes):
        assert nodes.wait("one", 10) == 137
    poll_until(lambda: nodes.output("one") == "ready\nready\n", "the service runs again")


def test_a_service_is_paused_and_resumed(project):
    nodes = project(service("one", "while :; do date +%s%N; sleep 0.02; done"))
    nodes.up(60)
    poll_until(lambda: nodes.output("one"), "the service runs")
    with faults.Pause("one").on(nodes):
        before = nodes.output("one")
        with pytest.raises(RunTimeout):
            nodes.wait("one", 0.3)
        assert nodes.output("one") == before
    poll_until(lambda: nodes.output("one") != before, "the service continues")


def test_an_unknown_or_unstarted_service_is_an_error(project):
    nodes = project(service("one", "true"))
    with pytest.raises(ConfigError, match="service: got 'two'"):
        nodes.wait("two", 1)
    with pytest.raises(ClusterError, match="one was not started"):
        nodes.kill("one")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["ports: ['1:1']"], "services.one.ports"),
        (["hostname: other"], "services.one.hostname"),
        (["networks: [other]"], r"services.\w*.networks"),
        (["cpus: 2"], "services.one.cpus"),
    ],
)
def test_what_namespaces_do_not_support_is_rejected(tmp_path, more, message):
    text = HEAD.replace("networks:\n  inside:", "networks:\n  other:\n  inside:", 1)
    (tmp_path / "compose.yaml").write_text(
        text + service("two", "true") + service("one", "true", *more)
    )
    with pytest.raises(ConfigError, match=message):
        compose_nodes(
            [tmp_path / "compose.yaml"],
            environ={"TFDIST_NODES": "netns", "PATH": os.environ["PATH"]},
        )


@pytest.fixture
def choose(monkeypatch, tmp_path):
    """The back end that is chosen on a machine with or without an engine and root."""
    (tmp_path / "compose.yaml").write_text(HEAD + service("one", "true"))
    for name in ("ip", "tc", "nsenter"):
        (tmp_path / name).symlink_to(shutil.which(name))

    def choose(choice, ci, root, engine):
        docker = tmp_path / "docker"
        answer = "exit 0" if engine else "test $1 != version && exit 0; echo no engine here; exit 1"
        docker.write_text(f"#!/bin/sh\n{answer}\n")
        docker.chmod(0o755)
        if not root:
            monkeypatch.setattr(os, "geteuid", lambda: 1000)
        environ = {"TFDIST_NODES": choice, "CI": ci, "PATH": str(tmp_path)}
        with compose_nodes([tmp_path / "compose.yaml"], environ=environ) as nodes:
            return nodes.backend

    return choose


@pytest.mark.parametrize(
    ("choice", "ci", "root", "engine", "chosen"),
    [
        ("netns", "", True, True, "netns"),
        ("compose", "", True, True, "compose"),
        ("auto", "", True, True, "netns"),
        ("auto", "1", True, True, "netns"),
        ("", "", True, False, "netns"),
        ("auto", "", False, True, "compose"),
    ],
)
def test_tfdist_nodes_chooses_the_back_end(choose, choice, ci, root, engine, chosen):
    assert choose(choice, ci, root, engine) == chosen


@pytest.mark.parametrize(
    ("choice", "ci", "root", "engine", "message"),
    [
        ("netns", "", False, True, "TFDIST_NODES=netns needs root"),
        ("compose", "", True, False, "TFDIST_NODES=compose needs a docker engine: no engine here"),
        ("auto", "1", False, True, "TFDIST_NODES=netns needs root"),
        ("auto", "", False, False, "TFDIST_NODES=netns needs root"),
        ("podman", "", True, True, "TFDIST_NODES: got 'podman'; must be one of netns, "),
    ],
)
def test_no_other_back_end_replaces_a_missing_one(choose, choice, ci, root, engine, message):
    with pytest.raises((ClusterError, ConfigError), match=message):
        choose(choice, ci, root, engine)
