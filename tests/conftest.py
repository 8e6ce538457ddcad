"""What all tests share: markers by folder, a deadline, and cases that rotate by the day."""

import datetime
import faulthandler
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.rotation import cases_of_the_day
from tfdist.runs.folder import RunFolder
from tfdist.task import Task

HERE = Path(__file__).parent
DEADLINE_SECS = 90.0  # of a test that runs alone
NIGHTLY_TIMES = 10  # as long as by day

FOLDERS = {
    "unit": "needs no TensorFlow",
    "tf": "TensorFlow in one process, no server",
    "cluster": "a cluster of threads or of forkserver processes",
    "chaos": "signals and seeded faults against process groups, and whole launches",
    "multinode": "network namespaces, or docker compose",
    "serving": "models exported and served: a C++ compiler, wrk, clang",
}


_STDERR = pytest.StashKey[int]()


def strays(tests: Path) -> list[str]:
    """The test files that no folder of FOLDERS holds, and that no command would therefore run."""
    files = sorted(path.relative_to(tests) for path in tests.rglob("*.py"))
    return [
        str(file)
        for file in files
        if file.match("test_*.py") or file.match("*_test.py")
        if len(file.parts) == 1 or file.parts[0] not in FOLDERS
    ]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tfdist", "long matrices of tests")
    group.addoption("--nightly", action="store_true", help="run all cases, and random runs longer")
    group.addoption("--seed", type=int, help="which cases run; by default today's number")


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in FOLDERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    config.addinivalue_line("markers", "rotates(number): so many of its cases run each day")
    if config.option.seed is None:  # workers of pytest-xdist are given that of their parent
        config.option.seed = datetime.date.today().toordinal()
    # Before pytest captures what is written to it.
    config.stash[_STDERR] = os.dup(2)
    config.add_cleanup(lambda: os.close(config.stash[_STDERR]))
    # An example may take long on a busy machine; the deadline is that of the whole test.
    settings.register_profile("tfdist", deadline=None)
    settings.load_profile("tfdist")


def pytest_sessionstart() -> None:
    # A shell that starts the tests in the background lets them ignore Ctrl-C, and so would
    # every process that they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Looked for on disk and not among the collected tests: a stray file is never collected.
    if found := strays(HERE):
        raise pytest.UsageError(
            f"{', '.join(found)} in tests/: move to one of {', '.join(FOLDERS)}"
        )


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.is_relative_to(HERE):
        item.add_marker(item.path.relative_to(HERE).parts[0])


def pytest_report_header(config: pytest.Config) -> str:
    if config.option.nightly:
        return "long matrices: all cases"
    return f"long matrices: the cases of --seed {config.option.seed}; --nightly runs all"


@pytest.hookimpl(trylast=True)  # after -k: what that has left rotates
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps `number` cases of each test marked `rotates(number)`: other ones each day."""
    if config.option.nightly:
        return
    matrices: dict[tuple[str, int], list[pytest.Item]] = {}
    for item in items:
        if marker := item.get_closest_marker("rotates"):
            test = item.nodeid.partition("[")[0], *marker.args
            matrices.setdefault(test, []).append(item)
    dropped: set[pytest.Item] = set()
    for (test, number), cases in matrices.items():
        dropped |= set(cases) - set(cases_of_the_day(cases, number, config.option.seed, test))
    items[:] = [item for item in items if item not in dropped]
    config.hook.pytest_deselected(items=sorted(dropped, key=lambda item: item.nodeid))


def pytest_collection_finish() -> None:
    # What TensorFlow's modules made stays, and a graph is many objects: by default the garbage
    # collector takes a sixth of the time of the tests that build graphs.
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Ends a test that hangs and prints the stacks of all threads.

    The deadline grows with the number of tests that run at the same time.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    secs = DEADLINE_SECS * workers * (NIGHTLY_TIMES if item.config.option.nightly else 1)
    faulthandler.dump_traceback_later(secs, file=item.config.stash[_STDERR], exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def times(request: pytest.FixtureRequest) -> int:
    """How many times as long random runs, and searches for growth, are to take."""
    return NIGHTLY_TIMES if request.config.option.nightly else 1


@pytest.fixture(autouse=True)
def _no_leaks_of_clusters(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("cluster"):
        request.getfixturevalue("no_leaks")


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a job's script and gives its path."""

    def write(text: str) -> Path:
        path = tmp_path / "job.py"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunFolder]:
    """Makes the folder of a run, in the temporary directory, whose launcher is this process."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def make(name: str, *tasks: Task) -> RunFolder:
        path = tmp_path / name
        path.mkdir()
        run = RunFolder(path)
        all_tasks = tasks or [Task("worker", 0, {"worker": ["localhost:1"]})]
        run.create(all_tasks, [task for task in all_tasks if task.is_trainer])
        return run

    return make
