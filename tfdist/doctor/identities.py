"""Reads which run a ps belongs to, in a helper process that imports TensorFlow.

`read_identities` runs this module as a program, which reads one JSON object and writes one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from tfdist.cluster.helper_process import ask_helper_process
from tfdist.cluster.identity import read_identity
from tfdist.errors import ClusterError
from tfdist.task import ClusterSpec, Task


@dataclass(frozen=True)
class Identity:
    """The run of a ps.

    Attributes:
        value: its TFDIST_CLUSTER_ID; None if it has none, or if that is unknown.
        failure: why it is unknown.
    """

    value: str | None
    failure: str | None = None


# Called with the cluster and the names of the ps to ask.
ReadIdentities = Callable[[ClusterSpec, Sequence[str]], Mapping[str, Identity]]


def read_identities(cluster: ClusterSpec, names: Sequence[str]) -> Mapping[str, Identity]:
    """The identity of each named ps; blocks while the helper process runs."""
    question = {"cluster": cluster, "names": list(names)}
    try:
        answer = ask_helper_process("tfdist.doctor.identities", question)
    except ClusterError as error:
        return dict.fromkeys(names, Identity(None, str(error)))
    return {name: Identity(**identity) for name, identity in answer.items()}


def read(cluster: ClusterSpec, name: str) -> Identity:
    """The identity of a ps such as "ps:0"; imports TensorFlow."""
    import tensorflow as tf

    ps = Task("ps", int(name.partition(":")[2]), cluster)
    try:
        return Identity(read_identity(ps))
    except tf.errors.InvalidArgumentError:  # the server does not have the ps's device
        return Identity(None, "it serves as another task")
    except tf.errors.OpError as error:
        return Identity(None, f"reading its id failed with {type(error).__name__}")


if __name__ == "__main__":
    wanted = json.load(sys.stdin)
    found = {name: asdict(read(wanted["cluster"], name)) for name in wanted["names"]}
    print(json.dumps(found), flush=True)
    os._exit(0)  # a regular exit would wait for TensorFlow's threads
