"""What benchmarks.serving measures: programs that serve or call one model, as child processes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks._report import log
from tfdist.serving import SOURCES, ModelServer
from tfdist.serving.build import tensorflow_folder

_BUILD_SECS = 900.0
_START_SECS = 90.0
_REQUEST_SECS = 30.0
_STOP_SECS = 10.0
_FASTAPI_PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "orjson")
_PREDICT = "/v1/models/model:predict"
CORES = len(os.sched_getaffinity(0))


class MeasureError(Exception):
    """A server could not be built, started or measured."""


class Program:
    """A child process that prints lines. Its standard input ends with this process, and so it ends.

    A context manager that ends it. Ctrl-C does not reach it: this process ends it then.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        self._name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            print(line, file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise MeasureError(f"{self._name} has ended") from error

    def read(self, timeout: float) -> str:
        """Its next line; blocks for at most `timeout` seconds."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        if not ready:
            raise MeasureError(f"{self._name} has printed nothing for {timeout:.0f} s")
        if not (line := self._process.stdout.readline()):
            raise MeasureError(f"{self._name} has ended: see above")
        return line

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Server:
    """A server on this machine, in one or several processes with a port each.

    Attributes:
        ports: of its processes.
    """

    def __init__(self, ports: list[int], pids: list[int], predict: str = _PREDICT) -> None:
        self.ports = ports
        self._predict = predict
        self._processes = [psutil.Process(pid) for pid in pids]

    def path(self, answer_bytes: int) -> str:
        """The path of a request."""
        return self._predict

    def counters(self) -> Mapping[str, float]:
        """Numbers that only grow; the name of the CPU time is that of Prometheus."""
        times = [process.cpu_times() for process in self._processes]
        return {"process_cpu_seconds_total": sum(each.user + each.system for each in times)}

    def answer(self, body: str) -> bytes:
        """The answer of its first process."""
        url = f"http://127.0.0.1:{self.ports[0]}{self._predict}"
        request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_REQUEST_SECS) as response:
            return bytes(response.read())


class Tfdist(Server):
    def __init__(self, server: ModelServer) -> None:
        super().__init__([int(server.url.rpartition(":")[2])], [server.process.pid])
        self._metrics = f"{server.url}/metrics"

    def counters(self) -> Mapping[str, float]:
        with urllib.request.urlopen(self._metrics, timeout=_REQUEST_SECS) as response:
            text = response.read().decode()
        found: dict[str, float] = defaultdict(float)
        for name, value in re.findall(r"^(\w+)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
            found[name] += float(value)
        return found


class Echo(Server):
    def path(self, answer_bytes: int) -> str:
        return f"/{answer_bytes}"


class Caller:
    """Calls the model in a C++ process, without a server."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def call(self, threads: int, rows: int, secs: float) -> dict[str, float]:
        """Calls it for `secs` seconds, from each thread without a pause."""
        self._program.write(f"{threads} {rows} {secs}")
        done: dict[str, float] = json.loads(self._program.read(secs + _REQUEST_SECS))
        return {
            "requests_per_s": done["calls"] / done["seconds"],
            "call_us": threads * done["seconds"] / done["calls"] * 1e6,
            "cpu_us": done["cpu_seconds"] / done["calls"] * 1e6,
        }


def missing_packages() -> list[str]:
    """What the FastAPI peer needs and this Python does not have."""
    return [name for name in _FASTAPI_PACKAGES if importlib.util.find_spec(name) is None]


def start_fastapi(model: str) -> list[Program]:
    """Starts a process for each core; they load the model meanwhile."""
    program = str(Path(__file__).with_name("_serving_fastapi.py"))
    return [Program("FastAPI", [sys.executable, program, model]) for _ in range(CORES)]


def fastapi(programs: list[Program]) -> tuple[Server, Server]:
    """The tuned one and the plain one; blocks until all have loaded the model."""
    ports = [int(program.read(_START_SECS)) for program in programs]
    pids = [program.pid for program in programs]
    return Server(ports, pids), Server(ports, pids, "/plain")


def echo(program: Program) -> Echo:
    return Echo([int(program.read(_START_SECS))], [program.pid])


def caller(program: Program) -> Caller:
    program.read(_START_SECS)
    return Caller(program)


def build_programs() -> Path:
    """Builds `echo` and `calls`, which takes 30 s the first time; returns their folder."""
    source = Path(__file__).with_name("serving")
    tree = source.parents[1] / "build" / "serving"
    log("building the C++ programs ...")
    folders = {"TFDIST_SERVING": SOURCES, "TENSORFLOW_DIR": tensorflow_folder()}
    definitions = [f"-D{name}={folder}" for name, folder in folders.items()]
    _run(["cmake", "-S", source, "-B", tree, *definitions])
    _run(["cmake", "--build", tree, "--parallel", str(CORES)])
    return tree


def _run(command: list[Any]) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BUILD_SECS,
        check=False,
    )
    if done.returncode:
        raise MeasureError(f"{command[0]} failed:\n{done.stdout.strip()[-2000:]}")
