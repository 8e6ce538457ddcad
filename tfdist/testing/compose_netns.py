"""The services of a compose file on a network of namespaces: no engine, no image."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfdist.deadline import Deadline
from tfdist.errors import ClusterError, ConfigError, RunTimeout, StartTimeout
from tfdist.testing import service_health
from tfdist.testing.compose import Service, read_compose
from tfdist.testing.compose.service import COMPLETED, HEALTHY
from tfdist.testing.compose_nodes import ComposeNodes
from tfdist.testing.host_process import HostProcess
from tfdist.testing.network import Network
from tfdist.testing.root_folder import Bind, RootFolder
from tfdist.testing.service_health import HealthWatch

# What docker gives to a container whose image says nothing.
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
}
_LOOK_SECS = 0.02
_KILL_SECS = 5.0


class NetnsNodes(ComposeNodes):
    """Each service on a host of its own, with a root folder of its own.

    The image is taken as empty: a service finds its volumes, and nothing else. A named volume is a
    folder in the one that the hosts share, so `faults.DiskFull` fills it. What confines a container
    (`read_only`, `cap_drop`, `security_opt`) is not held.

    Args:
        paths: a compose file and its overrides.
        profiles: whose services are wanted too.
        relayed: services whose links can be given delay, jitter and loss.
        environ: for the variables of the files.

    Attributes:
        network: its hosts have the services' names.

    Raises:
        ConfigError: a file is wrong, or asks for what a network of namespaces has not.
        ClusterError: this machine cannot have such a network.
    """

    backend = "netns"

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        profiles: Sequence[str] = (),
        *,
        relayed: Sequence[str] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._services = read_compose(paths, profiles, environ).services
        _check_services(self._services)
        roots = {name: _root_folder(service) for name, service in self._services.items()}
        self.network = Network(list(self._services), relayed=relayed, roots=roots)
        self._processes: dict[str, HostProcess] = {}
        self._watches: dict[str, HealthWatch] = {}
        self._logs = tempfile.TemporaryDirectory(prefix="tfdist-nodes-")
        try:
            self.network.__enter__()
        except BaseException:
            self._logs.cleanup()
            raise

    def up(self, timeout: float) -> None:  # noqa: D102
        deadline = Deadline(timeout)
        waiting = dict(self._services)
        while waiting:
            for name, service in list(waiting.items()):
                if all(self._holds(*each) for each in service.depends_on.items()):
                    self._start(name)
                    del waiting[name]
            if waiting and deadline.expired:
                first = next(iter(waiting.values()))
                told = ", ".join(f"{name} ({what})" for name, what in first.depends_on.items())
                raise StartTimeout(list(waiting), timeout, f"{first.name} depends on {told}")
            time.sleep(_LOOK_SECS if waiting else 0)

    def wait(self, service: str, timeout: float) -> int:  # noqa: D102
        try:
            code = self._process(service).wait(timeout)
        except subprocess.TimeoutExpired:
            raise RunTimeout([service], timeout) from None
        return code if code >= 0 else 128 - code

    def health(self, service: str) -> str:  # noqa: D102
        has_ended = self._process(service).poll() is not None
        if service not in self._watches:
            return ""
        return service_health.UNHEALTHY if has_ended else self._watches[service].state

    def output(self, service: str) -> str:  # noqa: D102
        log = self._log(service)
        return log.read_text(errors="replace") if log.exists() else ""

    def stop(self, service: str) -> None:  # noqa: D102
        process = self._process(service)
        process.ask_to_end()
        try:
            process.wait(self._services[service].stop_grace_secs)
        except subprocess.TimeoutExpired:
            self.kill(service)

    def kill(self, name: str) -> None:  # noqa: D102
        process = self._process(name)
        process.kill()
        process.wait(_KILL_SECS)

    def restart(self, name: str) -> None:  # noqa: D102
        if self._process(name).poll() is None:
            raise ClusterError(f"{name} runs, so it cannot be started again")
        self._start(name)

    def pause(self, name: str) -> None:  # noqa: D102
        self._process(name).stop()

    def resume(self, name: str) -> None:  # noqa: D102
        self._process(name).wake()

    def close(self) -> None:  # noqa: D102
        self.network.close()
        for watch in self._watches.values():
            watch.stop()
        self._logs.cleanup()

    def _process(self, name: str) -> HostProcess:
        if name not in self._services:
            raise ConfigError("service", name, f"one of {', '.join(self._services)}")
        if name not in self._processes:
            raise ClusterError(f"{name} was not started")
        return self._processes[name]

    def _log(self, name: str) -> Path:
        return Path(self._logs.name) / name

    def _start(self, name: str) -> None:
        service = self._services[name]
        if name in self._watches:
            self._watches.pop(name).stop()
        with open(self._log(name), "ab") as log:
            self._processes[name] = self._run(service, service.command, log.fileno())
        if service.healthcheck is not None:
            test = service.healthcheck.test
            self._watches[name] = HealthWatch(
                service.healthcheck, lambda timeout: self._succeeds(service, test, timeout), name
            )

    def _run(self, service: Service, command: Sequence[str], output: int) -> HostProcess:
        return self.network.start(
            service.name,
            command,
            cwd=service.working_dir,
            environment={**_ENVIRONMENT, "HOSTNAME": service.name, **service.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def _succeeds(self, service: Service, test: Sequence[str], timeout: float) -> bool:
        if self._processes[service.name].poll() is not None:
            return False
        try:
            process = self._run(service, test, subprocess.DEVNULL)
        except ClusterError:  # all has ended
            return False
        try:
            return process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_KILL_SECS)
            return False

    def _holds(self, name: str, condition: str) -> bool:
        """Whether a service is as another one needs it; ClusterError if it never will be."""
        process = self._processes.get(name)
        if process is None:
            return False
        if condition == COMPLETED:
            if process.poll():
                raise ClusterError(f"{name} ended with exit code {self.wait(name, 0)}")
            return process.returncode == 0
        if condition == HEALTHY:
            if process.poll() is not None or self.health(name) == service_health.UNHEALTHY:
                state = "unhealthy" if process.returncode is None else "over"
                raise ClusterError(f"{name} is {state}, and others wait for it to be healthy")
            return self.health(name) == service_health.HEALTHY
        return True


def _root_folder(service: Service) -> RootFolder:
    binds = [Bind(each.source, each.target, each.read_only) for each in service.volumes]
    return RootFolder(binds, service.tmpfs)


def _check_services(services: Mapping[str, Service]) -> None:
    """Raises ConfigError for what a network of namespaces has not."""
    one = {service.networks for service in services.values()}
    for name, service in services.items():
        for field, value, is_possible, rule in (
            ("networks", service.networks, len(one) == 1, "the same ones for all services"),
            ("ports", service.ports, not service.ports, "none, for nobody outside could come in"),
            ("command", service.command, bool(service.command), "one: there is no image"),
            ("hostname", service.hostname, service.hostname == name, "the service's name"),
        ):
            if not is_possible:
                raise ConfigError(f"services.{name}.{field}", value, f"without docker: {rule}")
        for other, condition in service.depends_on.items():
            if condition == HEALTHY and services[other].healthcheck is None:
                field = f"services.{name}.depends_on"
                raise ConfigError(field, other, "a service with a healthcheck")
