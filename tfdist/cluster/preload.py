"""Imports TensorFlow into the fork server, quietly.

If the import fails, each task imports it again and shows the error.
"""

from tfdist.cluster.script import standard_error_aside

with standard_error_aside():
    import tensorflow  # noqa: F401  # imported for the tasks, which are forked from this process
