"""Checkpoints that hold the work of all trainers: the chief saves in the action of a barrier."""

from __future__ import annotations

import os
from dataclasses import dataclass

import tensorflow as tf

from tfdist.errors import ConfigError


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk.

    Attributes:
        path: its prefix, as TensorFlow's functions take it.
        global_step: read back from the file.
    """

    path: str
    global_step: int


class Checkpointer:
    """Saves and restores all variables of the current graph.

    Call `save` in the action of a barrier: then every trainer has ended its last step and none has
    begun another, so the checkpoint is a state that the training was really in. The chief writes
    all of it, so no file system needs to be shared.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 3) -> None:
        """Creates `directory` if it is missing; keeps the last `keep` checkpoints.

        Raises:
            ConfigError: `directory` is a file, or the graph has no global step.
        """
        self._prefix = os.path.join(os.fspath(directory), "model")
        if os.path.exists(directory) and not os.path.isdir(directory):
            raise ConfigError("directory", os.fspath(directory), "must be a folder")
        self._global_step = tf.compat.v1.train.get_global_step()
        if self._global_step is None:
            raise ConfigError("graph", None, "must contain a global step, which names a checkpoint")
        self._saver = tf.compat.v1.train.Saver(max_to_keep=keep)
        tf.io.gfile.makedirs(os.fspath(directory))

    def save(self, session: tf.compat.v1.Session) -> Saved:
        """Writes a checkpoint; blocks until it is on disk. Only the chief may call it."""
        step = int(session.run(self._global_step))
        path = self._saver.save(session, self._prefix, global_step=step, write_meta_graph=False)
        name = self._global_step.op.name
        return Saved(path, int(tf.train.load_checkpoint(path).get_tensor(name)))

    def restore(self, session: tf.compat.v1.Session) -> None:
        """Restores the latest checkpoint, if there is one."""
        path = tf.train.latest_checkpoint(os.path.dirname(self._prefix))
        if path is not None:
            self._saver.restore(session, path)
