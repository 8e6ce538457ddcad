"""A run folder is input: whatever is in it, the commands print a line for each damaged file."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tfdist.cli import main
from tfdist.cli.output import PipeConsole
from tfdist.cluster.processes import STACKS_SIGNAL
from tfdist.diagnosis.barriers import Barriers
from tfdist.diagnosis.collect import view_job
from tfdist.diagnosis.kernel import KernelThreads
from tfdist.diagnosis.stacks import ANSWERED, DEAF, FOREIGN, is_foreign
from tfdist.errors import ConfigError, DataError
from tfdist.runs.barrier_notes import BarrierNote, PassMark, note_barrier
from tfdist.runs.files import read_file
from tfdist.runs.folder import RunFolder, TaskRecord, start_ticks
from tfdist.runs.live import live_runs
from tfdist.runs.outcome import Outcome
from tfdist.task import PROGRESS_VARIABLE, Task

CLUSTER = {"ps": ["localhost:1"], "worker": ["localhost:2", "localhost:3"]}
NO_PID = 2**22 + 1  # above every pid
RECORD = "attempt-1/worker-0/task.json"
READ = [
    "attempt-1/worker-0/progress.json",
    "attempt-1/worker-0/barriers",
    "attempt-1/worker-0/notes",
    "attempt-1/worker-1/error.json",
    "stall.json",
]


@pytest.fixture
def run(folder, monkeypatch):
    """A run of three tasks that have ended or are gone; its launcher seems to be gone, too."""
    monkeypatch.setattr("tfdist.cli.status.ask", lambda *_: Barriers())
    monkeypatch.setattr("tfdist.cli.stacks.ask", lambda *_: Barriers())
    monkeypatch.setenv("COLUMNS", "300")
    tasks = [Task("ps", 0, CLUSTER), Task("worker", 0, CLUSTER), Task("worker", 1, CLUSTER)]
    run = folder("tfdist-a", *tasks)
    for task in tasks:
        run.folder(task.name, 1)
        run.started(task.name, 1, NO_PID)
    run.ended("ps:0", 1, Outcome(exit_code=-15, terminated=True))
    run.ended("worker:0", 1, Outcome(exit_code=-15, terminated=True))
    run.ended("worker:1", 1, Outcome.of_error(ValueError("no data")))
    change(run.path / "run.json", launcher={"pid": NO_PID, "ticks": 1})
    return run


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def fifo(path):
    os.mkfifo(path)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(path.parent)  # the address may have only 107 bytes
        bound.bind(path.name)
        os.chdir(here)


def huge(path):
    with open(path, "wb") as file:
        file.truncate(2**33)


def writes(content):
    def write(path):
        path.write_bytes(content)

    write.__name__ = repr(content[:12])
    return write


def leads_to(target):
    def link(path):
        path.symlink_to(target.format(name=path.name))

    link.__name__ = f"link to {target}"
    return link


DAMAGES = [
    *(fifo, unix_socket, huge, Path.mkdir),
    *map(leads_to, ["gone", "{name}", "/dev/zero", "../../run.json"]),
    *map(writes, [b"[]\n", b"{}\n", b"null\n", b"NaN\n", b"\xff\n", b"\0\n", b"[" * 10**5 + b"\n"]),
    *map(writes, [b'"\\udce9"\n', b"9" * 5000 + b"\n", b'{"\\u001b[2J": 1}\n']),
]


def shown(capsys, *arguments):
    """The exit code, the output and the lines on standard error of a command."""
    code = main([*map(str, arguments)])
    text, errors = capsys.readouterr()
    assert not re.search(r"[^\n\t -~\u00a1-\ud7ff]", text + errors)
    return code, text, errors.splitlines()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *((RECORD, damage) for damage in DAMAGES),
        *((file, damage) for file in READ for damage in (fifo, Path.mkdir, writes(b"{}\n"))),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_a_damaged_file_is_one_line_and_hides_nothing_else(run, capsys, file, damage):
    path = run.path / file
    if path.name == "barriers":  # they are read only while the run goes on
        change(run.path / "run.json", launcher=launcher())
    path.unlink(missing_ok=True)
    damage(path)
    code, text, lines = shown(capsys, "status", run.path)
    assert code == 1  # of worker 1, which has failed
    assert all(name in text for name in ("ps:0", "worker:0", "worker:1", "exit code 1"))
    code, text, more = shown(capsys, "stacks", "--verdict", run.path)
    assert "verdict: " in text
    [line] = {*lines, *more}
    assert line.startswith(f"tfdist: skipped {path}: ")
    code, text, _ = shown(capsys, "stacks", "--verdict", "--json", run.path)
    assert json.loads(text)["exit_code"] == code


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__)
def test_a_damaged_run_is_one_line_and_does_not_hide_the_others(run, folder, capsys, damage):
    other = folder("tfdist-b")
    (run.path / "run.json").unlink()
    damage(run.path / "run.json")
    os.utime(run.path / "run.json", (2**33, 2**33), follow_symlinks=False)  # the latest one
    code, text, lines = shown(capsys, "status", run.path)
    assert (code, text) == (2, "")
    [line] = lines
    assert line.startswith(f"tfdist: RUN: got '{run.path}'; {run.path}/run.json: ")
    code, text, lines = shown(capsys, "status", run.path.parent)
    assert text.startswith(f"{other.path}: ")
    assert [line.partition(": i")[0] for line in lines] == [f"tfdist: skipped {run.path}/run.json"]
    assert [found.path for found in live_runs()] == [other.path]
    assert capsys.readouterr().err.startswith(f"tfdist: skipped {run.path}/run.json: ")


def remove(run):
    shutil.rmtree(run)


def replace_by_a_file(run):
    shutil.rmtree(run)
    run.touch()


def empty(run):
    shutil.rmtree(run)
    run.mkdir()


def without_run_json(run):
    (run / "run.json").unlink()


def truncate(run):
    os.truncate(run / "run.json", 100)


def replace_by_a_foreign_file(run):
    (run / "run.json").write_text('{"name": "web", "scripts": {}}')


def write_as_a_newer_version(run):
    change(run / "run.json", host="localhost")


def forbid(run):
    (run / "run.json").chmod(0)


def forbid_the_folder(run):
    run.chmod(0)


@pytest.fixture
def copied(run):
    """A copy of the run in a folder that each user may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "run")
        shutil.copytree(run.path, path)
        yield path
        if path.is_dir():
            path.chmod(0o755)


@contextlib.contextmanager
def as_a_user_without_rights():
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (remove, "does not exist"),
        (replace_by_a_file, "must be a folder, and is a file"),
        (empty, "is not the folder of a run; it contains no run.json"),
        (without_run_json, "is not the folder of a run; it contains no run.json"),
        (truncate, "is not JSON: .*; it is truncated or damaged"),
        (replace_by_a_foreign_file, "is no RunRecord .* field name; use the version that has made"),
        (write_as_a_newer_version, "is no RunRecord .* field host; use the version that has made"),
        (forbid, "cannot be read: Permission denied; run the command as its owner"),
        (forbid_the_folder, "cannot be read: Permission denied; run the command as its owner"),
    ],
)
@pytest.mark.parametrize(
    "command", [("status",), ("status", "--json"), ("stacks",), ("stacks", "--verdict")]
)
def test_what_is_no_run_that_can_be_read_is_one_line_and_exit_code_2(
    copied, capsys, command, damage, what
):
    damage(copied)
    with as_a_user_without_rights():
        code, text, lines = shown(capsys, *command, copied)
    assert (code, text) == (2, "")
    [line] = lines
    assert re.search(f"^tfdist: RUN: got '{copied}'; .*{what}", line), line


def test_runs_of_another_user_are_named(copied, capsys):
    forbid_the_folder(copied)
    with as_a_user_without_rights():
        code, _, [line] = shown(capsys, "status", copied.parent)
    assert code == 2
    assert line.endswith("cannot enter run in it, so run the command as its owner")


@pytest.mark.parametrize(
    "lost", ["attempt-1", "attempt-1/worker-0", "attempt-1/worker-0/task.json"]
)
def test_a_task_without_a_record_is_well_only_as_long_as_it_may_start(run, capsys, lost):
    run.ended("worker:1", 1, Outcome(exit_code=0))
    assert shown(capsys, "status", run.path)[0] == shown(capsys, "stacks", run.path)[0] == 0
    (run.path / lost).rename(run.path / "moved")
    assert shown(capsys, "status", run.path)[0] == shown(capsys, "stacks", run.path)[0] == 1
    change(run.path / "run.json", launcher=launcher())
    assert shown(capsys, "status", run.path)[0] == 0


@pytest.mark.parametrize("damage", [writes(b""), leads_to("gone"), leads_to("{name}"), fifo])
def test_a_task_without_a_folder_is_one_line(run, capsys, damage):
    folder = run.path / "attempt-1" / "worker-0"
    folder.rename(folder.with_name("moved"))
    damage(folder)
    _, text, lines = shown(capsys, "status", run.path)
    assert "has a record that cannot be read" in text
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("run.json", {"tasks": []}),
        ("run.json", {"tasks": ["worker:0", "worker:0"]}),
        ("run.json", {"tasks": ["../../x:0"]}),
        ("run.json", {"tasks": "worker:0"}),
        ("run.json", {"began": 10**400}),
        ("run.json", {"began": "yesterday"}),
        ("run.json", {"cluster": {"ps": "localhost:1"}}),
        ("run.json", {"launcher": {"pid": 0, "ticks": 1}}),
        ("run.json", {"launcher": {"pid": 1}}),
        ("run.json", {"foreign": 1}),
        (RECORD, {"pid": 0}),
        (RECORD, {"pid": -1}),
        (RECORD, {"pid": 2**40}),
        (RECORD, {"pid": True}),
        (RECORD, {"pid": None}),
        (RECORD, {"began": None}),
        (RECORD, {"exit_code": 10**30}),
        (RECORD, {"usage": []}),
        (RECORD, {"name": "worker:1"}),
        (RECORD, {"attempt": 2}),
    ],
)
def test_a_value_of_a_wrong_type_or_size_is_one_line(run, capsys, file, values):
    change(run.path / file, **values)
    _, _, lines = shown(capsys, "status", run.path)
    assert len(lines) == 1
    assert f"{run.path / file}: is " in lines[0]


def test_a_cluster_without_the_address_of_a_task_is_no_error(run, capsys):
    for cluster in ({}, {"worker": ["localhost:2"]}, {"worker": ["x", "y"], "ps": []}):
        change(run.path / "run.json", cluster=cluster, launcher=launcher())
        change(run.path / RECORD, pid=os.getpid(), ticks=start_ticks(os.getpid()), ended=None)
        note_barrier(BarrierNote("end", 2), {PROGRESS_VARIABLE: str(run.path / RECORD)})
        assert shown(capsys, "status", run.path)[2] == []


def launcher():
    return {"pid": os.getpid(), "ticks": start_ticks(os.getpid())}


def test_texts_of_a_task_are_shown_and_not_obeyed(run, capsys):
    evil = "a\x1b]0;x\x07\udce9\u202e\nb"
    change(run.path / "attempt-1/worker-1/error.json", message=evil)
    note = {"state": evil, "done": 1, "total": 2}
    (run.path / "attempt-1/worker-0/progress.json").write_text(json.dumps(note))
    _, text, lines = shown(capsys, "status", run.path)
    assert r"a\x1b]0;x\x07\udce9\u202e\nb: 1 of 2" in text
    code, text, lines = shown(capsys, "stacks", "--verdict", run.path)
    assert r"a\x1b]0;x\x07" in text
    assert (code, lines) == (1, [])


def test_a_console_escapes_what_its_encoding_does_not_have():
    for encoding, shown in (("ascii", rb"\xe9\u2192\x1b[2J"), ("utf-8", "é→\\x1b[2J".encode())):
        written = io.BytesIO()
        console = PipeConsole(file=io.TextIOWrapper(written, encoding, write_through=True))
        console.print("é→\x1b[2J", highlight=False, markup=False)
        assert written.getvalue() == shown + b"\n"


def test_a_run_with_a_path_that_is_not_utf_8_is_shown(run, capsys):
    moved = run.path.with_name("caf\udce9\x1b")
    run.path.rename(moved)
    _, text, lines = shown(capsys, "status", moved)
    assert text.startswith(rf"{run.path.parent}/caf\udce9\x1b: ")
    assert lines == []


def test_a_run_whose_last_attempt_has_a_damaged_record_is_not_shown_as_the_one_before(run, capsys):
    (run.path / "attempt-2" / "worker-1").mkdir(parents=True)
    fifo(run.path / "attempt-2" / "worker-1" / "task.json")
    _, text, _ = shown(capsys, "status", run.path)
    assert "exit code 1" not in text
    assert re.search("worker:1 .*cannot be read", text)


def test_a_run_that_seems_fine_is_unknown_if_a_record_cannot_be_read(run, capsys):
    run.ended("worker:1", 1, Outcome(exit_code=0))
    change(run.path / RECORD, pid=0)
    _, text, _ = shown(capsys, "stacks", "--verdict", run.path)
    assert text.startswith("verdict: UNKNOWN")
    assert "the record of worker:0 cannot be read" in text


def test_a_folder_that_cannot_be_named_is_one_line(capsys):
    assert shown(capsys, "status", "a" * 5000)[0] == 2


def test_a_file_that_cannot_be_read_is_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "gone")
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", start=1, most=4) == b"2345"
    with pytest.raises(DataError, match="is larger than 4 bytes"):
        read_file(tmp_path / "file", most=4)
    with pytest.raises(DataError, match="Not a directory"):
        read_file(tmp_path / "file" / "x")


# --- no signal for a foreign process

TASK = f"""
import faulthandler, sys
file = open(sys.argv[1], "wb", buffering=0)
faulthandler.register({int(STACKS_SIGNAL)}, file, all_threads=True)
if sys.argv[2:]:
    file.close()
print(flush=True)
input()
"""


@pytest.fixture
def task(tmp_path):
    """Starts a process that writes its stacks into a file, or one that has closed the file."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-c", TASK, *map(str, arguments)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        process.stdout.readline()
        return psutil.Process(process.pid)

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.parametrize(
    ("file", "state"),
    [
        (None, ANSWERED),
        (Path.unlink, DEAF),
        *((damage, FOREIGN) for damage in (Path.touch, fifo, leads_to("other"), Path.mkdir)),
    ],
)
@pytest.mark.parametrize("sampled", [True, False])
def test_a_process_gets_the_signal_only_if_it_has_the_file_open(run, task, sampled, file, state):
    """Its pid and its start are in the record of the task, as in a copy of a folder."""
    path = run.folder_of("worker:0", 1) / "stacks"
    process = task(path)
    change(run.path / RECORD, pid=process.pid, ticks=start_ticks(process.pid), ended=None)
    if file is not None:
        path.rename(path.with_name("other"))
        if file is not Path.unlink:
            file(path)
    [view] = view_job(RunFolder(run.path), ["worker:0"], sampled=sampled).tasks
    assert view.sample.answer.state == state
    if state == FOREIGN:
        assert view.sample.kernel == KernelThreads()
    other = path if file is None else path.with_name("other")
    assert bool(other.read_bytes()) == (state == ANSWERED)  # it got the signal, or did not


def test_a_task_that_has_closed_its_file_gets_no_signal(task, tmp_path):
    process = task(tmp_path / "stacks", "closes")
    assert is_foreign(process, tmp_path / "stacks")


def test_the_first_process_of_the_machine_is_no_task():
    assert TaskRecord("worker:0", 1, 1, start_ticks(1), 0.0).process is None


# --- the launcher and the trainers go on without the folder


def test_a_launcher_whose_folder_is_lost_keeps_its_records(folder, capsys):
    run = folder("tfdist-a")
    run.folder("worker:0", 1)
    run.started("worker:0", 1, NO_PID)
    run.path.rename(run.path.with_name("moved"))
    run.ended("worker:0", 1, Outcome.of_error(ValueError("caf\udce9")))
    [record] = run.records()
    assert (record.exit_code, run.latest()) == (1, [record])
    errors = capsys.readouterr().err.splitlines()
    end = ": No such file or directory; the job continues"
    assert [line.endswith(end) for line in errors] == [True, True]


@pytest.mark.parametrize("raised", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_error_whose_text_cannot_be_made_is_recorded(folder, raised):
    class Odd(Exception):
        def __str__(self):
            raise raised

    run = folder("tfdist-a")
    path = Path(run.folder("worker:0", 1), "error.json")
    run.started("worker:0", 1, NO_PID)
    run.ended("worker:0", 1, Outcome.of_error(Odd()))
    assert "Odd" in path.read_text()


def test_a_launcher_does_not_wait_for_a_reader_of_a_file_of_output(folder):
    run = folder("tfdist-a")
    path = Path(run.folder("worker:0", 1), "stdout")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device or address"):
        run.output("worker:0", 1, 1, b"x")


def test_notes_never_raise_into_the_training(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {PROGRESS_VARIABLE: "task/progress.json"}
    mark = PassMark(environ, every_secs=0.0)
    for _ in range(2):
        mark.touch()
    note_barrier(BarrierNote("end", 2), environ)
    assert [line.partition(": ")[0] for line in caplog.messages] == [
        "a passed barrier cannot be noted",
        "the barrier 'end' cannot be noted for tfdist status",
    ]
    (tmp_path / "task").mkdir()
    monkeypatch.chdir("/")
    mark.touch()
    assert (tmp_path / "task" / "barrier-passed").exists()


def test_a_damaged_file_of_barriers_is_no_error_of_the_trainer(tmp_path, caplog):
    environ = {PROGRESS_VARIABLE: str(tmp_path / "progress.json")}
    fifo(tmp_path / "barriers")
    note_barrier(BarrierNote("end", 2), environ)
    assert "is a FIFO" in caplog.text


def test_a_run_in_a_folder_that_cannot_be_read_is_a_config_error(tmp_path):
    (tmp_path / "run.json").mkdir()
    assert RunFolder.find(str(tmp_path)).path == tmp_path
    with pytest.raises(ConfigError, match="contains no run"):
        RunFolder.find(str(tmp_path / "run.json"))
