"""YAML without the parts on which its readers differ.

PyYAML follows YAML 1.1, docker compose (in Go) YAML 1.2: `on`, `012`, `1_000` and `12:30` are other
values to one than to the other. Such a value is refused here, and so is a key that stands twice,
of which PyYAML would take the last without a word.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from tfdist.errors import ConfigError

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+")
_BOOLEANS = {"true": True, "false": False}


class _Loader(yaml.SafeLoader):
    """Anchors, aliases and `<<` as usual."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise ConstructorError(None, None, "a key is a text; quote it", key.start_mark)
            if name in seen:
                raise ConstructorError(None, None, f"{name!r} stands twice", key.start_mark)
            seen.add(name)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _constructor(pattern: re.Pattern[str], kind: type) -> Any:
    def construct(loader: _Loader, node: yaml.ScalarNode) -> object:
        if pattern.fullmatch(node.value) is None:
            _refuse(loader, node)
        return kind(node.value)

    return construct


def _boolean(loader: _Loader, node: yaml.ScalarNode) -> bool:
    if node.value not in _BOOLEANS:
        _refuse(loader, node)
    return _BOOLEANS[node.value]


def _refuse(loader: _Loader, node: yaml.ScalarNode) -> None:
    rule = f"{node.value} is read in different ways; put quotes around it if it is a text"
    raise ConstructorError(None, None, rule, node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _constructor(_INTEGER, int))
_Loader.add_constructor("tag:yaml.org,2002:float", _constructor(_DECIMAL, float))
_Loader.add_constructor("tag:yaml.org,2002:bool", _boolean)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _refuse)


def read_yaml(path: str) -> object:
    """The one document of a file.

    Raises:
        ConfigError: it cannot be read, is no such document, or has a value that is refused here.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("compose file", path, f"readable; {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ConfigError("compose file", path, f"{where}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError("compose file", path, f"YAML; {error}") from error
