"""Compose files -> what they say together."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from tfdist.errors import ConfigError
from tfdist.testing.compose.entry import Entry, Origin
from tfdist.testing.compose.service import ComposeFile, Network, Service
from tfdist.testing.compose.service_keys import Part, built, merged, read_part
from tfdist.testing.compose.yaml_file import read_yaml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_DEFAULT_NETWORK = "default"


def read_compose(
    paths: Sequence[str | os.PathLike[str]],
    profiles: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> ComposeFile:
    """Reads one compose file, or one and its overrides, as ``docker compose -f A -f B`` does.

    A later file changes what the earlier ones say: mappings are merged by key, volumes by target;
    `profiles`, `tmpfs` and `ports` are added to; all else, `command` too, is replaced. Relative
    paths start from the folder of the first file.

    Args:
        paths: of the files, at least one.
        profiles: whose services are wanted too.
        environ: gives the ``${NAME}`` of the files their values. A variable without a value or a
            default is refused, and so is a file `.env`, which docker compose would read as well.

    Raises:
        ConfigError: a file cannot be read, or says something that is wrong or is not known here.
            Its field names the file and the key, such as ``compose.yaml: services.ps-0.cpus``.
    """
    if isinstance(paths, str) or not paths:
        raise ConfigError("paths", paths, "a list of at least one compose file")
    names = [os.fspath(path) for path in paths]
    folder = os.path.dirname(os.path.abspath(names[0]))
    if os.path.exists(dotenv := os.path.join(folder, ".env")):
        raise ConfigError("compose file", dotenv, "not read here: set its variables yourself")
    parts: dict[str, Part] = {}
    networks: dict[str, Network] = {}
    volumes: dict[str, None] = {}
    for name in names:
        file = Entry(Origin(name, folder, environ), "", read_yaml(name))
        members = file.members({"version", "services", "networks", "volumes"})
        for own, part in _services(members.get("services")).items():
            parts[own] = merged(parts.get(own, {}), part)
        networks |= _networks(members.get("networks"))
        volumes |= dict.fromkeys(_volumes(members.get("volumes")))
    where = ", ".join(names)
    services = {name: _built(where, name, part) for name, part in parts.items()}
    _check_profiles(profiles, services)
    wanted = {
        name: service
        for name, service in services.items()
        if not service.profiles or set(service.profiles) & set(profiles)
    }
    for service in wanted.values():
        if _DEFAULT_NETWORK in service.networks:
            networks.setdefault(_DEFAULT_NETWORK, Network(_DEFAULT_NETWORK))
        _check(where, service, wanted, networks, volumes)
    _check_order(where, wanted)
    return ComposeFile(wanted, networks, tuple(volumes))


def _services(entry: Entry | None) -> dict[str, Part]:
    if entry is None:
        return {}
    parts = {}
    for name, service in entry.members().items():
        if _NAME.fullmatch(name) is None:
            service.refuse("a name of letters, digits, and - _ . between them")
        parts[name] = read_part(service)
    return parts


def _networks(entry: Entry | None) -> dict[str, Network]:
    if entry is None:
        return {}
    networks = {}
    for name, network in entry.members().items():
        members = {} if network.raw is None else network.members({"internal"})
        networks[name] = Network(name, "internal" in members and members["internal"].flag())
    return networks


def _volumes(entry: Entry | None) -> list[str]:
    if entry is None:
        return []
    for volume in entry.members().values():
        if volume.raw is not None:
            volume.members(())
    return list(entry.members())


def _built(where: str, name: str, part: Part) -> Service:
    try:
        return built(name, part)
    except ValueError as error:
        raise ConfigError(f"{where}: services.{name}", part, str(error)) from error


def _check_profiles(profiles: Sequence[str], services: Mapping[str, Service]) -> None:
    known = {profile for service in services.values() for profile in service.profiles}
    for profile in profiles:
        if profile not in known:
            rule = f"the files have these: {', '.join(sorted(known)) or 'none'}"
            raise ConfigError("profiles", profile, rule)


def _check(
    where: str,
    service: Service,
    wanted: Mapping[str, Service],
    networks: Mapping[str, Network],
    volumes: Mapping[str, None],
) -> None:
    """Raises ConfigError if it names another service, network or volume that is not there."""
    shared = [volume.source for volume in service.volumes if not volume.is_bind]
    for key, names, known in (
        ("depends_on", service.depends_on, wanted),
        ("networks", service.networks, networks),
        ("volumes", shared, volumes),
    ):
        for name in names:
            if name not in known:
                field = f"{where}: services.{service.name}.{key}"
                raise ConfigError(field, name, f"one of {', '.join(known) or 'none'}")


def _check_order(where: str, services: Mapping[str, Service]) -> None:
    """Raises ConfigError if a service waits for itself, by way of others or not."""
    left = dict(services)
    while left:
        ready = [
            name for name, service in left.items() if not service.depends_on.keys() & left.keys()
        ]
        if not ready:
            waiting = sorted(left)
            raise ConfigError(f"{where}: depends_on", waiting, "these wait for one another")
        for name in ready:
            del left[name]
