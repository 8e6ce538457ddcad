"""What compose files say, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Of `depends_on`: what has to be true of the other service before this one is started.
STARTED, HEALTHY, COMPLETED = (
    "service_started",
    "service_healthy",
    "service_completed_successfully",
)
CONDITIONS = (STARTED, HEALTHY, COMPLETED)


@dataclass(frozen=True)
class Volume:
    """A folder or file that a service finds at `target`.

    Attributes:
        source: an absolute path of this machine for a bind, else the name of a volume that the
            services share.
        target: an absolute path.
        read_only: whether the service may only read it.
        is_bind: which of the two `source` is.
    """

    source: str
    target: str
    read_only: bool = False
    is_bind: bool = True


@dataclass(frozen=True)
class Healthcheck:
    """How to learn whether a service does what it is for.

    Attributes:
        test: a command and its arguments; exit code 0 means healthy. A text for the shell is
            ``("/bin/sh", "-c", text)``.
        interval_secs: from the end of one check to the next.
        timeout_secs: a check that takes longer has failed.
        retries: after so many failures in a row it is unhealthy.
        start_period_secs: failures in this time after the start do not count.
    """

    test: tuple[str, ...]
    interval_secs: float = 30.0
    timeout_secs: float = 30.0
    retries: int = 3
    start_period_secs: float = 0.0


@dataclass(frozen=True)
class Service:
    """A service: one process with its surroundings.

    Attributes:
        name: by which the others reach it.
        hostname: its own; the name, where the file has none.
        command: and its arguments; empty if the image's own is to run.
        environment: its variables, byte for byte; without those of this machine.
        working_dir: where the command starts; None if the image says it.
        volumes: in the order of their targets in the files.
        stop_grace_secs: from SIGTERM to SIGKILL.
        healthcheck: None if there is none, or the image says it.
        depends_on: for other services, what has to be true of them first; one of `CONDITIONS`.
        profiles: it belongs to the project only if one of them is asked for; always, if none.
        init: whether a small init is its PID 1.
        tmpfs: absolute paths at which it has an empty folder of its own.
        networks: names of those that it is in.
        ports: those published to this machine, as written.
        image: what its root folder is made from.
    """

    name: str
    hostname: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    volumes: tuple[Volume, ...] = ()
    stop_grace_secs: float = 10.0
    healthcheck: Healthcheck | None = None
    depends_on: Mapping[str, str] = field(default_factory=dict)
    profiles: tuple[str, ...] = ()
    init: bool = False
    tmpfs: tuple[str, ...] = ()
    networks: tuple[str, ...] = ("default",)
    ports: tuple[str, ...] = ()
    image: str | None = None


@dataclass(frozen=True)
class Network:
    """A network of the project.

    Attributes:
        name: in the file.
        internal: whether it has no way out, and nobody outside a way in.
    """

    name: str
    internal: bool = False


@dataclass(frozen=True)
class ComposeFile:
    """One project: what its files, merged, say.

    Attributes:
        services: by name, in the order of the files; those whose profiles were not asked for are
            left out.
        networks: by name.
        volumes: names of those that services may share.
    """

    services: Mapping[str, Service]
    networks: Mapping[str, Network]
    volumes: tuple[str, ...] = ()
