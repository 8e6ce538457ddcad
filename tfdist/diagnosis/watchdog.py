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
from tfdist.diagnosis.stacks import is_foreign
from tfdist.errors import STALLED, ClusterError, ConfigError, checked_secs, printable
from tfdist.runs.folder import PROGRESS_FILE, STACKS_FILE
from tfdist.runs.progress import Progress, Watched
from tfdist.task import PROGRESS_VARIABLE

_BLOCK = "with tfdist.Watchdog(timeout) as watchdog: ..."
_END = b"end\n"  # the second process's request to the first one
_LEFT = b"left\n"  # what the first process says when it leaves the block
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

    Progress is a note that differs from the one before, made within the block through `progress` or
    any other `Progress.from_env()`, or a passed `Barrier`. The watchdog sees this process alone;
    `tfdist run --stall-timeout` sees the whole job.

    A process that is only slow, as while it computes or imports, gets eight times as long, and a
    line says so. Blocks may be nested or overlap: each watches the process for its own timeout, and
    a note counts for all.

    Args:
        timeout: in seconds; longer than the longest time without a note in a sound run.
        on_stall: "end" prints the report on standard error and ends the process with exit code 75,
            by SIGKILL if it does not end by itself; "report" prints it and lets the process go on.

    Raises:
        ConfigError: a parameter is wrong.
        ClusterError: its block is entered twice, or left without having been entered.
    """

    def __init__(self, timeout: float, *, on_stall: str = "end") -> None:
        if not isinstance(on_stall, str) or on_stall not in ("end", "report"):
            raise ConfigError("on_stall", on_stall, "must be 'end' or 'report'")
        self._timeout = checked_secs("timeout", timeout, may_be_0=False)
        self._on_stall = on_stall
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def progress(self) -> Progress:
        """Notes the progress of this process, within the block.

        Raises:
            ClusterError: the block has not been entered, or has been left.
        """
        if self._process is None:
            raise ClusterError(f"a Watchdog notes progress only in its block: {_BLOCK}")
        return self._progress

    def __enter__(self) -> Watchdog:
        if self._process is not None:
            raise ClusterError("this Watchdog watches already; make another one")
        own = _own_folder.enter()
        try:
            process = self._started(own)
        except BaseException:
            if own is not None:
                _own_folder.leave()
            raise
        self._process, self._pid, self._has_folder = process, os.getpid(), own is not None
        self._progress = Progress.from_env()
        threading.Thread(target=_obey, args=(process.stdout,), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        process, self._process = self._process, None
        if process is None:
            raise ClusterError(f"this Watchdog watches nothing; enter its block first: {_BLOCK}")
        assert process.stdin is not None
        if os.getpid() != self._pid:  # a forked child, which is not watched
            process.stdin.close()
            return
        with suppress(BrokenPipeError):  # it was killed
            process.stdin.write(_LEFT)
            process.stdin.close()
        try:
            process.wait(_LEAVE_SECS)
        except subprocess.TimeoutExpired:  # it is stopped
            process.kill()
            process.wait()
        if self._has_folder:
            _own_folder.leave()

    def _started(self, own: Path | None) -> subprocess.Popen[bytes]:
        """The second process; `own` is the folder of this process, if it has no launcher's."""
        notes = Path(Watched.path or os.environ[PROGRESS_VARIABLE]).absolute().parent
        watched = _Watched(
            os.getpid(),
            str(notes),
            str((own or notes) / STACKS_FILE),
            None if own is None else str(own),
            self._timeout,
            ends=self._on_stall == "end",
        )
        package = str(Path(__file__).parents[2])
        paths = filter(None, (package, os.environ.get("PYTHONPATH")))
        return subprocess.Popen(
            [sys.executable, "-m", "tfdist.diagnosis.watchdog", json.dumps(asdict(watched))],
            stdin=subprocess.PIPE,  # its end means that this process is gone
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), SAFE_PATH: "1"},
            start_new_session=True,  # Ctrl-C is for this process
        )


class _OwnFolder:
    """The folder of a process that no launcher watches, which the Watchdogs of the process share.

    It is what `tfdist run` makes for a task: a folder for notes, and a signal for the stacks.
    """

    def __init__(self) -> None:
        self._clear()
        os.register_at_fork(after_in_child=self._clear)

    def _clear(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._inherited = Watched.path  # of the process of which this one is a fork

    def enter(self) -> Path | None:
        """Makes the folder for the first Watchdog; None if this process is a launcher's task."""
        with self._lock:
            if self._users == 0:
                notes = os.environ.get(PROGRESS_VARIABLE)
                self._notes_for_launcher = notes is not None and notes != self._inherited
                if notes is not None and self._notes_for_launcher:
                    stacks = Path(os.path.dirname(notes), STACKS_FILE)
                    if not is_foreign(psutil.Process(), stacks):
                        return None
                    # The launcher watches a process that has started this one.
                self._make()
            self._users += 1
            return self._path

    def leave(self) -> None:
        """Removes the folder after the last Watchdog."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                faulthandler.unregister(STACKS_SIGNAL)
                self._stacks.close()
                if not self._notes_for_launcher:
                    self._note_in(self._inherited)
                # The second process removes it if this process is killed.
                shutil.rmtree(self._path, ignore_errors=True)

    def _make(self) -> None:
        self._path = Path(tempfile.mkdtemp(prefix="tfdist-watchdog-"))
        self._stacks = open(self._path / STACKS_FILE, "wb", buffering=0)  # noqa: SIM115
        faulthandler.register(STACKS_SIGNAL, self._stacks, all_threads=True)
        if not self._notes_for_launcher:
            self._note_in(str(self._path / PROGRESS_FILE))

    @staticmethod
    def _note_in(path: str | None) -> None:
        Watched.path = path
        if path is None:
            os.environ.pop(PROGRESS_VARIABLE, None)
        else:
            os.environ[PROGRESS_VARIABLE] = path


_own_folder = _OwnFolder()


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
        notes: the folder of its notes.
        stacks: the file of its stacks.
        own_folder: to be removed if the process ends in the block; None if it has none of its own.
        timeout: seconds that it may go without progress.
        ends: whether to end it then.
    """

    pid: int
    notes: str
    stacks: str
    own_folder: str | None
    timeout: float
    ends: bool


def _watch(watched: _Watched) -> bool:
    """Returns when the first process has left the block or has ended: whether it has left it."""
    from tfdist.diagnosis.evidence import Evidence
    from tfdist.diagnosis.report import answer_lines, kernel_lines
    from tfdist.diagnosis.rules import diagnose
    from tfdist.diagnosis.sample import Sample, take_sample
    from tfdist.diagnosis.stacks import SILENT, Answer
    from tfdist.diagnosis.stall import StallMonitor, failed_diagnosis, signs_in
    from tfdist.diagnosis.verdict import Verdict

    process, name = psutil.Process(watched.pid), f"process {watched.pid}"
    folder, stacks = Path(watched.notes), Path(watched.stacks)

    def diagnosed(seconds: float) -> tuple[Verdict, Sample]:
        try:
            sample = take_sample(process, stacks)
            task = sample.evidence(name=name, quiet_secs=seconds)
            return diagnose(Evidence((task,), seconds=seconds, whole=False)), sample
        except Exception as error:  # a report that fails changes nothing else
            return failed_diagnosis(error), Sample(Answer(SILENT))

    def has_spoken(secs: float) -> bool:
        return bool(select.select([sys.stdin], [], [], secs)[0])

    monitor = StallMonitor(watched.timeout, lambda: {name: signs_in(folder)}, diagnosed)
    # A child of the process may hold the pipe that is standard input here for longer.
    while not has_spoken(_LOOK_SECS) and _runs(process):
        found = monitor.check()
        if found is None or has_spoken(0) or not _runs(process):  # it is over in the meantime
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
            break
    return has_spoken(0) and os.read(sys.stdin.fileno(), len(_LEFT)) == _LEFT


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
    has_left = False
    try:
        has_left = _watch(watched)
    finally:
        if watched.own_folder is not None and not has_left:  # the first process is gone
            shutil.rmtree(watched.own_folder, ignore_errors=True)


if __name__ == "__main__":
    _main()
