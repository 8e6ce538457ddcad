"""The services of a compose file in a test: one interface, with docker or without."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

Self = TypeVar("Self", bound="ComposeNodes")


class ComposeNodes(ABC):
    """A project of services, as a context manager; leaving it ends and removes them.

    `tfdist.testing.faults.TaskFault` applies to its services, by their names.

    Attributes:
        backend: "netns" or "compose".
    """

    backend: str

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def up(self, timeout: float) -> None:
        """Starts each service once its `depends_on` holds; returns when all are started.

        Raises:
            StartTimeout: not all services could start within `timeout` seconds.
            ClusterError: a `depends_on` can no longer hold, or the machine refused.
        """

    @abstractmethod
    def wait(self, service: str, timeout: float) -> int:
        """Blocks until the service ends; returns its exit code, or 128 plus its signal.

        Raises:
            RunTimeout: it has not ended after `timeout` seconds.
        """

    @abstractmethod
    def health(self, service: str) -> str:
        """Such as "starting", "healthy" or "unhealthy"; empty without a healthcheck.

        A service that has ended is unhealthy.
        """

    @abstractmethod
    def output(self, service: str) -> str:
        """All output of the service so far, before and after a restart."""

    @abstractmethod
    def stop(self, service: str) -> None:
        """Sends SIGTERM, and SIGKILL after the service's `stop_grace_period`."""

    @abstractmethod
    def kill(self, name: str) -> None:
        """Sends SIGKILL; returns when the service has ended."""

    @abstractmethod
    def restart(self, name: str) -> None:
        """Starts a service that has ended again."""

    @abstractmethod
    def pause(self, name: str) -> None:
        """Freezes all processes of the service."""

    @abstractmethod
    def resume(self, name: str) -> None:
        """Continues a paused service."""

    @abstractmethod
    def close(self) -> None:
        """Kills all services, and removes networks and volumes."""
