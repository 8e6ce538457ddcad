"""A watchdog for one process: a second process that ends it when it makes no progress.

As a program this module is that second process. It imports no TensorFlow, and learns of progress
through files, so it works while the first process is stuck in TensorFlow.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil

from tfdist.cluster.fork_server import SAFE_PATH
from tfdist.cluster.processes import STACKS_SIGNAL
from tfdist.errors import STALLED, ClusterError, ConfigError, checked_secs, printable
from tfdist.runs.folder import PROGRESS_FILE, STACKS_FILE
from tfdist.runs.progress import Progress
from tfdist.task import PROGRESS_VARIABLE

_END = b"end\n"  # the second process's request to the first one
_LOOK_SECS = 0.25
_FLUSH_SECS = 1.0
_END_SECS = 2.0  # for the first process to end by itself
_LEAVE_SECS = 5.0  # for the second process to end by itself


class Watchdog:
    """Ends this process when it makes no progress for too long, and reports its stacks.

    ::

        with tfdist.Watchdog(300) as watchdog:
            for step in range(steps):
                session.run(update)
                watchdog.progress.update("epoch 1", step, steps)

    Progress is a note that differs from the one before, made through `progress` or any other
    `Progress.from_env()`, or a passed `Barrier` that was made within the block. The watchdog sees
    this process alone; `tfdist run --stall-timeout` sees the whole job.

    A process that is only slow, as while it computes or imports, gets eight times as long, and a
    line says so.

    Args:
        timeout: in seconds; longer than the longest time without a note in a sound run.
        on_stall: "end" prints the report on standard error and ends the process with exit code 75,
            by SIGKILL if it does not end by itself; "report" prints it and lets the process go on.

    Attributes:
        progress: within the block, notes the progress of this process.

    Raises:
        ConfigError: a parameter is wrong.
        ClusterError: its block is entered twice.
    """

    def __init__(self, timeout: float, *, on_stall: str = "end") -> None:
        if on_stall not in ("end", "report"):
            raise ConfigError("on_stall", on_stall, "must be 'end' or 'report'")
        self._timeout = checked_secs("timeout", timeout, may_be_0=False)
        self._on_stall = on_stall
        self._process: subprocess.Popen[bytes] | None = None
        self._own_folder: Path | None = None
        self._stacks: IO[bytes] | None = None

    def __enter__(self) -> Watchdog:
        if self._process is not None:
            raise ClusterError("this Watchdog watches already; make another one")
        if PROGRESS_VARIABLE not in os.environ:
            self._make_folder()
        path = Path(os.environ[PROGRESS_VARIABLE])
        self.progress = Progress(str(path))
        watched = _Watched(
            os.getpid(),
            str(path.parent),
            self._timeout,
            ends=self._on_stall == "end",
            owns_folder=self._own_folder is not None,
        )
        package = str(Path(__file__).parents[2])
        paths = filter(None, (package, os.environ.get("PYTHONPATH")))
        process = subprocess.Popen(
            [sys.executable, "-m", "tfdist.diagnosis.watchdog", json.dumps(asdict(watched))],
            stdin=subprocess.PIPE,  # its end means that this process is gone, or has left the block
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), SAFE_PATH: "1"},
            start_new_session=True,  # Ctrl-C is for this process
        )
        self._process, self._pid = process, os.getpid()
        threading.Thread(target=_obey, args=(process.stdout,), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        if os.getpid() != self._pid:  # a forked child, which is not watched
            return
        try:
            process.wait(_LEAVE_SECS)
        except subprocess.TimeoutExpired:  # it is stopped
            process.kill()
            process.wait()
        if self._own_folder is not None and self._stacks is not None:
            faulthandler.unregister(STACKS_SIGNAL)
            self._stacks.close()
            del os.environ[PROGRESS_VARIABLE]
            # The second process removes it too, unless it was killed.
            shutil.rmtree(self._own_folder, ignore_errors=True)
            self._own_folder = None

    def _make_folder(self) -> None:
        """Does what `tfdist run` does for a task: a folder for notes, a signal for the stacks."""
        self._own_folder = Path(tempfile.mkdtemp(prefix="tfdist-watchdog-"))
        self._stacks = open(self._own_folder / STACKS_FILE, "wb", buffering=0)  # noqa: SIM115
        faulthandler.register(STACKS_SIGNAL, self._stacks, all_threads=True)
        os.environ[PROGRESS_VARIABLE] = str(self._own_folder / PROGRESS_FILE)


def _obey(requests: IO[bytes]) -> None:
    """Ends this process when the second one asks for that."""
    if requests.read() == _END:
        # In a thread, because the one that hangs may hold the stream. An orderly exit would hang
        # like the process itself.
        flush = threading.Thread(target=_flush_streams, daemon=True)
        flush.start()
        flush.join(_FLUSH_SECS)
        os._exit(STALLED)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, replaced, or its reader has gone
            stream.flush()


# --- the second process


@dataclass(frozen=True)
class _Watched:
    """The first process.

    Attributes:
        pid: of the process.
        folder: that holds its notes and its stacks.
        timeout: seconds that it may go without progress.
        ends: whether to end it then.
        owns_folder: whether to remove the folder afterwards.
    """

    pid: int
    folder: str
    timeout: float
    ends: bool
    owns_folder: bool


def _watch(watched: _Watched) -> None:
    """Returns at the end of standard input, or when it has ended the first process."""
    from tfdist.diagnosis.evidence import Evidence
    from tfdist.diagnosis.report import answer_lines, kernel_lines
    from tfdist.diagnosis.rules import diagnose
    from tfdist.diagnosis.sample import Sample, take_sample
    from tfdist.diagnosis.stacks import SILENT, Answer
    from tfdist.diagnosis.stall import StallMonitor, failed_diagnosis, signs_in
    from tfdist.diagnosis.verdict import Verdict

    process, name = psutil.Process(watched.pid), f"process {watched.pid}"
    folder = Path(watched.folder)

    def diagnosed(seconds: float) -> tuple[Verdict, Sample]:
        try:
            sample = take_sample(process, folder / STACKS_FILE)
            task = sample.evidence(name=name, quiet_secs=seconds)
            return diagnose(Evidence((task,), seconds=seconds, whole=False)), sample
        except Exception as error:  # a report that fails changes nothing else
            return failed_diagnosis(error), Sample(Answer(SILENT))

    monitor = StallMonitor(watched.timeout, lambda: {name: signs_in(folder)}, diagnosed)
    # A child of the process may hold the pipe that is standard input here for longer.
    while not select.select([sys.stdin], [], [], _LOOK_SECS)[0] and _runs(process):
        found = monitor.check()
        if found is None:
            continue
        stalled = f"{name} has made no progress for {found.stall.seconds:.1f} s"
        if found.gets_time:
            _say(f"tfdist: {found.text(stalled)}")
            continue
        verdict = found.verdict
        if watched.ends and verdict.name.is_slow:
            verdict = verdict.overdue(found.stall.seconds, watched.timeout)
        width = shutil.get_terminal_size().columns
        lines = [
            *(f"tfdist: {line}" for line in (stalled, *verdict.lines())),
            *kernel_lines(found.details.kernel),
            *answer_lines(found.details.answer, width),
        ]
        _say("\n".join(lines))
        if watched.ends:
            _end(process)
            return


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _say(text: str) -> None:
    with suppress(OSError):  # the stream is full, or closed
        # With print, a closed standard error would be standard output.
        os.write(2, f"{printable(text)}\n".encode())


def _end(process: psutil.Process) -> None:
    """Asks the process to end, and kills it if it does not."""
    os.write(sys.stdout.fileno(), _END)
    os.close(sys.stdout.fileno())  # the first process reads until then
    with suppress(psutil.TimeoutExpired):
        process.wait(_END_SECS)
        return
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


def _main() -> None:
    watched = _Watched(**json.loads(sys.argv[1]))
    try:
        _watch(watched)
    finally:
        if watched.owns_folder:  # the first process may be gone
            shutil.rmtree(watched.folder, ignore_errors=True)


if __name__ == "__main__":
    _main()
