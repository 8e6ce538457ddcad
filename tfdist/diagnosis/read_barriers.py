"""`python -m tfdist.diagnosis.read_barriers`: asks ps 0 of a job how its barriers stand.

A process of its own, for it imports TensorFlow, which may hang, and it has to move into the network
of an isolated job before it has threads. It reads one JSON object, writes one, and ends.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from tfdist.cluster.isolation import enter_network
from tfdist.errors import ClusterError
from tfdist.runs.barrier_notes import BarrierNote
from tfdist.task import Task

ANSWER_SECS = 5.0


def read(wanted: dict[str, Any]) -> dict[str, Any]:
    """What is to be written.

    Args:
        wanted: the `pid` of ps 0, the `cluster`, and `notes` of barriers.

    Returns:
        `barriers`, each a BarrierReport, and `failure`: why there are no more, or None.
    """
    reports: list[dict[str, Any]] = []
    try:
        enter_network(wanted["pid"])
    except ClusterError as error:
        return {"barriers": reports, "failure": str(error)}

    import tensorflow as tf

    from tfdist.barrier.reading import read_barrier

    ps = Task("ps", 0, wanted["cluster"])
    for note in wanted["notes"]:
        try:
            report = read_barrier(ps.address, ps.trainers, BarrierNote(**note), ANSWER_SECS)
        except tf.errors.DeadlineExceededError:
            failure = f"{ps.name} at {ps.address} does not answer in {ANSWER_SECS:.0f} s"
            return {"barriers": reports, "failure": failure}
        except (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.FailedPreconditionError,
        ) as error:
            # As PS_LOST of tfdist.barrier.connection: it has gone, or was restarted just now.
            first_line = error.message.partition("\n")[0]
            failure = f"{ps.name} at {ps.address} has gone: {first_line}"
            return {"barriers": reports, "failure": failure}
        reports.append(asdict(report))
    return {"barriers": reports, "failure": None}


if __name__ == "__main__":
    print(json.dumps(read(json.load(sys.stdin))), flush=True)
    # TensorFlow keeps threads that an orderly end would wait for.
    os._exit(0)
