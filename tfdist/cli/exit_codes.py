"""Exit codes that mean the same for every command; docs/errors.md lists them.

A script's own exit code passes through `tfdist run` and `tfdist node` unchanged, and so does
128 + N after signal N, as shells have it.
"""

from __future__ import annotations

HELD = 0  # what was run or checked holds
NOT_HELD = 1  # what was checked does not hold
USAGE = 2  # bad input: a flag, a file, TF_CONFIG
TASK_FAILED = 70  # EX_SOFTWARE of sysexits.h
STALLED = 75  # EX_TEMPFAIL of sysexits.h

INTERRUPTED = 130  # SIGINT: Ctrl-C
READER_LEFT = 141  # SIGPIPE: no process reads the output
TERMINATED = 143  # SIGTERM
