"""Finds the run that a command is about: the named one, or the user's only running job."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfdist.errors import ConfigError
from tfdist.runs.folder import RUN_FILE, RunFolder

PREFIX = "tfdist-"  # of the folders and links in the temporary directory


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Makes a folder for a run in the temporary directory; the end of the block deletes it."""
    folder = tempfile.mkdtemp(prefix=PREFIX)
    try:
        yield folder
    finally:
        # Renamed first, so that a thread that still reads the output of a task adds no file.
        ended = f"{folder}-ended"
        os.rename(folder, ended)
        shutil.rmtree(ended)


@contextmanager
def linked(folder: str) -> Iterator[str | None]:
    """Links a run's folder into the temporary directory, where `live_runs` finds it.

    Yields:
        None, or why the link could not be made.
    """
    folder = os.path.abspath(folder)
    complaint = None
    try:
        link = Path(tempfile.gettempdir(), PREFIX + os.path.basename(folder))
        link.symlink_to(folder)
    except OSError as error:
        complaint = str(error)
    try:
        yield complaint
    finally:
        if complaint is None:
            link.unlink(missing_ok=True)


def live_runs() -> list[RunFolder]:
    """The running jobs of this user, found by folders and links in the temporary directory.

    A killed launcher leaves its folder or link behind; a run without its launcher is left out. A
    file that cannot be read, such as one of another version of tfdist, is named on standard error.
    """
    found = []
    for file in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{RUN_FILE}")):
        try:
            # The owner of the link counts too: another user's link may lead to a file of ours.
            owners = {file.parent.lstat().st_uid, file.stat().st_uid}
            run = RunFolder(file.parent.resolve())
            if owners == {os.getuid()} and run.runs:
                found.append(run)
        except FileNotFoundError:
            continue  # the run has ended meanwhile, which deleted its folder
        except (OSError, ValueError) as error:
            print(f"tfdist: skipped {file}: {error}", file=sys.stderr)
    return found


@contextmanager
def while_it_lasts(run: RunFolder) -> Iterator[None]:
    """Wraps the reading of a run, which may end meanwhile and delete its folder.

    Raises:
        ConfigError: the run has ended and its folder is gone.
    """
    try:
        yield
    except FileNotFoundError:
        if (run.path / RUN_FILE).exists():
            raise
        rule = "the run has ended meanwhile, and its folder is deleted"
        raise ConfigError("RUN", str(run.path), rule) from None


def chosen_run(path: str | None) -> RunFolder:
    """The run in the folder `path`; for None the user's only running job.

    Raises:
        ConfigError: `path` holds no run or a damaged one; or, without a path, no job runs or
            several do.
    """
    if path is not None:
        run = RunFolder.find(path)
        try:
            run.about  # noqa: B018  # raises ValueError if it cannot be parsed
        except ValueError as error:
            rule = f"its {RUN_FILE} was not written by this version of tfdist run"
            raise ConfigError("RUN", path, rule) from error
        return run
    runs = live_runs()
    if len(runs) == 1:
        return runs[0]
    if runs:
        names = ", ".join(str(run.path) for run in runs)
        raise ConfigError(
            "RUN", None, f"several of your jobs are running; name the folder of one: {names}"
        )
    found = f"no running job of yours found in {tempfile.gettempdir()}"
    raise ConfigError("RUN", None, f"{found}; give the folder of a run, or use tfdist stacks --pid")
