"""Imports TensorFlow into the fork server, without what it writes to standard error meanwhile.

Some of TensorFlow's start-up lines come before its log level is read (TensorFlow 2.21), so the
stream itself is put aside. An import that fails is tried again by each task, which then shows why.
"""

import os

_aside = os.dup(2)
_nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 2)
try:
    import tensorflow  # noqa: F401  # for its side effect: it is in memory when tasks are forked
finally:
    os.dup2(_aside, 2)
    os.close(_aside)
    os.close(_nowhere)
