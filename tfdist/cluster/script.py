"""Runs a user's script as a task: prepares its process, and ends it as Python would."""

from __future__ import annotations

import atexit
import builtins
import gc
import importlib.util
import io
import os
import re
import runpy
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

from tfdist.cluster.kernel_calls import to_high_number
from tfdist.cluster.server import FAIL_FAST
from tfdist.errors import READER_LEFT, ConfigError
from tfdist.runs.outcome import text_of, user_trace
from tfdist.task import Task, parse_address

GRACE_SECS = 10.0  # by default, the longest time that an orderly end may take
_FLUSH_FAILED = 120  # Python's own exit code for this
_FILES = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
_KEPT = ("__main__", "tfdist")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ENCODING = re.compile(rb"(?:[ \t\f]*(?:#.*)?\r?\n)?[ \t\f]*#.*?coding[:=]")  # PEP 263


@dataclass(frozen=True)
class Script:
    """The function of a task that runs a script as `python PATH ARGUMENTS...` would.

    Attributes:
        path: path of the script, or the name of a module.
        arguments: its ``sys.argv[1:]``.
        classic_flags: whether to append the flags that `Task.from_flags` reads.
        is_module: whether `path` names a module, to run as `python -m` would.
    """

    path: str
    arguments: Sequence[str]
    classic_flags: bool = False
    is_module: bool = False

    def __call__(self, task: Task) -> None:
        """Runs the script; `TF_CONFIG` names the task already.

        Raises:
            ConfigError: there is no such module, or it is a package that cannot be run.
        """
        flags = _classic_flags(task) if self.classic_flags else []
        sys.argv = [self.path, *self.arguments, *flags]
        folder = os.getcwd() if self.is_module else os.path.dirname(os.path.abspath(self.path))
        sys.path.insert(0, folder)
        _forget_shadowed(folder)
        with _showing_error():
            self._run(folder)

    def _run(self, folder: str) -> None:
        # Else this name is the dictionary of that module, unlike in a program's main module.
        names = {"__builtins__": builtins}
        if not self.is_module:
            try:
                runpy.run_path(self.path, names, run_name="__main__")
            except (SyntaxError, ValueError):
                _check_source(self.path)
                raise
            return
        if (spec := _spec(self.path)) is None:
            raise ConfigError("-m", self.path, f"there is no such module in {folder} or sys.path")
        if spec.submodule_search_locations is not None and not _spec(f"{self.path}.__main__"):
            rule = "must have a module __main__, as it is a package"
            raise ConfigError("-m", self.path, rule)
        runpy.run_module(self.path, names, run_name="__main__", alter_sys=True)


@contextmanager
def _showing_error() -> Iterator[None]:
    """Calls the `sys.excepthook` that the program has set, as Python does with its last error."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        hook = getattr(sys, "excepthook", None)
        if hook not in (None, sys.__excepthook__):
            try:
                hook(type(error), error, user_trace(error.__traceback__))
            except SystemExit:
                raise
            except BaseException as failure:
                _say(f"sys.excepthook has failed: {type(failure).__name__}: {text_of(failure)}")
        raise


def _check_source(path: str) -> None:
    """Raises the SyntaxError of `python PATH` if that could not read the bytes of the source.

    The one of `compile` names another place, or neither the file nor the line.
    """
    source = b""
    with suppress(OSError):  # a script that ran may have deleted itself
        source = Path(path).read_bytes()
    if path.endswith(".pyc") or zipfile.is_zipfile(io.BytesIO(source)):
        return
    before, null, _ = source.partition(b"\0")
    try:
        before.decode("utf-8" if _ENCODING.match(source) is None else "latin-1")
    except UnicodeDecodeError as error:
        byte, line = source[error.start], before.count(b"\n", 0, error.start) + 1
        raise SyntaxError(
            f"Non-UTF-8 code starting with '\\x{byte:02x}' in file {path} on line {line}, but no "
            "encoding declared; see https://peps.python.org/pep-0263/ for details"
        ) from None
    if null:
        text = before.rpartition(b"\n")[2].decode(errors="replace")
        place = (path, before.count(b"\n") + 1, None, text)
        raise SyntaxError("source code cannot contain null bytes", place) from None


def _forget_shadowed(folder: str) -> None:
    """Lets a module in the script's folder shadow one that is imported already, as under `python`.

    The fork server has imported TensorFlow and all that it needs.
    """
    for name in [name for name in sys.modules if "." not in name]:
        if name in (*_KEPT, *sys.builtin_module_names):
            continue
        spec = PathFinder.find_spec(name, [folder])
        if spec is None or spec.loader is None:  # none, or a folder without __init__.py
            continue
        if getattr(sys.modules[name], "__file__", None) != spec.origin:
            for known in [known for known in sys.modules if known.partition(".")[0] == name]:
                del sys.modules[known]


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            return None
        raise  # the error of a package above it


def _classic_flags(task: Task) -> list[str]:
    hosts = {key: ",".join(task.cluster_spec.get(key, [])) for key in ("ps", "worker")}
    return [
        f"--ps_hosts={hosts['ps']}",
        f"--worker_hosts={hosts['worker']}",
        f"--job_name={task.task_type}",
        f"--task_index={task.task_index}",
    ]


def end_process(
    code: int, name: str, grace: float, then: Callable[[], int] | None = None
) -> NoReturn:
    """Joins all threads that are no daemons, runs the exit handlers, and exits with `code`.

    Python would then destroy TensorFlow's servers, which can block for ever; this process exits
    without that. If the threads and the handlers take longer than `grace` seconds, it prints one
    line and exits too; with 0 it waits for none of them.

    Args:
        code: exit code; 120 if it is 0 and the output cannot be written.
        name: of the task.
        grace: in seconds.
        then: called when the threads have ended, without that limit; returns the exit code.
    """
    start = time.monotonic()
    if grace > 0:
        # Python ends a program with this and `_run_exitfuncs`, and has no public function for it.
        with _limit(code, name, grace, grace):
            threading._shutdown()  # type: ignore[attr-defined]
    rest = grace - (time.monotonic() - start)
    if then is not None:
        code = then()
    if rest > 0:
        with _limit(code, name, grace, rest):
            atexit._run_exitfuncs()
            _flush_files()
    os._exit(_flushed(code))


@contextmanager
def _limit(code: int, name: str, grace: float, seconds: float) -> Iterator[None]:
    """Exits if the block takes longer than so many seconds."""
    timer = threading.Timer(seconds, _exit_late, (code, name, grace))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _exit_late(code: int, name: str, grace: float) -> None:
    main = threading.main_thread()
    threads = [
        thread.name for thread in threading.enumerate() if thread is not main and not thread.daemon
    ]
    what = f"thread {', '.join(threads)}" if threads else "an exit handler"
    _say(
        f"{name}: {what} still runs {grace:g} s after the end of the program; the process ends "
        "now. Raise --grace to wait longer"
    )
    os._exit(_flushed(code))


def _flushed(code: int) -> int:
    """Flushes the streams, which the program may have closed or replaced; the exit code then."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None or getattr(stream, "closed", False):
            continue
        try:
            stream.flush()
        except BrokenPipeError:
            code = READER_LEFT
        except Exception as error:
            _say(f"the output could not be written: {error}")
            code = code or _FLUSH_FAILED
    return code


def _flush_files() -> None:
    """Writes what open files still hold, as Python does when it destroys their objects."""
    for each in gc.get_objects():
        if type(each) in _FILES and each not in (sys.stdout, sys.stderr):
            with suppress(Exception):  # it is closed, or cannot be written: Python says nothing
                each.flush()


def _say(what: str) -> None:
    """Prints a line, also if `sys.stderr` was replaced; nothing if the stream is closed."""
    with suppress(OSError):
        os.write(2, f"tfdist: {what}\n".encode(errors="replace"))


def end_on_signals() -> None:
    """Makes SIGTERM and SIGINT end this process, with exit code 128 + signal number.

    Python runs a signal handler between two steps of the main thread, so not while that thread is
    inside TensorFlow. And a signal without a handler does not end the first process of a container.
    So a thread waits for the signals. An ignored signal stays ignored, a handler that the program
    installs later is kept, and forked children have the default actions.
    """
    read_end, write_end = map(to_high_number, os.pipe())  # Python writes each signal to it
    os.set_blocking(write_end, False)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(read_end,), name="signals", daemon=True).start()
    fork = _Fork()
    os.register_at_fork(
        before=fork.hold, after_in_parent=fork.release, after_in_child=fork.release_in_child
    )


def _wait(read_end: int) -> None:
    with suppress(OSError):  # the script may close all descriptors
        while signals := os.read(read_end, 1):
            if signal.getsignal(signals[0]) is _leave:
                _leave(signals[0], None)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


class _Fork(threading.local):
    """Blocks the signals in a forked child until its own handlers are installed.

    Until then a signal to the child would be written to the parent's pipe, and end the parent.
    """

    def hold(self) -> None:
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def release(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def release_in_child(self) -> None:
        signal.set_wakeup_fd(-1)
        if signal.getsignal(signal.SIGTERM) is _leave:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.release()


def node_environment(task: Task, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to `environ` for a task whose cluster is on several machines.

    A proxy would break calls between tasks; docker passes its own proxy on to every container.
    If `no_grpc_proxy` is set, gRPC does not read `no_proxy`.
    """
    addresses = [address for part in task.cluster_spec.values() for address in part]
    hosts = [parse_address(address).host for address in addresses]
    others = [host for host in environ.get("no_proxy", "").split(",") if host]
    wanted = {**FAIL_FAST, "no_grpc_proxy": ",".join(dict.fromkeys([*hosts, *others]))}
    return {name: value for name, value in wanted.items() if name not in environ}


@contextmanager
def standard_error_aside() -> Iterator[None]:
    """Discards what this process writes to standard error inside the block.

    TensorFlow prints some start-up lines before it reads its log level (TensorFlow 2.21). Python
    prints an error of the import after the block.
    """
    try:
        aside = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(aside, 2)
        os.close(aside)
        os.close(nowhere)


def import_tensorflow_quietly() -> None:
    """Discards the start-up lines of TensorFlow when the program imports it later."""
    sys.meta_path.insert(0, _Finder())


class _Finder:
    """A finder for TensorFlow alone, which makes its loader quiet and then removes itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def execute_quietly(module: ModuleType) -> None:
                with standard_error_aside():
                    execute(module)

            loader.exec_module = execute_quietly  # type: ignore[method-assign]
        return spec
