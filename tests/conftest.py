"""Marks each test by its folder, and lets no test file stand outside of a folder with a budget."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tfdist.runs.folder import RunFolder
from tfdist.task import Task

HERE = Path(__file__).parent

FOLDERS = {
    "unit": "needs no TensorFlow",
    "tf": "TensorFlow in one process, no server",
    "cluster": "a cluster of threads or of forkserver processes",
    "chaos": "signals and seeded faults against process groups, and whole launches",
    "multinode": "network namespaces, or docker compose",
}


def strays(tests: Path) -> list[str]:
    """The test files that no folder of FOLDERS holds, and that no command would therefore run."""
    files = sorted(path.relative_to(tests) for path in tests.rglob("*.py"))
    return [
        str(file)
        for file in files
        if file.match("test_*.py") or file.match("*_test.py")
        if len(file.parts) == 1 or file.parts[0] not in FOLDERS
    ]


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in FOLDERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
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
        run.create(all_tasks, [task for task in all_tasks if task.is_trainer], {})
        return run

    return make
