"""`python -m tfdist.doctor.read_identities`: asks ps of which cluster they are.

A process of its own, for it imports TensorFlow. It reads one JSON object, writes one, and ends.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tfdist.cluster.identity import read_identity
from tfdist.task import Task


def read(wanted: dict[str, Any]) -> dict[str, dict[str, str | None]]:
    """What is to be written: by name what each shows, `identity` and `failure`.

    Args:
        wanted: the `cluster`, and the `names` of the ps that are meant.
    """
    return {name: _shown(name, wanted["cluster"]) for name in wanted["names"]}


def _shown(name: str, cluster: dict[str, list[str]]) -> dict[str, str | None]:
    import tensorflow as tf

    ps = Task("ps", int(name.partition(":")[2]), cluster)
    identity = failure = None
    try:
        identity = read_identity(ps)
    except tf.errors.InvalidArgumentError:  # it has no such device
        failure = "it serves as another task"
    except tf.errors.OpError as error:
        failure = f"asked for its id it gives {type(error).__name__}"
    return {"identity": identity, "failure": failure}


if __name__ == "__main__":
    print(json.dumps(read(json.load(sys.stdin))), flush=True)
    # TensorFlow keeps threads that an orderly end would wait for.
    os._exit(0)
