"""Runs the job of `_softmax_over_ps.py` in a network of its own.

A process must enter it before it has threads, and to import NumPy starts some.
"""

import json
import sys

from tfdist.cluster.isolation import isolate
from tfdist.errors import ClusterError


def main() -> None:
    reason = ""
    try:
        isolate()
    except ClusterError as error:
        reason = str(error)
    from benchmarks import _softmax_over_ps
    from benchmarks._softmax_steps import Plan

    _softmax_over_ps.run(Plan(**json.loads(sys.argv[1])), float(sys.argv[2]), reason)


if __name__ == "__main__":
    main()
