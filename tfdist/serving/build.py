"""Builds the C++ server with the libraries of the installed TensorFlow, once for each of them.

The wheel of TensorFlow contains its C++ library and headers, so no source of TensorFlow is needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from tfdist.deadline import Deadline
from tfdist.errors import ConfigError, ServerError, checked_path
from tfdist.lazy import require_tensorflow

SOURCES = str(Path(__file__).parent / "cpp")
"""The folder of the C++ sources and of their CMakeLists.txt, for a C++ project of your own."""

SERVER = "tfdist-server"
PREDICT = "predict"
_BUILD_SECS = 1800.0  # it takes 40 s on two cores
_POLL_SECS = 0.2
_SHOWN_LINES = 20


def build_server(*, cache: str | os.PathLike[str] | None = None) -> str:
    """Builds the server if this TensorFlow has none yet, and returns the path of `tfdist-server`.

    It blocks for about 40 s on two cores, or until another process has built it. `predict`, the
    program of the tutorial, is in the same folder.

    Args:
        cache: the folder of the builds; by default `tfdist` in `$XDG_CACHE_HOME`, or in `~/.cache`.

    Raises:
        ConfigError: `cache` cannot be written.
        ModuleNotFoundError: there is no TensorFlow.
        ServerError: CMake, the compiler or a library is missing, or the build failed.
    """
    require_tensorflow("tfdist serve")
    folder = _cache_folder(cache)
    target = folder / f"server-{_build_name()}"
    if (target / SERVER).exists():
        return str(target / SERVER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / "lock"
        lock.touch()
    except OSError as error:
        raise ConfigError("cache", str(folder), f"cannot be written ({error.strerror})") from error
    with _locked(lock):
        if not (target / SERVER).exists():
            _build(folder, target)
    return str(target / SERVER)


def tensorflow_folder() -> str:
    """The folder of the package, which is not imported."""
    spec = importlib.util.find_spec("tensorflow")
    locations = spec.submodule_search_locations if spec else None
    assert locations, "require_tensorflow comes first"
    return locations[0]


def _cache_folder(given: str | os.PathLike[str] | None) -> Path:
    if given is not None:
        return Path(checked_path("cache", given))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfdist"


def _build_name() -> str:
    """Another one for other sources, and for another TensorFlow or place of it."""
    names = sorted(set(metadata.packages_distributions().get("tensorflow", [])))
    versions = [f"{name} {metadata.version(name)}" for name in names]
    digest = hashlib.sha256("\0".join([tensorflow_folder(), *versions]).encode())
    for path in sorted(Path(SOURCES).iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    version = metadata.version(names[0]) if names else "unknown"
    return f"{version}-{digest.hexdigest()[:12]}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lets one process build at a time: the others need what it builds."""
    deadline = Deadline(_BUILD_SECS)
    with path.open("rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline.expired:
                    raise ServerError(
                        f"another process has held {path} for {_BUILD_SECS:.0f} s", ""
                    ) from None
                time.sleep(_POLL_SECS)
        yield


def _build(folder: Path, target: Path) -> None:
    for program, package in (("cmake", "cmake"), ("c++", "g++")):
        if shutil.which(program) is None:
            raise ServerError(
                f"no {program} here, which builds the server: apt install {package} make "
                "libboost-dev libsimdjson-dev",
                "",
            )
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as temporary:
        tree = Path(temporary, "tree")
        _run(["cmake", "-S", SOURCES, "-B", tree, f"-DTENSORFLOW_DIR={tensorflow_folder()}"])
        _run(["cmake", "--build", tree, "--parallel", str(os.cpu_count() or 1)])
        programs = Path(temporary, "programs")
        programs.mkdir()
        for name in (SERVER, PREDICT):
            shutil.copy2(tree / name, programs / name)
        programs.rename(target)  # complete, or not there


def _run(command: list[str | Path]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_BUILD_SECS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"the build did not end within {error.timeout:.0f} s", "") from error
    if done.returncode != 0:
        lines = done.stdout.splitlines()
        # The first error: what follows it is often its consequence.
        first = next((i for i, line in enumerate(lines) if "error" in line.lower()), 0)
        shown = lines[first : first + _SHOWN_LINES]
        raise ServerError("the server cannot be built", "\n".join(shown))
