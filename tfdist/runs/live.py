"""Finds the run that a command is about: the named one, or the user's only running job."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tfdist.errors import ConfigError, DataError, printable
from tfdist.runs.folder import RUN_FILE, RunFolder

PREFIX = "tfdist-"  # of the folders and links in the temporary directory


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Makes a folder for a run in the temporary directory; the end of the block deletes it.

    What cannot be deleted is named on standard error. A script may have deleted the folder itself.
    """
    folder = tempfile.mkdtemp(prefix=PREFIX)
    try:
        yield folder
    finally:
        # Renamed first, so that a thread that still reads the output of a task adds no file.
        ended = f"{folder}-ended"
        try:
            os.rename(folder, ended)
            shutil.rmtree(ended)
        except FileNotFoundError:
            pass
        except OSError as error:
            print(f"tfdist: cannot delete the folder of the run: {error}", file=sys.stderr)


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
            with suppress(OSError):  # the link then leads to a run that has ended
                link.unlink()


def live_runs() -> list[RunFolder]:
    """The running jobs of this user, found by folders and links in the temporary directory.

    A killed launcher leaves its folder or link behind; a run without its launcher is left out. A
    file that cannot be read, such as one of another version of tfdist, is named on standard error.
    """
    found = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        try:
            # The owner of the link counts too: another user's link may lead to a file of ours.
            own = os.getuid()
            if folder.lstat().st_uid != own or os.lstat(folder / RUN_FILE).st_uid != own:
                continue
            run = RunFolder(os.path.realpath(folder))
            if run.runs:
                found.append(run)
        except (FileNotFoundError, NotADirectoryError):
            continue  # not of a run, or the run has ended meanwhile, which deleted its folder
        except (OSError, DataError) as error:
            print(printable(f"tfdist: skipped {error}"), file=sys.stderr)
    return found


@contextmanager
def while_it_lasts(run: RunFolder) -> Iterator[None]:
    """Wraps the reading of a run, which may end meanwhile and delete its folder.

    Raises:
        ConfigError: the run has ended and its folder is gone, or the folder cannot be read.
    """
    try:
        yield
    except DataError as error:
        raise ConfigError("RUN", str(run.path), str(error)) from error
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
        with while_it_lasts(run):
            run.about  # noqa: B018  # raises DataError if it cannot be read
        return run
    runs = live_runs()
    if len(runs) == 1:
        return runs[0]
    if runs:
        names = ", ".join(str(run.path) for run in runs)
        raise ConfigError(
            "RUN",
            None,
            f"several of your jobs are running; name the folder of one: {names}",
            missing=True,
        )
    found = f"no running job of yours found in {tempfile.gettempdir()}"
    rule = f"{found}; give the folder of a run, or use tfdist stacks --pid"
    raise ConfigError("RUN", None, rule, missing=True)
