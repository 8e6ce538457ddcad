"""A question that takes TensorFlow, put to a process beside this one.

So this process neither pays for the import nor hangs with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tfdist.cluster.environment import SERVER_ENVIRONMENT
from tfdist.errors import ClusterError

# Most of it for the import of TensorFlow on a busy machine.
_ANSWER_SECS = 60.0
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


def ask_helper_process(module: str, question: object) -> Any:
    """What `python -m MODULE` answers, which reads one JSON value and writes one.

    Blocks for 60 s at most.

    Raises:
        ClusterError: it has not ended in time, or has failed.
    """
    try:
        ended = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=_ANSWER_SECS,
            check=False,
            env={**os.environ, **SERVER_ENVIRONMENT, **_QUIET},
        )
    except subprocess.TimeoutExpired:
        what = f"the process that asks the ps has not ended after {_ANSWER_SECS:g} s"
        raise ClusterError(what) from None
    if ended.returncode != 0:
        last = ended.stderr.strip().rpartition("\n")[2]
        raise ClusterError(
            f"the process that asks the ps failed (exit code {ended.returncode}): {last}"
        )
    return json.loads(ended.stdout)
