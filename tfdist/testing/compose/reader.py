"""Reads compose files and merges them into one project."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from tfdist.errors import ConfigError, checked_path
from tfdist.testing.compose.entry import Entry, Origin
from tfdist.testing.compose.service import ComposeFile, Network, Service
from tfdist.testing.compose.service_keys import Part, built, merged, read_part

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_DEFAULT_NETWORK = "default"
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+")
_BOOLEANS = {"true": True, "false": False}


def read_compose(
    paths: Sequence[str | os.PathLike[str]],
    profiles: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> ComposeFile:
    """Reads one compose file, or one and its overrides, as ``docker compose -f A -f B`` does.

    A later file overrides earlier ones: mappings merge by key, volumes by target; `profiles`,
    `tmpfs` and `ports` are added; everything else, such as `command`, is replaced. Relative paths
    start at the folder of the first file.

    Args:
        paths: the paths of the files, at least one.
        profiles: the profiles whose services are included too.
        environ: the values of ``${NAME}`` in the files. A variable without a value or a default is
            an error, and so is a file `.env`, which docker compose would read as well.

    Raises:
        ConfigError: a file cannot be read, has a wrong value, or has a key that is not supported.
            The field names the file and the key, such as ``compose.yaml: services.ps-0.cpus``.
    """
    if not isinstance(paths, (list, tuple)) or not paths:
        raise ConfigError("paths", paths, "must be a list of at least one compose file")
    names = [checked_path("paths", path) for path in paths]
    folder = os.path.dirname(os.path.abspath(names[0]))
    if os.path.exists(dotenv := os.path.join(folder, ".env")):
        raise ConfigError(
            "compose file", dotenv, "is not read; delete it and set its variables yourself"
        )
    parts: dict[str, Part] = {}
    networks: dict[str, Network] = {}
    volumes: dict[str, None] = {}
    for name in names:
        file = Entry(Origin(name, folder, environ), "", _read_yaml(name))
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
            service.reject(
                "must consist of letters, digits, -, _ and ., and start with a letter or digit"
            )
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
            rule = f"must be one of the files' profiles: {', '.join(sorted(known)) or 'none'}"
            raise ConfigError("profiles", profile, rule)


def _check(
    where: str,
    service: Service,
    wanted: Mapping[str, Service],
    networks: Mapping[str, Network],
    volumes: Mapping[str, None],
) -> None:
    """Raises ConfigError if the service names a service, network or volume that does not exist."""
    shared = [volume.source for volume in service.volumes if not volume.is_bind]
    for key, names, known in (
        ("depends_on", service.depends_on, wanted),
        ("networks", service.networks, networks),
        ("volumes", shared, volumes),
    ):
        for name in names:
            if name not in known:
                field = f"{where}: services.{service.name}.{key}"
                raise ConfigError(field, name, f"must be one of {', '.join(known) or 'none'}")


def _check_order(where: str, services: Mapping[str, Service]) -> None:
    """Raises ConfigError if services depend on one another in a circle."""
    left = dict(services)
    while left:
        ready = [
            name for name, service in left.items() if not service.depends_on.keys() & left.keys()
        ]
        if not ready:
            waiting = sorted(left)
            raise ConfigError(
                f"{where}: depends_on",
                waiting,
                "must not lead back to the service itself",
            )
        for name in ready:
            del left[name]


class _Loader(yaml.SafeLoader):
    """YAML without the values that YAML 1.1 (PyYAML) and 1.2 (docker compose) read differently.

    `on`, `012`, `1_000`, `12:30` and the like are errors. So is a duplicate key, of which PyYAML
    would silently take the last. Anchors, aliases and `<<` work as usual.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise ConstructorError(
                    None, None, "a key must be a string; quote it", key.start_mark
                )
            if name in seen:
                raise ConstructorError(None, None, f"duplicate key {name!r}", key.start_mark)
            seen.add(name)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _constructor(pattern: re.Pattern[str], kind: type) -> Any:
    def construct(loader: _Loader, node: yaml.ScalarNode) -> object:
        if pattern.fullmatch(node.value) is None:
            _reject(loader, node)
        return kind(node.value)

    return construct


def _boolean(loader: _Loader, node: yaml.ScalarNode) -> bool:
    if node.value not in _BOOLEANS:
        _reject(loader, node)
    return _BOOLEANS[node.value]


def _reject(loader: _Loader, node: yaml.ScalarNode) -> None:
    rule = f"{node.value} is ambiguous in YAML; put quotes around it if it is a string"
    raise ConstructorError(None, None, rule, node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _constructor(_INTEGER, int))
_Loader.add_constructor("tag:yaml.org,2002:float", _constructor(_DECIMAL, float))
_Loader.add_constructor("tag:yaml.org,2002:bool", _boolean)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _reject)


def _read_yaml(path: str) -> object:
    """The single document of a file.

    Raises:
        ConfigError: the file cannot be read, or `_Loader` rejects it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("compose file", path, f"cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ConfigError("compose file", path, f"{where}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError("compose file", path, f"is not a YAML file: {error}") from error
