"""The services of a compose file in a test, with docker or without, behind one interface."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeVar

from tfdist.errors import ClusterError, ConfigError

VARIABLE = "TFDIST_NODES"
CHOICES = ("netns", "compose", "auto")

Self = TypeVar("Self", bound="ComposeNodes")


class ComposeNodes(ABC):
    """A project of services, as a context manager; leaving it ends and removes them.

    Its services are what `tfdist.testing.task_faults` can be applied to, by their names.

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
        """Starts all services, each once that holds what it depends on; returns when all are.

        Raises:
            StartTimeout: not all could be started in so many seconds.
            ClusterError: what one depends on will not come to hold, or the machine refused.
        """

    @abstractmethod
    def wait(self, service: str, timeout: float) -> int:
        """Its exit code once it has ended, 128 more than the signal if one has ended it.

        Raises:
            RunTimeout: it has not in so many seconds.
        """

    @abstractmethod
    def health(self, service: str) -> str:
        """Such as "starting", "healthy" or "unhealthy"; empty if nobody checks it.

        A service that has ended is unhealthy.
        """

    @abstractmethod
    def output(self, service: str) -> str:
        """All that it has written so far, in all its records."""

    @abstractmethod
    def stop(self, service: str) -> None:
        """Asks it to end with SIGTERM, and ends it after its `stop_grace_period`."""

    @abstractmethod
    def kill(self, name: str) -> None:
        """Ends it with SIGKILL; returns when it has ended."""

    @abstractmethod
    def restart(self, name: str) -> None:
        """Starts one that has ended once more."""

    @abstractmethod
    def pause(self, name: str) -> None:
        """Stops it as a frozen machine would."""

    @abstractmethod
    def resume(self, name: str) -> None:
        """Wakes it."""

    @abstractmethod
    def close(self) -> None:
        """Ends all at once, and removes networks and volumes."""


def compose_nodes(
    paths: Sequence[str | os.PathLike[str]],
    profiles: Sequence[str] = (),
    *,
    relayed: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> ComposeNodes:
    """The services of compose files, on the back end that the variable TFDIST_NODES names.

    `netns` has them on a `Network` (see `NetnsNodes`), `compose` has docker compose run them (see
    `EngineNodes`). `auto`, which is the default, is netns where this machine can, and else compose;
    in CI, where nobody would see the difference, it is netns.

    Args:
        paths: a file and its overrides.
        profiles: whose services are wanted too.
        relayed: services whose links can be given delay, jitter and loss, on netns.
        environ: the variables; also those that the files name.

    Raises:
        ConfigError: the variable, or a file, is wrong.
        ClusterError: this machine cannot; why.
    """
    # Both need what the other does not: one a reader of YAML, the other a docker engine.
    from tfdist.testing.compose_engine import EngineNodes, missing_for_engine
    from tfdist.testing.compose_netns import NetnsNodes
    from tfdist.testing.network import missing_for_network

    choice = environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise ConfigError(VARIABLE, choice, f"one of {', '.join(CHOICES)}")
    missing = {
        "netns": "; ".join(missing_for_network(relayed=bool(relayed))),
        "compose": "" if choice == "netns" else missing_for_engine(environ),
    }
    if choice == "auto":
        is_free = not environ.get("CI") and missing["netns"] and not missing["compose"]
        choice = "compose" if is_free else "netns"
    if missing[choice]:
        raise ClusterError(f"{VARIABLE}={choice} needs {missing[choice]}")
    if choice == "netns":
        return NetnsNodes(paths, profiles, relayed=relayed, environ=environ)
    return EngineNodes(paths, profiles, environ=environ)
