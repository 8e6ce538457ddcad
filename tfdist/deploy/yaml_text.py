"""Writes YAML for people to read, with one meaning under YAML 1.1 and 1.2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

# Strings under every reader. 1e-3 is not among them: a string for PyYAML, a number for Go.
_PLAIN = re.compile(r"[0-9]+[smh]|-{0,2}[A-Za-z/][A-Za-z0-9_./:=@+-]*[A-Za-z0-9_/]")


class Anchored(dict[str, Any]):
    """A mapping that is written once; later uses refer to its anchor."""

    def __init__(self, anchor: str, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.anchor = anchor


class _Merge:
    """The key `<<`, which merges the members of its value into the mapping."""


MERGE = _Merge()


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return not isinstance(data, Anchored)

    def generate_anchor(self, node: yaml.Node) -> str:
        anchor: str = node.anchor_name  # type: ignore[attr-defined]  # set below
        return anchor

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if _PLAIN.fullmatch(text) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _on_one_line(dumper: _Dumper, values: tuple[object, ...]) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


def _anchored(dumper: _Dumper, mapping: Anchored) -> yaml.MappingNode:
    node = dumper.represent_dict(mapping)
    node.anchor_name = mapping.anchor  # type: ignore[attr-defined]
    return node


def _merge(dumper: _Dumper, key: _Merge) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:merge", "<<")


def _nothing(dumper: _Dumper, value: None) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:null", "")


_Dumper.add_representer(str, _text)
_Dumper.add_representer(tuple, _on_one_line)
_Dumper.add_representer(Anchored, _anchored)
_Dumper.add_representer(_Merge, _merge)
_Dumper.add_representer(type(None), _nothing)


def yaml_text(header: Sequence[str], documents: Iterable[dict[Any, Any]]) -> str:
    """Returns the documents below a comment; a tuple becomes one line, a list one line an item.

    Args:
        header: the lines of the comment.
        documents: plain data, `Anchored` and `MERGE`.
    """
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header)
    texts = [
        yaml.dump(
            document,
            Dumper=_Dumper,
            sort_keys=False,
            default_flow_style=False,
            width=float("inf"),
            allow_unicode=True,
        )
        for document in documents
    ]
    return comment + "---\n".join(texts)
