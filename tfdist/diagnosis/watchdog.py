"""A watchdog for one process: another process that looks whether it gets on."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

from tfdist.cluster.processes import STACKS_SIGNAL
from tfdist.errors import ConfigError
from tfdist.runs.folder import PROGRESS_FILE, STACKS_FILE
from tfdist.runs.progress import Progress
from tfdist.task import PROGRESS_VARIABLE

STALLED = 75  # the exit code
END = b"end\n"  # what the watching process says when this one is to end
_PROGRAM = "tfdist.diagnosis.watch"
_LEAVE_SECS = 5.0


class Watchdog:
    """Ends this process when it has not got on for too long, and tells where it stands.

    ::

        with tfdist.Watchdog(300) as watchdog:
            for step in range(steps):
                session.run(update)
                watchdog.progress.update("epoch 1", step, steps)

    It gets on when it notes another progress than before, through `progress` or any other
    `Progress.from_env()`, and when it passes a `Barrier` that was made within the block. The
    watching process has no TensorFlow in it, and learns of that through files; so it also works
    while this process is stuck inside of TensorFlow. It sees this process alone: of a whole job
    `tfdist run --stall-timeout` sees more.

    Where it is only slow, as while it computes or imports, that is told, and it is given eight
    times as long.

    Args:
        timeout: in seconds; longer than the longest time without a note in a sound run.
        on_stall: "end" prints the report on standard error and ends the process with exit code 75,
            by SIGKILL if it does not end by itself; "report" prints it and lets the process go on.

    Attributes:
        progress: notes how far this process is.

    Raises:
        ConfigError: a parameter is wrong.
    """

    def __init__(self, timeout: float, *, on_stall: str = "end") -> None:
        if not timeout > 0:
            raise ConfigError("timeout", timeout, "more than 0 seconds")
        if on_stall not in ("end", "report"):
            raise ConfigError("on_stall", on_stall, "'end' or 'report'")
        self._timeout, self._on_stall = timeout, on_stall
        self._own_folder: Path | None = None
        self._stacks: IO[bytes] | None = None

    def __enter__(self) -> Watchdog:
        if PROGRESS_VARIABLE not in os.environ:
            self._be_seen()
        path = Path(os.environ[PROGRESS_VARIABLE])
        self.progress = Progress(str(path))
        about = {
            "pid": os.getpid(),
            "folder": str(path.parent),
            "timeout": self._timeout,
            "ends": self._on_stall == "end",
            "owns": self._own_folder is not None,
        }
        package = str(Path(__file__).parents[2])
        paths = filter(None, (package, os.environ.get("PYTHONPATH")))
        self._process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM, json.dumps(about)],
            stdin=subprocess.PIPE,  # by its end it learns that this process is gone, or safe
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for this process
        )
        threading.Thread(target=self._obey, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_LEAVE_SECS)
        except subprocess.TimeoutExpired:  # somebody has stopped it
            self._process.kill()
            self._process.wait()
        if self._own_folder is not None and self._stacks is not None:
            faulthandler.unregister(STACKS_SIGNAL)
            self._stacks.close()
            del os.environ[PROGRESS_VARIABLE]
            # The other program does so; but not if it was killed.
            shutil.rmtree(self._own_folder, ignore_errors=True)
            self._own_folder = None

    def _be_seen(self) -> None:
        """As `tfdist run` does for its tasks: a folder for notes, a signal for the stacks."""
        self._own_folder = Path(tempfile.mkdtemp(prefix="tfdist-watchdog-"))
        self._stacks = open(self._own_folder / STACKS_FILE, "wb", buffering=0)  # noqa: SIM115
        faulthandler.register(STACKS_SIGNAL, self._stacks, all_threads=True)
        os.environ[PROGRESS_VARIABLE] = str(self._own_folder / PROGRESS_FILE)

    def _obey(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.read() == END:
            # Not in order: whatever hangs would hang that too.
            os._exit(STALLED)
