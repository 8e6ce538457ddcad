"""Imports TensorFlow into the fork server, quietly.

An import that fails is tried again by each task, which then shows why.
"""

from tfdist.cluster.script import standard_error_aside

with standard_error_aside():
    import tensorflow  # noqa: F401  # for its side effect: it is in memory when tasks are forked
