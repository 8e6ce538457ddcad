"""Runs the services of a compose file by docker compose, version 1 or 2."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from tfdist.errors import ClusterError, ConfigError, RunTimeout, StartTimeout
from tfdist.testing.compose.interface import ComposeNodes
from tfdist.testing.compose.reader import read_compose

_ANSWER_SECS = 60.0
_HEALTH = "{{if .State.Health}}{{.State.Health.Status}}{{end}}"


class EngineNodes(ComposeNodes):
    """Each service in a container, on the engine of DOCKER_HOST or on docker's default one.

    The engine must have the images or be able to pull them. Each object is a project with a name of
    its own, so the same file can be up several times.

    Args:
        paths: a compose file and its overrides.
        profiles: the profiles whose services are included too.
        environ: the variables of docker compose and of the files.

    Raises:
        ConfigError: a file is wrong, or has a key that tfdist does not support.
        ClusterError: there is no docker compose.
    """

    backend = "compose"

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        profiles: Sequence[str] = (),
        *,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._services = read_compose(paths, profiles, environ).services
        self._environ = dict(environ)
        self._containers: dict[str, str] = {}
        compose = _found_compose(environ)
        if compose is None:
            raise ClusterError("there is neither docker compose nor docker-compose")
        files = [word for path in paths for word in ("-f", os.fspath(path))]
        wanted = [word for profile in profiles for word in ("--profile", profile)]
        self._project = f"tfdist-{secrets.token_hex(4)}"
        self._compose = [*compose, "-p", self._project, *files, *wanted]
        self._was_up = False

    def up(self, timeout: float) -> None:  # noqa: D102
        self._was_up = True
        late = StartTimeout(list(self._services), timeout, "docker compose has not ended")
        self._run([*self._compose, "up", "-d"], timeout, late)

    def wait(self, service: str, timeout: float) -> int:  # noqa: D102
        late = RunTimeout([service], timeout)
        return int(self._run(["docker", "wait", self._container(service)], timeout, late))

    def health(self, service: str) -> str:  # noqa: D102
        container = self._container(service)
        return self._run(["docker", "inspect", "--format", _HEALTH, container]).strip()

    def output(self, service: str) -> str:  # noqa: D102
        return self._run(["docker", "logs", self._container(service)])

    def stop(self, service: str) -> None:  # noqa: D102
        container = self._container(service)
        grace = math.ceil(self._services[service].stop_grace_secs)
        self._run(["docker", "stop", "--time", str(grace), container], _ANSWER_SECS + grace)

    def kill(self, name: str) -> None:  # noqa: D102
        self._run(["docker", "kill", self._container(name)])
        self.wait(name, _ANSWER_SECS)

    def restart(self, name: str) -> None:  # noqa: D102
        self._run(["docker", "start", self._container(name)])

    def pause(self, name: str) -> None:  # noqa: D102
        self._run(["docker", "pause", self._container(name)])

    def resume(self, name: str) -> None:  # noqa: D102
        self._run(["docker", "unpause", self._container(name)])

    def close(self) -> None:  # noqa: D102
        if self._was_up:
            self._run([*self._compose, "down", "--volumes", "--timeout", "0"])

    def _container(self, service: str) -> str:
        if service not in self._services:
            raise ConfigError("service", service, f"must be one of {', '.join(self._services)}")
        if service not in self._containers:
            labels = {"project": self._project, "service": service}
            wanted = [
                word
                for key, value in labels.items()
                for word in ("--filter", f"label=com.docker.compose.{key}={value}")
            ]
            found = self._run(["docker", "ps", "--all", "--quiet", *wanted]).strip()
            if not found:
                raise ClusterError(f"{service} was not started")
            self._containers[service] = found  # a restart keeps the container
        return self._containers[service]

    def _run(
        self,
        command: Sequence[str],
        timeout: float = _ANSWER_SECS,
        late: ClusterError | None = None,
    ) -> str:
        """The command's output on both streams; if it fails, ClusterError with that output.

        After `timeout` seconds it raises `late`, or a ClusterError that names the command.
        """
        what = " ".join(command)
        try:
            ended = _ran(command, self._environ, timeout)
        except subprocess.TimeoutExpired:
            raise late or ClusterError(f"{what}: no answer after {timeout:g} s") from None
        if ended.returncode != 0:
            raise ClusterError(f"{what}: {ended.stdout.strip()}")
        return ended.stdout


def missing_for_engine(environ: Mapping[str, str] = os.environ) -> str:
    """What this machine lacks for `EngineNodes`, in words; empty if it lacks nothing."""
    if shutil.which("docker", path=environ.get("PATH")) is None:
        return "the program docker"
    if _found_compose(environ) is None:
        return "docker compose, version 2, or docker-compose, version 1"
    answer = _tried(["docker", "version", "--format", "{{.Server.Version}}"], environ)
    return "" if answer.returncode == 0 else f"a docker engine: {answer.stdout.strip()}"


def _found_compose(environ: Mapping[str, str]) -> list[str] | None:
    """The command of version 2, a plugin of docker, or of version 1, a program; None without."""
    path = environ.get("PATH")
    plugin = ["docker", "compose"]
    if shutil.which("docker", path=path) and not _tried([*plugin, "version"], environ).returncode:
        return plugin
    return ["docker-compose"] if shutil.which("docker-compose", path=path) else None


def _tried(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Like `_ran`, but a timeout is a failed command."""
    try:
        return _ran(command, environ, _ANSWER_SECS)
    except subprocess.TimeoutExpired as late:
        return subprocess.CompletedProcess(late.cmd, 1, f"no answer after {_ANSWER_SECS:g} s")


def _ran(
    command: Sequence[str], environ: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
