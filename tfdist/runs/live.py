"""Which run is meant: the one that is named, or the only one that goes on at this moment."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfdist.errors import ConfigError
from tfdist.runs.folder import RUN_FILE, RunFolder

PREFIX = "tfdist-"  # of what `live_runs` finds in the temporary directory


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder for a run, in the temporary directory; it is deleted at the end of the block."""
    folder = tempfile.mkdtemp(prefix=PREFIX)
    try:
        yield folder
    finally:
        # Moved first: a thread that still reads a task which SIGKILL did not end adds nothing.
        ended = f"{folder}-ended"
        os.rename(folder, ended)
        shutil.rmtree(ended)


@contextmanager
def linked(folder: str) -> Iterator[str | None]:
    """Inside it `live_runs` finds a run whose folder lies elsewhere.

    Yields:
        Why it does not after all; None if it does.
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
    """The runs of this user whose folders, or links to them, are in the temporary directory.

    A launcher that was killed leaves its own there; so only those count whose launchers live.
    """
    found = []
    for file in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{RUN_FILE}")):
        try:
            # The link too: a link of another user may lead to any file of ours.
            owners = {file.parent.lstat().st_uid, file.stat().st_uid}
            run = RunFolder(file.parent.resolve())
            if owners == {os.getuid()} and run.runs:
                found.append(run)
        except FileNotFoundError:
            continue  # it has ended in the meantime, and its folder with it
    return found


@contextmanager
def while_it_lasts(run: RunFolder) -> Iterator[None]:
    """For reading a run that may end, and take its folder with it.

    Raises:
        ConfigError: it has.
    """
    try:
        yield
    except FileNotFoundError:
        if (run.path / RUN_FILE).exists():
            raise
        rule = "it has ended in the meantime, and its folder is gone"
        raise ConfigError("RUN", str(run.path), rule) from None


def chosen_run(path: str | None) -> RunFolder:
    """The run in `path`; without one the only live run.

    Raises:
        ConfigError: there is no run in `path`, or its file is not one of tfdist; or, without a
            path, there are no live runs or several.
    """
    if path is not None:
        run = RunFolder.find(path)
        try:
            run.about  # noqa: B018  # it raises where it cannot be parsed
        except ValueError as error:
            rule = f"its file {RUN_FILE} is not one that tfdist run wrote"
            raise ConfigError("RUN", path, rule) from error
        return run
    runs = live_runs()
    if len(runs) == 1:
        return runs[0]
    if runs:
        names = ", ".join(str(run.path) for run in runs)
        raise ConfigError("RUN", None, f"several jobs run; name one: {names}")
    raise ConfigError(
        "RUN",
        None,
        f"no job of yours runs, by what is in {tempfile.gettempdir()}; one that is over, or has "
        "another temporary directory, is named by its folder",
    )
