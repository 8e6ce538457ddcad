"""Compares the answers of the C++ server with those of Python, and measures how long they take."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdist.errors import ConfigError, ServerError, checked_integer, checked_path
from tfdist.export import golden
from tfdist.export.verify import ServedModel, is_close, quiet, served
from tfdist.serving.process import ModelServer

_REQUEST_SECS = 60.0


@dataclass(frozen=True)
class Verified:
    """What a comparison has found.

    Attributes:
        path: the folder of the version.
        num_requests: how many requests `golden.json` has.
        largest_difference: of any number, to what Python computes.
        different: "SIGNATURE: OUTPUT" of each output that differs by more than rounding, from
            Python or from what the export has recorded.
        p50_ms: half of the requests took at most so many milliseconds, one after the other.
        p99_ms: 99 % of them did.
        num_timed: how many requests that was.
    """

    path: str
    num_requests: int
    largest_difference: float
    different: Sequence[str]
    p50_ms: float
    p99_ms: float
    num_timed: int


def verify_model(directory: str, *, num_timed: int = 500) -> Verified:
    """Starts the server, sends it the requests of `golden.json`, and compares the answers.

    It blocks for some seconds: TensorFlow loads the model twice, in Python and in the server.

    Args:
        directory: the folder of a model, of which the newest version counts, or of a version.
        num_timed: how many requests to time, after each has been sent once.

    Raises:
        ConfigError: there is no SavedModel, or a wrong number.
        DataError: the version has no golden.json, or a damaged one.
        ServerError: the server cannot be built or started, or has refused a request.
    """
    checked_integer("num_timed", num_timed, 1)
    folder = _version_folder(Path(checked_path("directory", directory)))
    requests = golden.read(folder)
    difference, different, seconds = 0.0, [], []
    with (
        quiet(),
        served(str(folder)) as model,
        ModelServer(f"model={folder}") as server,
        closing(_connect(server.url)) as connection,
    ):
        for request in requests:
            name = request["signature_name"]
            inputs, outputs = model.dtypes(name)
            answer = _predict(connection, request)
            python = _run(model, name, inputs, request["inputs"])
            for output, dtype in outputs.items():
                value = golden.from_json(answer[output], dtype)
                recorded = golden.from_json(request["outputs"][output], dtype)
                difference = max(difference, _difference(value, python[output]))
                if not (is_close(value, python[output]) and is_close(value, recorded)):
                    different.append(f"{name}: {output}")
        for i in range(num_timed):
            start = time.perf_counter()
            _predict(connection, requests[i % len(requests)])
            seconds.append(time.perf_counter() - start)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return Verified(
        str(folder), len(requests), difference, different, float(p50), float(p99), num_timed
    )


def _version_folder(folder: Path) -> Path:
    if (folder / "saved_model.pb").exists():
        return folder
    versions = [each for each in folder.glob("*/") if each.name.isascii() and each.name.isdecimal()]
    found = [each for each in versions if (each / "saved_model.pb").exists()]
    if not found:
        rule = "must be a folder with a version of a model, such as 1/saved_model.pb"
        raise ConfigError("directory", str(folder), rule)
    return max(found, key=lambda each: int(each.name))


def _connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=_REQUEST_SECS)


def _predict(
    connection: http.client.HTTPConnection, request: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The outputs by name."""
    body = json.dumps({key: request[key] for key in ("signature_name", "inputs")})
    connection.request("POST", "/v1/models/model:predict", body)
    response = connection.getresponse()
    text = response.read().decode()
    if response.status != 200:
        raise ServerError(f"the server answers {response.status}", text)
    outputs = json.loads(text)["outputs"]
    # TensorFlow Serving omits the name of an only output.
    names = list(request["outputs"])
    return {names[0]: outputs} if len(names) == 1 else outputs


def _run(
    model: ServedModel, signature: str, dtypes: Mapping[str, Any], inputs: Mapping[str, Any]
) -> Mapping[str, Any]:
    values = {name: golden.from_json(value, dtypes[name]) for name, value in inputs.items()}
    return model.run(values, signature)


def _difference(value: Any, other: Any) -> float:
    """The largest one of any two numbers; 0.0 of what are no numbers or no finite ones."""
    if not np.issubdtype(np.asarray(value).dtype, np.number) or np.shape(value) != np.shape(other):
        return 0.0
    apart = np.abs(np.asarray(value, np.float64) - np.asarray(other, np.float64))
    return float(np.max(apart, initial=0.0, where=np.isfinite(apart)))
