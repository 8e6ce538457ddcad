"""The program that `tfdist.Watchdog` starts: looks whether one process gets on."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tfdist.diagnosis.evidence import Evidence
from tfdist.diagnosis.rules import diagnose
from tfdist.diagnosis.sample import Sighting, sight
from tfdist.diagnosis.stall_clock import Signs, StallWatch
from tfdist.diagnosis.thread_text import answer_lines, kernel_lines
from tfdist.diagnosis.verdict import PATIENCE
from tfdist.diagnosis.watchdog import END
from tfdist.runs.barrier_notes import passed_at
from tfdist.runs.folder import PROGRESS_FILE, STACKS_FILE

_LOOK_SECS = 0.25
_END_SECS = 2.0  # for the process to end by itself


def watch(pid: int, folder: Path, timeout: float, ends: bool) -> None:
    """Returns when the process is gone or safe, which the end of standard input tells.

    Args:
        pid: of the process.
        folder: where it leaves its notes and its stacks.
        timeout: seconds for which it may not get on.
        ends: whether it is ended then.
    """
    process, monitor = psutil.Process(pid), StallWatch()
    looks = 0  # at this stall
    while not select.select([sys.stdin], [], [], _LOOK_SECS)[0]:
        stall = monitor.look({"it": _signs(folder)})
        if stall.seconds < timeout:
            looks = 0
        if stall.seconds < timeout * 2**looks:
            continue
        seen = sight(process, folder / STACKS_FILE)
        if monitor.look({"it": _signs(folder)}).seconds < stall.seconds:
            continue  # it has got on in the last moment
        looks += 1
        task = seen.evidence(name=f"process {pid}", quiet_secs=stall.seconds)
        verdict = diagnose(Evidence((task,), seconds=stall.seconds, whole=False))
        since = f"has not got on for {stall.seconds:.1f} s"
        print(f"tfdist: process {pid} {since}: {verdict}", file=sys.stderr, flush=True)
        if verdict.name.is_slow and looks <= PATIENCE:
            continue
        print(f"tfdist: what helps: {verdict.name.advice} (docs/hang.md)", file=sys.stderr)
        print("\n".join(_lines(seen)), file=sys.stderr, flush=True)
        if ends:
            _end(process)
            return


def _signs(folder: Path) -> Signs:
    try:
        progress = (folder / PROGRESS_FILE).read_text("utf-8")
    except FileNotFoundError:
        progress = None
    return Signs(attempt=1, progress=progress, passed_at=passed_at(folder))


def _lines(seen: Sighting) -> list[str]:
    width = shutil.get_terminal_size().columns
    return [*kernel_lines(seen.kernel), *answer_lines(seen.answer, width)]


def _end(process: psutil.Process) -> None:
    """Asks the process to end, and kills it if it cannot."""
    os.write(sys.stdout.fileno(), END)
    os.close(sys.stdout.fileno())  # it reads until then
    with suppress(psutil.TimeoutExpired):
        process.wait(_END_SECS)
        return
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


if __name__ == "__main__":
    about = json.loads(sys.argv[1])
    try:
        watch(about["pid"], Path(about["folder"]), about["timeout"], about["ends"])
    finally:
        if about["owns"]:  # whose process may be gone
            shutil.rmtree(about["folder"], ignore_errors=True)
