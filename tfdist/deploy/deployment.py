"""A job for containers, independent of the format that it is written in, and YAML for people.

The YAML has one meaning under YAML 1.1 and 1.2.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tfdist.cluster.shape import Shape
from tfdist.errors import ConfigError
from tfdist.task import Task

PORT = 2222  # as in TensorFlow's examples and in Kubeflow
# Below /srv, which every Linux has, so the image's root folder need not change.
WORKING_DIR = "/srv/job"
CHECKPOINTS = "/srv/checkpoints"

# Kubernetes accepts it as the name of a service and as the first part of a pod's name.
_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Deployment:
    """What to run; the format's own module decides how to write it.

    Attributes:
        shape: the tasks.
        script: the path of the script in a task, relative to `WORKING_DIR`.
        arguments: the script's arguments.
        classic_flags: whether the script also gets the flags of TensorFlow 1.
        image: contains tfdist, and the script unless there is a `source`.
        checkpoints: the folder in each task that outlives the task.
        source: a folder of this machine, mounted read-only as `WORKING_DIR`; None if the image
            contains the script.
        name: the job's name on a system that runs many jobs.
    """

    shape: Shape
    script: str
    arguments: tuple[str, ...] = ()
    classic_flags: bool = False
    image: str = "tfdist"
    checkpoints: str = CHECKPOINTS
    source: str | None = None
    name: str = "train"

    def __post_init__(self) -> None:
        for field, value in [
            ("--image", self.image),
            ("--checkpoints", self.checkpoints),
            ("--source", self.source or ""),
            ("script", self.script),
            *(("argument", argument) for argument in self.arguments),
        ]:
            if not value.isprintable():
                raise ConfigError(field, value, "must contain only printable characters")
        if posixpath.normpath(self.script).split("/")[0] == "..":
            raise ConfigError("script", self.script, f"must be in {WORKING_DIR}")
        if _NAME.fullmatch(self.name) is None:
            rule = "must be at most 40 of a-z, 0-9 and -, start with a letter, and not end with -"
            raise ConfigError("--name", self.name, rule)
        path = posixpath.normpath(self.checkpoints)
        if not path.startswith("/") or ":" in path or path in ("/", "/tmp", WORKING_DIR):
            rule = f"must be an absolute path without a colon, other than /, /tmp and {WORKING_DIR}"
            raise ConfigError("--checkpoints", self.checkpoints, rule)
        if not self.image or self.image != "".join(self.image.split()):
            raise ConfigError("--image", self.image, "must be the name of an image")

    def tasks(self, domain: str = "") -> list[Task]:
        """All tasks: the ps, then the trainers by rank. Host names are those of `host_of`.

        Args:
            domain: appended to each host name, such as ".train".
        """
        shape = self.shape
        counts = {"ps": shape.num_ps, "chief": shape.num_chiefs, "worker": shape.num_workers}
        hosts = [f"{kind}-{index}" for kind, count in counts.items() for index in range(count)]
        return shape.tasks([f"{host}{domain}:{PORT}" for host in hosts])

    def trains(self, task: Task) -> bool:
        """Whether the task runs the script."""
        return not self.shape.serves(task)

    @property
    def command(self) -> tuple[str, ...]:
        """The command of every task."""
        options = ["--coordinator"] if self.shape.coordinator else []
        options += ["--classic-flags"] if self.classic_flags else []
        return ("tfdist", "node", *options, self.script, *_after_dashes(self.arguments))

    def made_by(self, form: str) -> str:
        """The command line that writes this job in the format `form`."""
        shape = self.shape
        words = ["tfdist", "compose", *([] if form == "compose" else ["--for", form])]
        words += ["--ps", str(shape.num_ps), "--workers", str(shape.num_workers)]
        flags = {
            "--chief": shape.chief,
            "--coordinator": shape.coordinator,
            "--classic-flags": self.classic_flags,
        }
        words += [flag for flag, is_set in flags.items() if is_set]
        for field in ("image", "checkpoints", "source", "name"):
            if (value := getattr(self, field)) != getattr(type(self), field):
                words += [f"--{field}", value]
        return shlex.join([*words, self.script, *_after_dashes(self.arguments)])

    def described(self) -> str:
        """The number of tasks of each type, in words."""
        shape = self.shape
        chief = ["a chief"] if shape.num_chiefs else []
        workers = f"{shape.num_workers} worker{'' if shape.num_workers == 1 else 's'}"
        return f"{shape.num_ps} ps, {' and '.join([*chief, workers])}"


def host_of(task: Task) -> str:
    """The name of the task's host or service, such as "worker-1"."""
    return f"{task.task_type}-{task.task_index}"


def _after_dashes(arguments: tuple[str, ...]) -> list[str]:
    return ["--", *arguments] if arguments else []


# --- YAML

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
