"""The loads of benchmarks.serving: wrk sends them, and the CPU time that they take is measured."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks._serving_model import IDS
from benchmarks._serving_servers import CORES, MeasureError, Server

_SCRIPT = str(Path(__file__).with_name("_serving_wrk.lua"))
_LATE_SECS = 30.0
_CPU = "process_cpu_seconds_total"


@dataclass(frozen=True)
class Load:
    """Connections that send requests without a pause, each with this many rows."""

    connections: int
    rows: int

    def __str__(self) -> str:
        return f"{self.connections} x {self.rows}"

    def body(self, seed: int) -> str:
        rng = random.Random(seed)
        inputs = {name: rng.choices(range(IDS), k=self.rows) for name in ("user", "item")}
        return json.dumps({"inputs": inputs})


def measure(
    server: Server, load: Load, body: str, answer_bytes: int, secs: int
) -> dict[str, float]:
    """The figures of one block; blocks for `secs` seconds.

    Raises:
        MeasureError: a request failed.
    """
    before, wrk_before = server.counters(), _children_cpu()
    psutil.cpu_percent()  # the next call counts from here
    start = time.monotonic()
    done = _wrk(server, load, body, server.path(answer_bytes), secs)
    elapsed = time.monotonic() - start
    busy = psutil.cpu_percent() / 100  # of the whole machine
    after = server.counters()
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    own = (grown[_CPU] + _children_cpu() - wrk_before) / elapsed / CORES
    figures = {
        "requests_per_s": done["requests"] / done["seconds"],
        "p50_us": done["p50_us"],
        "p99_us": done["p99_us"],
        "p99_to_p50": done["p99_us"] / done["p50_us"],
        "cpu_us": grown[_CPU] / done["requests"] * 1e6,
        "cores_used": busy,
        "cores_used_by_others": max(0.0, busy - own),
    }
    return figures | _parts(grown)


def _parts(grown: Mapping[str, float]) -> dict[str, float]:
    """Of a request, by the metrics of tfdist-server; empty for another server."""
    if not (requests := grown.get("tfdist_queue_seconds_count", 0.0)):
        return {}
    session = grown["tfdist_session_cpu_seconds_total"]
    seconds = {
        "transport_cpu_us": grown[_CPU] - session,
        "session_cpu_us": session,
        "queue_us": grown["tfdist_queue_seconds_sum"],
    }
    figures = {name: value / requests * 1e6 for name, value in seconds.items()}
    return figures | {"requests_per_run": requests / grown["tfdist_session_runs_total"]}


def _wrk(server: Server, load: Load, body: str, path: str, secs: int) -> dict[str, float]:
    ports = " ".join(map(str, server.ports))
    url = f"http://127.0.0.1:{server.ports[0]}{path}"
    threads = min(load.connections, CORES)
    command = ["wrk", f"-t{threads}", f"-c{load.connections}", f"-d{secs}s", "-s", _SCRIPT, url]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "WRK_BODY": body, "WRK_PORTS": ports},
        text=True,
        timeout=secs + _LATE_SECS,
        check=False,
    )
    if done.returncode:
        raise MeasureError(f"wrk has ended with exit code {done.returncode}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if figures["failed"] or not figures["requests"]:
        raise MeasureError(f"{figures['failed']} of {figures['requests']} requests failed")
    return figures


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
