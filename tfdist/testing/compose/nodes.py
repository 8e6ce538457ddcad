"""Chooses how the services of a compose file run: on network namespaces, or in docker."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from tfdist.errors import ClusterError, ConfigError
from tfdist.testing.compose.engine import EngineNodes, missing_for_engine
from tfdist.testing.compose.interface import ComposeNodes
from tfdist.testing.compose.netns import NetnsNodes
from tfdist.testing.network import missing_for_network

_VARIABLE = "TFDIST_NODES"
_CHOICES = ("netns", "compose", "auto")


def compose_nodes(
    paths: Sequence[str | os.PathLike[str]],
    profiles: Sequence[str] = (),
    *,
    relayed: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> ComposeNodes:
    """The services of compose files, on the back end that the variable TFDIST_NODES names.

    `netns` runs them on a `Network` (see `NetnsNodes`), `compose` by docker compose (see
    `EngineNodes`). `auto`, the default, is netns if this machine supports it, and compose
    otherwise. In CI `auto` is always netns, so that the back end cannot change unnoticed.

    Args:
        paths: a compose file and its overrides.
        profiles: the profiles whose services are included too.
        relayed: services whose links can have delay, jitter and loss; netns only.
        environ: the variables of the files, and TFDIST_NODES.

    Raises:
        ConfigError: TFDIST_NODES or a file is wrong.
        ClusterError: this machine does not support the back end; the message says why.
    """
    choice = environ.get(_VARIABLE) or "auto"
    if choice not in _CHOICES:
        raise ConfigError(_VARIABLE, choice, f"must be one of {', '.join(_CHOICES)}")
    missing = {
        "netns": "; ".join(missing_for_network(relayed=bool(relayed))),
        "compose": "" if choice == "netns" else missing_for_engine(environ),
    }
    if choice == "auto":
        needs_docker = not environ.get("CI") and missing["netns"] and not missing["compose"]
        choice = "compose" if needs_docker else "netns"
    if missing[choice]:
        raise ClusterError(f"{_VARIABLE}={choice} needs {missing[choice]}")
    if choice == "netns":
        return NetnsNodes(paths, profiles, relayed=relayed, environ=environ)
    return EngineNodes(paths, profiles, environ=environ)
