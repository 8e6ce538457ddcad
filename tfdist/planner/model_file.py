"""Reads a model from a file: Hugging Face's `config.json`, or the fields of a `Transformer`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from tfdist.errors import ConfigError, checked_path, did_you_mean
from tfdist.planner.hugging_face import ModelFile, from_config
from tfdist.planner.transformer import Experts, LatentAttention, Transformer

_CONFIG = "config.json"  # of a folder
_HUGGING_FACE = ("model_type", "architectures", "transformers_version", "text_config")
_PARTS = {"experts": Experts, "latent": LatentAttention}


def read_model(path: str | os.PathLike[str]) -> ModelFile:
    """The model that a file describes.

    The file is a Hugging Face `config.json`, or has the attributes of a `Transformer` as fields:

        layers: 32
        hidden: 4096
        heads: 32
        vocabulary: 32000
        experts: {count: 8, active: 2}

    Args:
        path: of a YAML file (.yaml, .yml) or a JSON file, or of a folder with a `config.json`.

    Raises:
        ConfigError: the file cannot be read, or a field is unknown, missing or wrong. The error
            names the file and the field, such as "model.yaml: experts.count".
    """
    path = checked_path("path", path)
    if os.path.isdir(path):
        path = os.path.join(path, _CONFIG)
    found = _parsed(path)
    if not isinstance(found, Mapping):
        raise ConfigError(path, found, "must have fields, such as layers: 32")
    try:
        if any(name in found for name in _HUGGING_FACE):
            return from_config(found)
        return ModelFile(_built(found, Transformer), os.path.basename(path))
    except ConfigError as error:
        field, missing = f"{path}: {error.field}", error.value is None
        raise ConfigError(field, error.value, error.rule, missing=missing) from error


def _built(given: Mapping[Any, Any], kind: Any, path: str = "") -> Any:
    """An object of a dataclass from its fields."""
    known = {each.name: each for each in fields(kind)}
    values = dict(given)
    for name, value in values.items():
        if name not in known:
            hint = did_you_mean(str(name), known) or f": {', '.join(known)}"
            rule = f"must be a field of {kind.__name__}{hint}"
            raise ConfigError(f"{path}{name}", value, rule)
        if name in _PARTS and value is not None:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path}{name}", value, "must have fields")
            values[name] = _built(value, _PARTS[name], f"{name}.")
    for name, each in known.items():
        if each.default is MISSING and values.get(name) is None:
            raise ConfigError(f"{path}{name}", None, "must be given", missing=True)
    return kind(**values)


def _parsed(path: str) -> Any:
    """What is in a file. A field that is there twice is an error, as the second would win."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            _unique([(name, None) for name in names])
            return super().construct_mapping(node, deep)

    try:
        with open(path, encoding="utf-8") as file:
            if path.endswith((".yaml", ".yml")):
                return yaml.load(file, Loader)
            return json.load(file, object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError("model file", path, f"cannot be read: {error}") from error


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is there twice")
        found[name] = value
    return found
