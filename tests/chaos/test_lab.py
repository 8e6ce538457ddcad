"""The lab: a case of each family gets its verdict, and its fixed job ends well.

All cases: `scripts/test nightly -k test_lab`, or `tfdist repro matrix`.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import psutil
import pytest

from tfdist.diagnosis.evidence import Evidence
from tfdist.diagnosis.rules import diagnose
from tfdist.diagnosis.verdict import Name
from tfdist.repro import lab as lab_module
from tfdist.repro.lab import EVIDENCE_FILE, Lab, collect_evidence
from tfdist.repro.matrix import CASES, find
from tfdist.repro.series import grid
from tfdist.testing import poll_until

SLOW = [case.name for case in CASES if all(name.is_slow for name in case.expects)]


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.rotates(6)
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_a_case_gets_its_verdict_and_its_fixed_job_ends_well(name, tmp_path):
    case, lines = find(name), []
    lab = Lab(lines.append)
    broken = lab.play(case, fixed=False, seed=1, folder=tmp_path / "broken")
    assert broken.as_expected, f"{broken.verdict}; {lines}"
    recorded = Evidence.parse((tmp_path / "broken" / EVIDENCE_FILE).read_text("utf-8"))
    assert diagnose(recorded) == broken.verdict
    if broken.reported_after_secs is not None:
        assert broken.reported_after_secs < case.stall_secs + 5.0 or broken.slow
    fixed = lab.play(case, fixed=True, seed=1, folder=tmp_path / "fixed")
    assert fixed.as_expected, f"{fixed.verdict}; {lines}"


@pytest.mark.usefixtures("no_leaks")
def test_a_job_past_its_deadline_that_makes_progress_is_slow_not_hung(tmp_path):
    one_size = {"ps": [2], "workers": [4], "inter_op": [1], "iterator_on_ps": [False]}
    [case] = grid(find("t23846"), **one_size, epochs=1000)
    played = Lab().play(replace(case, deadline_secs=0.5), fixed=False, seed=1, folder=tmp_path)
    assert (played.verdict.name, played.hangs) == (Name.SLOW, False)
    assert "still making progress" in str(played.verdict)


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("overdue", [True, False])
def test_a_job_that_ends_during_its_diagnosis_has_ended(overdue, tmp_path, monkeypatch):
    looks = []

    def slow_look(run, trainers, **known):
        looks.append(known["over"])
        if not known["over"]:

            def has_ended():
                ended = [record.name for record in run.latest() if record.ended is not None]
                return set(trainers) <= set(ended)

            poll_until(has_ended, "all trainers have ended")
        return collect_evidence(run, trainers, **known)

    monkeypatch.setattr(lab_module, "collect_evidence", slow_look)
    patience = {"deadline_secs": 0.0} if overdue else {"stall_secs": 0.0}
    case = replace(find("t23846"), **patience)
    played = Lab().play(case, fixed=False, seed=1, folder=tmp_path)
    assert looks == [False, True]
    assert (played.verdict.name, played.hangs) == (Name.FINE, False), str(played.verdict)


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.rotates(1)
@pytest.mark.parametrize("name", SLOW)
def test_a_slow_job_is_never_reported_as_hung_until_it_ends(name, tmp_path):
    case = replace(find(name), expects=())  # so that no verdict ends the run
    played = Lab().play(case, fixed=False, seed=1, folder=tmp_path)
    assert played.slow
    # The job ends by itself, except that TensorFlow waits two minutes for its threads.
    assert not played.hangs, str(played.verdict)
    assert played.reported_after_secs is None or name == "slow/stop-grace", str(played.verdict)


def tfdist(*arguments):
    command = [sys.executable, "-m", "tfdist", "repro", *map(str, arguments)]
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:  # for the reports
        return subprocess.run(
            command,
            env={**os.environ, "TMPDIR": folder},
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )


def test_run_prints_the_verdict_and_writes_a_report(tmp_path):
    ended = tfdist("run", "sync/worker-short", "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    first, *rest = ended.stdout.splitlines()
    assert first == "sync/worker-short: STRANDED_AT_BARRIER, as expected"
    assert any("--fixed" in line for line in rest)
    [folder] = tmp_path.iterdir()
    assert "STRANDED_AT_BARRIER" in (folder / "report.html").read_text("utf-8")
    assert str(folder / "report.html") in ended.stdout


def test_matrix_plays_one_family_as_json(tmp_path):
    ended = tfdist("matrix", "--family", "barrier", "--json", "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    cases = json.loads(ended.stdout)["cases"]
    assert [case["case"] for case in cases] == ["barrier/uneven", "barrier/misplaced-queue"]
    for case in cases:
        assert {"case", "expected", "verdict", "fixed_ok", "seconds"} <= set(case)
        assert case["verdict"] in case["expected"]
        assert case["fixed_ok"]


def test_run_plays_a_grid_of_sizes_as_json():
    ended = tfdist("run", "t23846", "--ps", "1,2", "--workers", 2, "--epochs", 1, "--json")
    assert ended.returncode == 0, ended.stderr
    runs = json.loads(ended.stdout)["runs"]
    assert [(run["ps"], run["workers"], run["hangs"], run["played"]) for run in runs] == [
        (1, 2, 0, 1),
        (2, 2, 0, 1),
    ]


def test_run_prints_a_line_for_each_size_and_the_rate_of_all(tmp_path):
    sizes = ["--ps", "1,2", "--workers", "2", "--epochs", "1", "--iterator", "local"]
    ended = tfdist("run", "t23846", *sizes, "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    one, two, total = ended.stdout.splitlines()
    size = "--workers 2 --inter-op 4 --epochs 1 --iterator local"
    assert one == f"--ps 1 {size}: FINE; hung in 0 of 1 run (95% confidence: at most 95.0%)"
    assert two == f"--ps 2 {size}: FINE; hung in 0 of 1 run (95% confidence: at most 95.0%)"
    assert "hung in 0 of 2 runs (95% confidence: at most 77.6%)" in total
    assert f"reports are in {tmp_path}" in total
    pages = [page.read_text("utf-8") for page in tmp_path.glob("*/report.html")]
    for flags in (f"--ps 1 {size}", f"--ps 2 {size}"):
        assert any(f"tfdist repro run t23846/end-of-epoch {flags} --seed" in page for page in pages)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["run", "sync/none"], "CASE"),
        (["run", "sync/worker-short", "--ps", "2"], "--ps"),
        (["run", "t23846", "--epochs", "0"], "--epochs"),
        (["run", "t23846", "--runs", "0"], "--runs"),
        (["run", "t23846", "--ps", "0,1"], "--ps"),
        (["matrix", "--jobs", "0"], "--jobs"),
        (["matrix", "--family", "none"], "--family"),
    ],
)
def test_bad_input_is_a_usage_error_that_names_the_field(arguments, field):
    ended = tfdist(*arguments)
    assert ended.returncode == 2
    assert field in ended.stderr
    assert "Traceback" not in ended.stderr


def test_ctrl_c_ends_every_process(tmp_path):
    command = [sys.executable, "-m", "tfdist", "repro", "matrix", "--out", str(tmp_path)]
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    process = psutil.Process(launcher.pid)
    poll_until(lambda: list(tmp_path.glob("*/attempt-1/*/notes")), "a case is playing", timeout=60)
    children = process.children(recursive=True)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(30) == 130, launcher.stderr.read()
    launcher.stderr.close()
    deadline = time.monotonic() + 5
    _, alive = psutil.wait_procs(children, timeout=max(0.0, deadline - time.monotonic()))
    assert alive == []
