"""The contents of compose files as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Conditions of `depends_on`: what must hold for the other service before this one starts.
STARTED, HEALTHY, COMPLETED = (
    "service_started",
    "service_healthy",
    "service_completed_successfully",
)
CONDITIONS = (STARTED, HEALTHY, COMPLETED)


@dataclass(frozen=True)
class Volume:
    """A folder or file that appears in a service at `target`.

    Attributes:
        source: an absolute path of this machine for a bind, or the name of a volume that services
            share.
        target: an absolute path.
        read_only: whether the service may only read it.
        is_bind: whether `source` is a path.
    """

    source: str
    target: str
    read_only: bool = False
    is_bind: bool = True


@dataclass(frozen=True)
class Healthcheck:
    """How to check that a service works.

    Attributes:
        test: a command and its arguments; exit code 0 means healthy. A shell command is
            ``("/bin/sh", "-c", command)``.
        interval_secs: from the end of one check to the next.
        timeout_secs: a check that takes longer has failed.
        retries: this many consecutive failures make the service unhealthy.
        start_period_secs: failures within this time after the start do not count.
    """

    test: tuple[str, ...]
    interval_secs: float = 30.0
    timeout_secs: float = 30.0
    retries: int = 3
    start_period_secs: float = 0.0


@dataclass(frozen=True)
class Service:
    """A service: one process and its environment.

    Attributes:
        name: other services reach it by this name.
        hostname: its host name; by default its name.
        command: the command and its arguments; empty for the image's own.
        environment: its variables; none of this machine's are added.
        working_dir: the working folder; None for the image's own.
        volumes: in the order in which their targets first appear in the files.
        stop_grace_secs: the time from SIGTERM to SIGKILL.
        healthcheck: None if there is none, or the image's own applies.
        depends_on: other services, and which of `CONDITIONS` each must meet first.
        profiles: the service is included if one of these is selected; always if empty.
        init: whether its process 1 is a small init.
        tmpfs: absolute paths; the service gets an empty folder at each.
        networks: the names of its networks.
        ports: the ports published to this machine, as written.
        image: the image of its root folder.
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
        name: its name in the file.
        internal: whether it is cut off from everything outside.
    """

    name: str
    internal: bool = False


@dataclass(frozen=True)
class ComposeFile:
    """One project: the merged contents of its files.

    Attributes:
        services: by name, in the order of the files, without those whose profiles are not
            selected.
        networks: by name.
        volumes: the names of the volumes that services may share.
    """

    services: Mapping[str, Service]
    networks: Mapping[str, Network]
    volumes: tuple[str, ...] = ()
