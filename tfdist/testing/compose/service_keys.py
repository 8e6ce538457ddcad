"""The keys of a service: how each is read, and how a later file overrides an earlier one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from tfdist.testing.compose.entry import Entry
from tfdist.testing.compose.service import CONDITIONS, STARTED, Healthcheck, Service, Volume

# A service in one file or in several merged files: values by key.
Part = dict[str, Any]

_HEALTHCHECK = {
    "test": "test",
    "interval": "interval_secs",
    "timeout": "timeout_secs",
    "retries": "retries",
    "start_period": "start_period_secs",
    "disable": "disable",
}


def _environment(entry: Entry) -> dict[str, str | None]:
    """A variable without a value takes that of `environ`, and is unset if there is none."""
    environ = entry.origin.environ
    return {
        name: environ.get(name) if value.raw is None else value.text()
        for name, value in entry.named()
    }


def _volumes(entry: Entry) -> dict[str, Volume]:
    return {volume.target: volume for volume in map(_volume, entry.items())}


def _volume(entry: Entry) -> Volume:
    if isinstance(entry.raw, dict):
        members = entry.members({"type", "source", "target", "read_only"})
        for name in ("type", "source", "target"):
            if name not in members:
                entry.reject(f"needs a key {name!r}")
        kind, source = members["type"].text(), members["source"].text()
        if kind not in ("bind", "volume"):
            members["type"].reject("must be bind or volume")
        read_only = "read_only" in members and members["read_only"].flag()
        target, is_bind = members["target"].folder(), kind == "bind"
    else:
        source, *rest = entry.text().split(":")
        if len(rest) not in (1, 2) or rest[1:] not in ([], ["ro"], ["rw"]):
            entry.reject("must be SOURCE:TARGET, SOURCE:TARGET:ro or SOURCE:TARGET:rw")
        target, read_only, is_bind = rest[0], rest[1:] == ["ro"], source[:1] in ("/", ".", "~")
        if not target.startswith("/"):
            entry.reject("must have a target that is an absolute path")
    if is_bind:
        source = os.path.join(entry.origin.folder, os.path.expanduser(source))
        source = os.path.normpath(source)
    return Volume(source, os.path.normpath(target), read_only, is_bind)


def _healthcheck(entry: Entry) -> Part:
    read: dict[str, Callable[[Entry], Any]] = {
        "test": _test,
        "retries": Entry.whole_number,
        "disable": Entry.flag,
    }
    members = entry.members(_HEALTHCHECK)
    part = {
        _HEALTHCHECK[name]: read.get(name, Entry.seconds)(value) for name, value in members.items()
    }
    if part.get("test") == ("NONE",):
        return {"disable": True}
    return part


def _test(entry: Entry) -> tuple[str, ...]:
    if not isinstance(entry.raw, list):
        return ("/bin/sh", "-c", entry.text())
    kind, *words = entry.texts() or ("",)
    if kind == "CMD" and words:
        return tuple(words)
    if kind == "CMD-SHELL" and len(words) == 1:
        return ("/bin/sh", "-c", *words)
    if kind == "NONE" and not words:
        return (kind,)
    entry.reject("must be a string, [CMD, PROGRAM, ...], [CMD-SHELL, STRING] or [NONE]")


def _depends_on(entry: Entry) -> dict[str, str]:
    if isinstance(entry.raw, list):
        return dict.fromkeys(entry.texts(), STARTED)
    conditions = {}
    for name, other in entry.members().items():
        condition = other.members({"condition"}).get("condition")
        if condition is None:
            other.reject("needs a key 'condition'")
        conditions[name] = condition.text()
        if conditions[name] not in CONDITIONS:
            condition.reject(f"must be one of {', '.join(CONDITIONS)}")
    return conditions


def _networks(entry: Entry) -> dict[str, None]:
    if isinstance(entry.raw, list):
        return dict.fromkeys(entry.texts())
    for own in entry.members().values():
        if own.raw is not None:
            own.members(())
    return dict.fromkeys(entry.members())


def _several(entry: Entry) -> dict[str, None]:
    return dict.fromkeys(entry.texts() if isinstance(entry.raw, list) else (entry.text(),))


def _folders(entry: Entry) -> dict[str, None]:
    entries = entry.items() if isinstance(entry.raw, list) else [entry]
    return dict.fromkeys(each.folder() for each in entries)


# A later file merges with a mapping by name, and replaces anything else.
_READERS: Mapping[str, Callable[[Entry], Any]] = {
    "command": Entry.words,
    "depends_on": _depends_on,
    "environment": _environment,
    "healthcheck": _healthcheck,
    "hostname": Entry.text,
    "image": Entry.text,
    "init": Entry.flag,
    "networks": _networks,
    "ports": _several,
    "profiles": _several,
    "stop_grace_period": Entry.seconds,
    "tmpfs": _folders,
    "volumes": _volumes,
    "working_dir": Entry.folder,
    # These confine a container. They are checked and then ignored: only an engine can enforce them.
    "cap_drop": _several,
    "read_only": Entry.flag,
    "security_opt": _several,
}


def read_part(entry: Entry) -> Part:
    """The part of a service that one file defines.

    Raises:
        ConfigError: a key is not supported, or its value is wrong.
    """
    part = {}
    for name, value in entry.members(_READERS).items():
        if value.raw is None:
            value.reject("must have a value, or leave out the key")
        part[name] = _READERS[name](value)
    return part


def merged(part: Part, later: Part) -> Part:
    """One file's part of a service, overridden by that of a later file."""
    together = dict(part)
    for name, value in later.items():
        before: Any = together.get(name)
        both = isinstance(before, dict) and isinstance(value, dict)
        together[name] = before | value if both else value
    return together


def built(name: str, part: Part) -> Service:
    """The service that the merged files define.

    Raises:
        ValueError: a key is missing.
    """
    values: Part = {}
    for key in ("command", "working_dir", "init", "image", "depends_on"):
        if key in part:
            values[key] = part[key]
    for key in ("profiles", "tmpfs", "ports", "networks"):
        if part.get(key):
            values[key] = tuple(part[key])
    if "stop_grace_period" in part:
        values["stop_grace_secs"] = part["stop_grace_period"]
    variables = part.get("environment", {})
    return Service(
        name,
        part.get("hostname", name),
        environment={key: value for key, value in variables.items() if value is not None},
        volumes=tuple(part.get("volumes", {}).values()),
        healthcheck=_built_healthcheck(part.get("healthcheck")),
        **values,
    )


def _built_healthcheck(part: Part | None) -> Healthcheck | None:
    if part is None or part.get("disable"):
        return None
    if "test" not in part:
        raise ValueError("needs a key 'test' in healthcheck")
    return Healthcheck(**{key: value for key, value in part.items() if key != "disable"})
