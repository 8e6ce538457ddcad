"""How a small program of this package is started: in milliseconds, and wherever tfdist lies."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = str(Path(__file__).parents[2])
_RUN = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def program(module: str, *arguments: str) -> list[str]:
    """The command that runs `module`, which may import the standard library and tfdist alone."""
    return [sys.executable, "-I", "-S", "-c", _RUN, _ROOT, module, *arguments]
