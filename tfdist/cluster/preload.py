"""Imports TensorFlow into the fork server, quietly.

If the import fails, each task imports it again and shows the error.
"""

import os

from tfdist.cluster.fork_server import FOR_FORK_SERVER, SAFE_PATH
from tfdist.cluster.script import standard_error_aside

if os.environ.get(SAFE_PATH) == FOR_FORK_SERVER:
    del os.environ[SAFE_PATH]  # the programs that a task starts find their own modules

with standard_error_aside():
    import tensorflow  # noqa: F401  # imported for the tasks, which are forked from this process
