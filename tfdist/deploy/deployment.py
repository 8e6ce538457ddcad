"""A job for several machines, before it is written in the format of what will run it."""

from __future__ import annotations

import posixpath
import re
import shlex
from dataclasses import dataclass

from tfdist.cluster.shape import Shape
from tfdist.errors import ConfigError
from tfdist.task import Task

PORT = 2222  # TensorFlow's own examples, and Kubeflow, have it
# Below a folder that every Linux has, so that a root folder need not be changed for them.
WORKING_DIR = "/srv/job"
CHECKPOINTS = "/srv/checkpoints"

# Kubernetes takes it as the name of a service, and the names of the pods begin with it.
_NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,38}[a-z0-9])?")


@dataclass(frozen=True)
class Deployment:
    """What is to run, where nothing says yet by what.

    Attributes:
        shape: which tasks there are.
        script: its path as a task sees it, from `WORKING_DIR` on.
        arguments: of the script.
        classic_flags: whether it gets the flags of TensorFlow 1 too.
        image: has tfdist in it, and the script unless there is a `source`.
        checkpoints: where a task finds the folder that outlives it.
        source: a folder of this machine that is `WORKING_DIR`, read-only; None if the image has
            it all.
        name: of the job, where jobs share their names with others.
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
                raise ConfigError(field, value, "printable characters alone")
        if _NAME.fullmatch(self.name) is None:
            rule = "small letters, digits and - between them, 40 at most; a letter first"
            raise ConfigError("--name", self.name, rule)
        path = posixpath.normpath(self.checkpoints)
        if not path.startswith("/") or ":" in path or path in ("/", "/tmp", WORKING_DIR):
            rule = f"an absolute path without a :, and none of /, /tmp and {WORKING_DIR}"
            raise ConfigError("--checkpoints", self.checkpoints, rule)
        if not self.image or self.image != "".join(self.image.split()):
            raise ConfigError("--image", self.image, "the name of an image")

    def tasks(self, domain: str = "") -> list[Task]:
        """All tasks: the ps, and the trainers by rank. A host is called as `host_of` has it.

        Args:
            domain: follows the name of each host: ".train".
        """
        shape = self.shape
        counts = {"ps": shape.num_ps, "chief": shape.num_chiefs, "worker": shape.num_workers}
        hosts = [f"{kind}-{index}" for kind, count in counts.items() for index in range(count)]
        return shape.tasks([f"{host}{domain}:{PORT}" for host in hosts])

    def trains(self, task: Task) -> bool:
        """Whether it runs the script."""
        return not self.shape.serves(task)

    @property
    def command(self) -> tuple[str, ...]:
        """What every task runs."""
        options = ["--coordinator"] if self.shape.coordinator else []
        options += ["--classic-flags"] if self.classic_flags else []
        return ("tfdist", "node", *options, self.script, *_after_dashes(self.arguments))

    def made_by(self, form: str) -> str:
        """The command line that writes it in that format."""
        shape = self.shape
        words = ["tfdist", "compose", *([] if form == "compose" else ["--for", form])]
        words += ["--ps", str(shape.num_ps), "--workers", str(shape.num_workers)]
        given = {
            "--chief": shape.chief,
            "--coordinator": shape.coordinator,
            "--classic-flags": self.classic_flags,
        }
        words += [flag for flag, is_given in given.items() if is_given]
        for flag, field in (
            ("--image", "image"),
            ("--checkpoints", "checkpoints"),
            ("--source", "source"),
            ("--name", "name"),
        ):
            if (value := getattr(self, field)) != getattr(type(self), field):
                words += [flag, value]
        return shlex.join([*words, self.script, *_after_dashes(self.arguments)])

    def described(self) -> str:
        """Its tasks in a few words."""
        shape = self.shape
        chief = ["a chief"] if shape.num_chiefs else []
        workers = f"{shape.num_workers} worker{'' if shape.num_workers == 1 else 's'}"
        return f"{shape.num_ps} ps, {' and '.join([*chief, workers])}"


def host_of(task: Task) -> str:
    """The name of its host, or of its service: "worker-1"."""
    return f"{task.task_type}-{task.task_index}"


def _after_dashes(arguments: tuple[str, ...]) -> list[str]:
    return ["--", *arguments] if arguments else []
