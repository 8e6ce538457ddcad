"""`tfdist doctor` and the function `examine` behind it."""

import json
import os
import socket
import subprocess
import sys

import portpicker
import pytest

from tfdist import ConfigError, Task
from tfdist.cli import main
from tfdist.doctor.examination import examine
from tfdist.doctor.finding import Finding
from tfdist.doctor.machine import Machine, gpus, installed, own_addresses, resolve
from tfdist.doctor.network import is_loopback

PACKAGES = {"tensorflow": "2.21.0"}


def resolve_here(host):
    if host.endswith(".invalid"):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return ["127.0.0.1"]


QUIET = Machine(
    resolve=resolve_here,
    own_addresses=lambda: ["127.0.0.1"],
    is_taken=lambda port: False,
    gpus=list,
    installed=PACKAGES.get,
)


@pytest.fixture
def config():
    """A cluster on this machine without a server yet."""
    ps, worker = (f"127.0.0.1:{portpicker.pick_unused_port()}" for _ in range(2))
    return Task("worker", 0, {"ps": [ps], "worker": [worker]}).to_env()


def checks(findings):
    return [finding.check for finding in findings]


def test_a_sound_environment_has_one_note(config):
    assert checks(examine({"TF_CONFIG": config}, machine=QUIET)) == ["network.refused"]


def test_without_a_cluster_the_variables_of_its_launcher_are_not_checked():
    environ = {"http_proxy": "http://proxy:1", "GRPC_FAIL_FAST": "false"}
    assert checks(examine(environ, machine=QUIET)) == ["tf_config.absent"]


def test_every_subject_is_examined_and_errors_come_first(tmp_path, config):
    script = tmp_path / "train.py"
    script.write_text("tf.disable_v2_behavior()\nx = strategy.ParameterServerStrategy\nkeras.fit()")
    cluster = json.loads(config)
    cluster["cluster"]["worker"].append("w1.invalid:1")
    cluster["task"] = {"type": "ps", "index": 0}
    environ = {
        "TF_CONFIG": json.dumps(cluster),
        "http_proxy": "http://proxy:1",
        "GRPC_FAIL_FAST": "false",
        "TF_GRPC_REUSE_PORT": "1",
        "TF_USE_LEGACY_KERAS": "1",
    }
    machine = Machine(
        resolve=resolve_here,
        own_addresses=lambda: ["10.0.0.1"],
        is_taken=lambda port: True,
        gpus=lambda: ["/dev/nvidia0"],
        installed={"tensorflow": "2.19.0", "keras": "3.1.0"}.get,
    )
    findings = examine(
        environ, script_path=str(script), data_pattern=f"{tmp_path}/no*", machine=machine
    )
    assert set(checks(findings)) == {
        "network.name",
        "network.own_port",
        "network.loopback",
        "network.exposure",
        "network.refused",
        "variables.proxy",
        "variables.fail_fast",
        "variables.reuse_port",
        "gpu.ps",
        "versions.tensorflow",
        "versions.legacy_keras",
        "versions.keras_fit",
        "script.eager",
        "data.no_match",
    }
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_a_syntax_error_does_not_hide_other_findings(tmp_path, config):
    script = tmp_path / "train.py"
    script.write_text("x =")
    found = checks(examine({"TF_CONFIG": config}, script_path=str(script), machine=QUIET))
    assert found == ["script.syntax", "network.refused"]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_wrong_timeout_is_rejected(timeout):
    with pytest.raises(ConfigError, match="timeout"):
        examine({}, timeout=timeout, machine=QUIET)


def test_a_finding_cannot_be_changed():
    with pytest.raises(AttributeError):
        Finding("a", "note", "", "", "").severity = "error"


def doctor(*arguments, **environ):
    return subprocess.run(
        [sys.executable, "-m", "tfdist", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | environ,
    )


def test_json_is_one_object_and_warnings_exit_with_0(config):
    ended = doctor("--json", TF_CONFIG=config)
    report = json.loads(ended.stdout)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert set(report) == {"task", "findings", "errors", "warnings", "notes"}
    assert (report["task"], report["errors"]) == ("worker:0", 0)
    assert all(
        set(finding) == {"check", "severity", "what", "why", "fix"} and all(finding.values())
        for finding in report["findings"]
    )
    warnings = [f for f in report["findings"] if f["severity"] == "warning"]
    assert report["warnings"] == len(warnings)


def test_an_error_exits_with_1():
    ended = doctor("--json", TF_CONFIG="{oops")
    report = json.loads(ended.stdout)
    assert (ended.returncode, report["task"]) == (1, None)
    assert report["findings"][0]["check"] == "tf_config.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "tfdist: script: got 'nowhere.py'; the file does not exist\n"),
        (["--timeout", "0"], "tfdist: --timeout: got 0.0; must be a number of seconds above 0\n"),
        (["--timeout", "inf"], "tfdist: --timeout: got inf; must be a number of seconds above 0\n"),
        (["--timeout", "soon"], "invalid float value"),
        (["--dat", "x"], "unrecognized arguments"),
    ],
)
def test_bad_usage_exits_with_2(arguments, message, capsys):
    try:
        code = main(["doctor", *arguments])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert message in err


NARROW = {"COLUMNS": "60", "TF_CONFIG": "{oops"}


def test_text_fits_into_60_columns_in_a_pipe(tmp_path):
    name = "x" * 100  # longer than a line, and yet complete in the output
    ended = doctor("--data", f"{tmp_path}/{name}[/red]*", **NARROW)
    lines = ended.stdout.splitlines()
    assert max(map(len, lines)) <= 60
    assert "\033" not in ended.stdout
    assert name + "[/red]*" in "".join(line.strip() for line in lines)
    assert lines[0] == "error  tf_config.json"
    assert lines[-1].startswith("2 errors, ")
    assert ended.returncode == 1


def test_a_terminal_gets_colors():
    ended = doctor(FORCE_COLOR="1", TERM="xterm", **NARROW)
    assert "\033[1;31merror\033[0m" in ended.stdout


def test_tensorflow_is_not_imported():
    code = "import sys, tfdist.cli; tfdist.cli.main(['doctor']); print('tensorflow' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.endswith("False\n")


def test_the_real_machine_answers():
    assert "127.0.0.1" in own_addresses()
    assert resolve("127.0.0.1") == ["127.0.0.1"]
    assert installed("psutil")
    assert installed("no-such-package-here") is None
    assert isinstance(gpus(), list)


@pytest.mark.parametrize(
    ("host", "right"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("127.0.1.1", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_addresses_and_names_are_recognized(host, right):
    assert is_loopback(host) is right


SMI = """#!/bin/sh
echo 'GPU 0: Tesla T4 (UUID: GPU-8a)'
"""


@pytest.mark.parametrize(
    ("program", "found"), [(SMI, ["GPU 0: Tesla T4"]), ("#!/bin/sh\nexit 9\n", []), (None, [])]
)
def test_nvidia_smi_lists_gpus_without_device_files(tmp_path, monkeypatch, program, found):
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    if program is not None:
        (tmp_path / "nvidia-smi").write_text(program)
        (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpus() == found
