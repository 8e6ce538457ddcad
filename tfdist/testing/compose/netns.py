"""Runs the services of a compose file on a network of namespaces, without engine and images."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tfdist.deadline import Deadline
from tfdist.errors import ClusterError, ConfigError, RunTimeout, StartTimeout
from tfdist.testing.compose.interface import ComposeNodes
from tfdist.testing.compose.reader import read_compose
from tfdist.testing.compose.service import COMPLETED, HEALTHY, Healthcheck, Service
from tfdist.testing.holder import Bind, RootFolder
from tfdist.testing.network import HostProcess, Network

_STARTING, _HEALTHY, _UNHEALTHY = "starting", "healthy", "unhealthy"

# Docker's variables for a container whose image sets none.
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
}
_POLL_SECS = 0.02
_KILL_SECS = 5.0


class NetnsNodes(ComposeNodes):
    """Each service on a host with its own root folder.

    Every image counts as empty: a service sees its volumes and nothing else. A named volume is a
    subfolder of the folder that the hosts share, so `faults.DiskFull` fills it. `read_only`,
    `cap_drop` and `security_opt`, which confine a container, have no effect.

    Args:
        paths: a compose file and its overrides.
        profiles: the profiles whose services are included too.
        relayed: services whose links can have delay, jitter and loss.
        environ: the variables of the files.

    Attributes:
        network: its hosts have the services' names.

    Raises:
        ConfigError: a file is wrong, or needs what a network of namespaces does not have.
        ClusterError: this machine does not support such a network.
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
                needs = ", ".join(f"{name} ({what})" for name, what in first.depends_on.items())
                raise StartTimeout(list(waiting), timeout, f"{first.name} depends on {needs}")
            time.sleep(_POLL_SECS if waiting else 0)

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
        return _UNHEALTHY if has_ended else self._watches[service].state

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
            raise ClusterError(f"{name} is running, so it cannot be started again")
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
            raise ConfigError("service", name, f"must be one of {', '.join(self._services)}")
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
        except ClusterError:  # the network is closed
            return False
        try:
            return process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_KILL_SECS)
            return False

    def _holds(self, name: str, condition: str) -> bool:
        """Whether a service meets the condition; ClusterError if it no longer can."""
        process = self._processes.get(name)
        if process is None:
            return False
        if condition == COMPLETED:
            if process.poll():
                raise ClusterError(f"{name} ended with exit code {self.wait(name, 0)}")
            return process.returncode == 0
        if condition == HEALTHY:
            if process.poll() is not None or self.health(name) == _UNHEALTHY:
                state = "is unhealthy" if process.returncode is None else "has ended"
                raise ClusterError(f"{name} {state}, and other services wait until it is healthy")
            return self.health(name) == _HEALTHY
        return True


def _root_folder(service: Service) -> RootFolder:
    binds = [Bind(each.source, each.target, each.read_only) for each in service.volumes]
    return RootFolder(binds, service.tmpfs)


def _check_services(services: Mapping[str, Service]) -> None:
    """Raises ConfigError for what a network of namespaces does not have."""
    all_networks = {service.networks for service in services.values()}
    for name, service in services.items():
        for field, value, is_possible, rule in (
            (
                "networks",
                service.networks,
                len(all_networks) == 1,
                "must be the same for all services",
            ),
            (
                "ports",
                service.ports,
                not service.ports,
                "must be empty, because the network is closed",
            ),
            (
                "command",
                service.command,
                bool(service.command),
                "must be set, because there is no image",
            ),
            ("hostname", service.hostname, service.hostname == name, "must be the service's name"),
        ):
            if not is_possible:
                raise ConfigError(f"services.{name}.{field}", value, f"without docker: {rule}")
        for other, condition in service.depends_on.items():
            if condition == HEALTHY and services[other].healthcheck is None:
                field = f"services.{name}.depends_on"
                raise ConfigError(field, other, "must be a service with a healthcheck")


class HealthRecord:
    """The state of a service after its checks so far, by docker's rules.

    Args:
        healthcheck: its rules.
        clock: returns seconds; they never decrease.

    Attributes:
        state: "starting" until a check succeeds or too many have failed, then "healthy" or
            "unhealthy".
    """

    def __init__(
        self, healthcheck: Healthcheck, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rules, self._clock, self._start = healthcheck, clock, clock()
        self._failures = 0
        self.state = _STARTING

    def note(self, succeeded: bool) -> None:
        """Records the result of a check."""
        if succeeded:
            self._failures, self.state = 0, _HEALTHY
            return
        is_start = self.state == _STARTING
        if is_start and self._clock() - self._start < self._rules.start_period_secs:
            return
        self._failures += 1
        if self._failures >= self._rules.retries:
            self.state = _UNHEALTHY


class HealthWatch:
    """Checks a service in a thread until `stop`.

    Args:
        healthcheck: its rules.
        check: runs the test with a timeout in seconds and returns whether it succeeded.
        name: the name of the service.
    """

    def __init__(self, healthcheck: Healthcheck, check: Callable[[float], bool], name: str) -> None:
        self._healthcheck, self._check = healthcheck, check
        self._record = HealthRecord(healthcheck)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"{name} health", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        """The state of the service; see `HealthRecord`."""
        return self._record.state

    def stop(self) -> None:
        """Ends the thread; blocks for at most the duration of one check."""
        self._is_over.set()
        self._thread.join(self._healthcheck.timeout_secs + 1)

    def _watch(self) -> None:
        while not self._is_over.wait(self._healthcheck.interval_secs):
            self._record.note(self._check(self._healthcheck.timeout_secs))
