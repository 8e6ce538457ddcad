"""The server as a process: batches, overload, its log, its options, and how it is started."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psutil
import pytest

from tests.serving import saved_models
from tfdist.cli import main
from tfdist.deadline import Deadline
from tfdist.errors import USAGE, ConfigError, ServerError
from tfdist.serving import ModelServer, build_server

CLIENTS = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "half"
    saved_models.half_plus(folder / "1", 1.0)
    return folder


def predict(server, rows, signature="serving_default"):
    """The status and the answer."""
    body = json.dumps({"signature_name": signature, "instances": rows}).encode()
    request = urllib.request.Request(f"{server.url}/v1/models/half:predict", body)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def metric(server, name):
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as response:
        found = re.search(rf"^{name}\S* (\S+)$", response.read().decode(), re.MULTILINE)
    return float(found[1])


def test_requests_that_wait_run_together(model):
    # One thread, so requests wait while it reads and runs others.
    with ModelServer(model, options=["--threads", "1", "--max-batch-rows", "64"]) as server:

        def ask(number):
            answers = []
            for i in range(50):
                rows = [float(number), float(i)][: 1 + i % 2]
                answers.append(predict(server, rows) == (200, expected(rows)))
            return all(answers)

        with ThreadPoolExecutor(CLIENTS) as threads:
            assert all(threads.map(ask, range(CLIENTS)))
        assert metric(server, "tfdist_request_seconds_count") == CLIENTS * 50
        assert metric(server, "tfdist_session_runs_total") < CLIENTS * 50


def expected(rows):
    return {"predictions": [0.5 * row + 1 for row in rows]}


def test_a_wrong_request_in_a_batch_spoils_no_other(model):
    with ModelServer(model, options=["--threads", "1", "--max-batch-rows", "64"]) as server:

        def ask(number):
            if number % 4 == 0:
                code, answer = predict(server, ["text"])
                return code == 400 and "must be float32" in answer["error"]
            return predict(server, [number]) == (200, expected([number]))

        with ThreadPoolExecutor(CLIENTS) as threads:
            assert all(threads.map(ask, range(20 * CLIENTS)))


def test_too_many_waiting_requests(tmp_path):
    folder = tmp_path / "half"
    saved_models.slow(folder / "1")
    with ModelServer(folder, options=["--threads", "1", "--max-waiting", "1"]) as server:
        with ThreadPoolExecutor(4) as threads:
            codes = [each[0] for each in threads.map(lambda _: predict(server, [1.0]), range(4))]
        assert set(codes) == {200, 503}
        assert predict(server, [1.0])[0] == 200


def test_one_thread_answers_on_after_its_helper_has_helped(tmp_path):
    folder = tmp_path / "half"
    saved_models.slow(folder / "1", rounds=20)
    with ModelServer(folder, options=["--threads", "1"]) as server, ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            # The thread is busy for long enough that the helper reads some of these.
            codes = [each[0] for each in pool.map(lambda _: predict(server, [1.0]), range(4))]
            assert codes == [200] * 4


def test_the_access_log(model, tmp_path):
    log = tmp_path / "access.log"
    with ModelServer(model, options=["--access-log", str(log)]) as server:
        predict(server, [1.0])
        predict(server, ["text"])
        assert server.stop() == 0
    one, other = log.read_text().splitlines()
    line = (
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z 127\.0\.0\.1:\d+ POST /v1/models/half:predict "
        r"%d \d+ total_us=\d+ queue_us=\d+ session_us=\d+"
    )
    assert re.fullmatch(line % 200, one)
    assert re.fullmatch(line % 400, other)


def test_an_access_log_that_cannot_be_written(model):
    options = ["--access-log", "/dev/full", "--poll-ms", "20"]
    with ModelServer(model, options=options) as server:
        deadline = Deadline(30)
        while "the access log cannot be written" not in server.errors():
            assert predict(server, [1.0])[0] == 200
            assert not deadline.expired


def test_a_folder_with_an_equals_sign(model, tmp_path):
    shutil.copytree(model, tmp_path / "a=b" / "half")
    with ModelServer(tmp_path / "a=b" / "half") as server:
        assert predict(server, [1.0])[0] == 200


def test_it_listens_on_this_machine_only(model):
    with ModelServer(model) as server:
        process = psutil.Process(server.process.pid)
        (listening,) = [c for c in process.net_connections("tcp") if c.status == "LISTEN"]
        assert listening.laddr.ip == "127.0.0.1"


def test_it_ends_with_the_program_that_has_started_it(model):
    script = (
        "import sys, time; from tfdist.serving import ModelServer; s = ModelServer(sys.argv[1]);"
        "print(s.process.pid, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, model], stdout=subprocess.PIPE, text=True
    )
    with starter:
        server = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
    server.wait(timeout=30)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--port", "x"], "--port: got 'x'; must be a whole number from 0 to 65535"),
        (["--threads", "0"], "--threads: got '0'; must be a whole number from 1 to 1024"),
        (["--prot", "1"], "unknown or incomplete option --prot"),
        (["--host", "nowhere"], "cannot listen at the IP address nowhere, port 0"),
        (["--access-log", "/no/such/folder/log"], "--access-log: cannot write"),
    ],
)
def test_a_wrong_option(model, options, error):
    with pytest.raises(ServerError) as caught:
        ModelServer(model, options=options)
    assert error in caught.value.output


def test_a_port_in_use(model):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match="Address already in use"):
            ModelServer(model, options=["--port", str(port)])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"requests": []}',
        '{"requests": [{"signature_name": "serving_default", "inputs": {}}]}',
    ],
)
def test_verify_names_a_damaged_golden_file(model, text, tmp_path, capsys):
    shutil.copytree(model / "1", tmp_path / "1")
    (tmp_path / "1/golden.json").write_text(text)
    assert main(["serve", "verify", str(tmp_path)]) == USAGE
    assert (
        f"{tmp_path}/1/golden.json: is not what `tfdist export` writes" in capsys.readouterr().err
    )


def test_wrong_models(model, tmp_path):
    with pytest.raises(ConfigError, match="models: missing; must be at least one folder"):
        ModelServer()
    with pytest.raises(ServerError, match="has no version"):
        ModelServer(tmp_path)
    with pytest.raises(ServerError, match="there is no folder"):
        ModelServer(tmp_path / "none")
    with pytest.raises(ServerError, match="two models are named half"):
        ModelServer(model, model)
    with pytest.raises(ServerError, match="write NAME=MODEL_DIR"):
        ModelServer(f"a b={model}")


def test_the_command_offers_each_option_of_the_server(capsys):
    shown = subprocess.run([build_server(), "--help"], capture_output=True, text=True, check=True)
    offered = set(re.findall(r"--([a-z-]+)", shown.stdout)) - {"help", "stop-with-stdin"}
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert offered == set(re.findall(r"--([a-z-]+)", capsys.readouterr().out)) - {"help"}


def test_the_command_becomes_the_server(model):
    command = [sys.executable, "-m", "tfdist", "serve", f"m={model}", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            announced = json.loads(process.stdout.readline())
            assert announced["models"] == ["m"]
            with urllib.request.urlopen(announced["url"] + "/healthz", timeout=30) as response:
                assert response.status == 200
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


def test_a_request_that_does_not_end_in_time(tmp_path):
    folder = tmp_path / "half"
    saved_models.slow(folder / "1", rounds=10_000)
    with ModelServer(folder, options=["--threads", "1", "--drain-seconds", "1"]) as server:
        address = server.url.removeprefix("http://")
        with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
            connection.request("POST", "/v1/models/half:predict", '{"instances": [1.0]}')
            with urllib.request.urlopen(server.url + "/healthz", timeout=30) as response:
                assert response.status == 200  # a thread is free although the model runs
            assert server.stop() == 1
            assert "some requests were still running" in server.errors()
