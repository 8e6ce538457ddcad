"""Versions of a model appear, replace one another and are refused while the server answers."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import psutil
import pytest

from tests.serving import saved_models
from tfdist.deadline import Deadline
from tfdist.errors import ServerError
from tfdist.serving import ModelServer

POLL = ["--poll-ms", "20"]
SWAPS = 20
WRK = """
wrk.method = "POST"
wrk.body = '{"instances": [2.0]}'
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "failed": %d}\\n', summary.requests,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two versions, each of which takes 8 MB: half x plus 1, and plus 2."""
    folder = tmp_path_factory.mktemp("made")
    for number in (1, 2):
        saved_models.half_plus(folder / str(number), float(number), ballast=2_000_000)
    return folder


@pytest.fixture
def model(tmp_path, made):
    shutil.copytree(made / "1", tmp_path / "half/1")
    return tmp_path / "half"


def add(model, version, source):
    """As an export does: the folder appears when it is complete."""
    shutil.copytree(source, model / "unfinished")
    (model / "unfinished").rename(model / str(version))


def get(server, path):
    with urllib.request.urlopen(server.url + path, timeout=30) as response:
        return json.loads(response.read())


def states(server):
    statuses = get(server, "/v1/models/half")["model_version_status"]
    return {int(each["version"]): each["state"] for each in statuses}


def predict(server, version=""):
    request = urllib.request.Request(
        f"{server.url}/v1/models/half{version}:predict", b'{"instances": [2.0]}'
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())["predictions"]


def wait_until(condition):
    deadline = Deadline(30)
    while not condition():
        assert not deadline.expired
        time.sleep(0.01)


def test_the_newest_version_replaces_the_older_one(model, made):
    with ModelServer(model, options=POLL) as server:
        assert predict(server) == [2.0]
        add(model, 12, made / "2")
        wait_until(lambda: states(server) == {12: "AVAILABLE"})
        assert predict(server) == [3.0]
        add(model, 9, made / "1")  # older than the served one
        add(model, 13, made / "1")
        wait_until(lambda: states(server) == {13: "AVAILABLE"})
        assert predict(server) == [2.0]


def test_several_versions(model, made):
    with ModelServer(model, options=[*POLL, "--versions", "2"]) as server:
        add(model, 2, made / "2")
        wait_until(lambda: states(server) == {1: "AVAILABLE", 2: "AVAILABLE"})
        assert predict(server, "/versions/1") == [2.0]
        assert predict(server, "/versions/2") == predict(server) == [3.0]
        shutil.rmtree(model / "2")
        wait_until(lambda: states(server) == {1: "AVAILABLE"})
        assert predict(server) == [2.0]


def test_a_version_that_cannot_be_loaded(model, made):
    with ModelServer(model, options=POLL) as server:
        add(model, 2, made / "2")
        wait_until(lambda: 2 in states(server))
        (model / "3").mkdir()
        (model / "3/saved_model.pb").write_bytes(b"not a model")
        wait_until(lambda: 3 in states(server))
        assert states(server) == {2: "AVAILABLE", 3: "END"}
        assert predict(server) == [3.0]
        (error,) = (
            each["status"]["error_message"]
            for each in get(server, "/v1/models/half")["model_version_status"]
            if each["version"] == "3"
        )
        assert error
        # It is tried again when its files change.
        shutil.copytree(made / "1", model / "3", dirs_exist_ok=True)
        wait_until(lambda: states(server) == {3: "AVAILABLE"})
        assert predict(server) == [2.0]
        assert "cannot load version 3" in server.errors()


def test_the_last_version_is_served_without_its_folder(model, made):
    with ModelServer(model, options=POLL) as server:
        shutil.rmtree(model / "1")
        add(model, 1000, made / "2")
        wait_until(lambda: states(server) == {1000: "AVAILABLE"})
        shutil.rmtree(model / "1000")
        assert predict(server) == [3.0]


def test_a_model_without_a_version(tmp_path, made):
    model = tmp_path / "half"
    model.mkdir()
    with ModelServer(model, options=[*POLL, "--wait"]) as server:
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(server, "/healthz")
        add(model, 1, made / "1")
        wait_until(lambda: states(server) == {1: "AVAILABLE"})
        assert get(server, "/healthz") == {"ready": True}


def test_swaps_under_load_lose_no_request_and_no_memory(model, made, tmp_path):
    script = tmp_path / "load.lua"
    script.write_text(WRK)
    sizes = []
    with ModelServer(model, options=POLL) as server:
        url = f"{server.url}/v1/models/half:predict"
        load = subprocess.Popen(
            ["wrk", "-t1", "-c16", "-d120s", "-s", script, url], stdout=subprocess.PIPE, text=True
        )
        try:
            process = psutil.Process(server.process.pid)
            for version in range(2, 2 + SWAPS):
                add(model, version, made / str(1 + version % 2))
                wait_until(lambda version=version: states(server) == {version: "AVAILABLE"})
                sizes.append(process.memory_info().rss)
            assert load.poll() is None
            load.send_signal(2)  # wrk ends and reports
            report, _ = load.communicate(timeout=30)
        finally:
            load.kill()
            load.wait()
    counts = json.loads(report.splitlines()[-1])
    assert counts["requests"] > 1000
    assert counts["failed"] == 0
    # A version that stays in memory would add 8 MB each time.
    half = SWAPS // 2
    assert max(sizes[half:]) - max(sizes[:half]) < 8_000_000, sizes


def test_a_signal_lets_requests_be_answered(model):
    started = threading.Semaphore(0)

    def ask_until_closed(address):
        """How many answers came before the server closed the connection, after an answer."""
        count = 0
        with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
            while True:
                connection.request("POST", "/v1/models/half:predict", '{"instances": [2.0]}')
                response = connection.getresponse()
                assert json.loads(response.read()) == {"predictions": [2.0]}
                count += 1
                started.release()
                if response.will_close:
                    return count

    with ModelServer(model) as server, ThreadPoolExecutor(8) as threads:
        address = server.url.removeprefix("http://")
        clients = [threads.submit(ask_until_closed, address) for _ in range(8)]
        for _ in range(100):
            assert started.acquire(timeout=30)
        assert server.stop() == 0
        assert sum(client.result() for client in clients) >= 100


def test_a_signal_does_not_interrupt_a_matrix_product(tmp_path):
    # oneDNN's products, interrupted by a signal handler, have damaged the memory of the process.
    saved_models.slow(tmp_path / "half/1", rounds=1)

    def ask(url):
        with suppress(OSError):
            while True:
                urllib.request.urlopen(url, b'{"instances": [2.0]}', timeout=30).close()

    for _ in range(5):
        with ModelServer(tmp_path / "half") as server, ThreadPoolExecutor(4) as threads:
            for _ in range(4):
                threads.submit(ask, f"{server.url}/v1/models/half:predict")
            wait_until(lambda server=server: served(server) >= 10)
            assert server.stop() == 0


def served(server):
    """How many requests have run the model."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as response:
        text = response.read().decode()
    return int(re.search(r"^tfdist_request_seconds_count\S* (\d+)$", text, re.MULTILINE)[1])


def test_a_version_that_changes_on_disk_is_served_as_it_was(model, made):
    with ModelServer(model, options=POLL) as server:
        shutil.copytree(made / "2", model / "1", dirs_exist_ok=True)
        wait_until(lambda: "version 1 has changed on disk" in server.errors())
        assert predict(server) == [2.0]


@pytest.mark.parametrize("text", ["{", "[]", '{"requests": [{"inputs": {"z": [1]}}]}'])
def test_a_damaged_golden_file_is_named(model, text):
    (model / "1/golden.json").write_text(text)
    with pytest.raises(ServerError) as caught:
        ModelServer(model)
    assert f"cannot load version 1: {model}/1/golden.json: " in caught.value.output
