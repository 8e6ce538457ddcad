"""The server's REST API is that of TensorFlow Serving, as its documentation shows it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from tests.serving import saved_models
from tfdist.serving import ModelServer

MODEL = "/v1/models/half_plus_three"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    saved_models.half_plus(folder / "half_plus_three" / "123", 3.0)
    saved_models.echo(folder / "echo" / "1")
    with ModelServer(folder / "half_plus_three", folder / "echo") as server:
        yield server


def ask(server, path, body=None, **headers):
    """(status, answer); POST if there is a body."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_status(server):
    status = {"error_code": "OK", "error_message": ""}
    version = {"version": "123", "state": "AVAILABLE", "status": status}
    assert ask(server, MODEL) == (200, {"model_version_status": [version]})
    assert ask(server, f"{MODEL}/versions/123") == ask(server, MODEL)


def test_predict_by_rows(server):
    body = {"instances": [1.0, 2.0, 5.0]}
    assert ask(server, f"{MODEL}:predict", body) == (200, {"predictions": [3.5, 4.0, 5.5]})
    assert ask(server, f"{MODEL}/versions/123:predict", body)[0] == 200


def test_predict_by_columns(server):
    assert ask(server, f"{MODEL}:predict", {"inputs": [1, 5]}) == (200, {"outputs": [3.5, 5.5]})
    named = {"inputs": {"x": [1, 5]}}
    assert ask(server, f"{MODEL}:predict", named) == (200, {"outputs": [3.5, 5.5]})


def test_several_outputs_have_names(server):
    body = {"signature_name": "two_outputs", "instances": [{"x": 2.0}, {"x": 4.0}]}
    rows = [{"half": 1.0, "y": 4.0}, {"half": 2.0, "y": 5.0}]
    assert ask(server, f"{MODEL}:predict", body) == (200, {"predictions": rows})
    body = {"signature_name": "two_outputs", "inputs": [2.0, 4.0]}
    columns = {"half": [1.0, 2.0], "y": [4.0, 5.0]}
    assert ask(server, f"{MODEL}:predict", body) == (200, {"outputs": columns})


def test_an_output_without_rows_needs_columns(server):
    body = {"signature_name": "total", "inputs": [2.0, 4.0]}
    assert ask(server, f"{MODEL}:predict", body) == (200, {"outputs": 9.0})
    code, answer = ask(server, f"{MODEL}:predict", {"signature_name": "total", "instances": [2.0]})
    assert code == 400
    assert 'send "inputs"' in answer["error"]


def test_regress(server):
    name = "tensorflow/serving/regress"
    body = {"signature_name": name, "examples": [{"x": 1.0}, {"x": 2.0}]}
    assert ask(server, f"{MODEL}:regress", body) == (200, {"results": [3.5, 4.0]})


def test_classify_with_a_context(server):
    name = "tensorflow/serving/classify"
    body = {"signature_name": name, "context": {"x": 1.0}, "examples": [{}, {}]}
    one = [["sum", 3.5]]
    assert ask(server, f"{MODEL}:classify", body) == (200, {"results": [one, one]})


def test_classify_of_a_signature_for_something_else(server):
    code, answer = ask(server, f"{MODEL}:classify", {"examples": [{"x": 1.0}]})
    assert code == 400
    assert "tensorflow/serving/classify" in answer["error"]


def test_the_metadata(server):
    code, answer = ask(server, f"{MODEL}/metadata")
    assert code == 200
    spec = {"name": "half_plus_three", "signature_name": "", "version": "123"}
    assert answer["model_spec"] == spec
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"] == {
        "inputs": {
            "x": {
                "dtype": "DT_FLOAT",
                "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                "name": "x:0",
            }
        },
        "outputs": {
            "y": {
                "dtype": "DT_FLOAT",
                "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                "name": "y:0",
            }
        },
        "method_name": "tensorflow/serving/predict",
    }


def test_an_unknown_model_and_version(server):
    error = {"error": "Servable not found for request: Latest(half)"}
    assert ask(server, "/v1/models/half:predict", {"instances": [1.0, 5.0]}) == (404, error)
    error = {"error": "Servable not found for request: Specific(half_plus_three, 7)"}
    assert ask(server, f"{MODEL}/versions/7:predict", {"instances": [1.0]}) == (404, error)
    assert ask(server, "/v1/models/half")[0] == 404
    assert ask(server, "/v1/models/half/metadata")[0] == 404


def test_numbers_that_json_does_not_have(server):
    body = b'{"instances": [NaN, Infinity, -Infinity, 1.0]}'
    with urllib.request.urlopen(server.url + f"{MODEL}:predict", body, timeout=30) as response:
        assert response.read() == b'{"predictions": [NaN, Infinity, -Infinity, 3.5]}'


def test_each_type_is_returned_as_it_was_sent(server):
    values = {
        "float32": [1.5, -0.1],
        "float64": [1e300, 0.1],
        "int8": [-128, 127],
        "int16": [-32768, 32767],
        "int32": [-(2**31), 2**31 - 1],
        "int64": [-(2**63), 2**63 - 1],
        "uint8": [0, 255],
        "uint16": [0, 65535],
        "uint32": [0, 2**32 - 1],
        "uint64": [0, 2**64 - 1],
        "bool": [True, False],
        "string": ['grün "\\\n', ""],
    }
    code, answer = ask(server, "/v1/models/echo:predict", {"inputs": values})
    assert code == 200
    outputs = answer["outputs"]
    assert outputs.pop("image_bytes") == [{"b64": "Z3LDvG4gIlwK"}, {"b64": ""}]
    assert outputs == values


def test_bytes_that_are_no_text(server):
    sizes = ("8", "16", "32", "64")
    numbers = [*(f"int{size}" for size in sizes), *(f"uint{size}" for size in sizes)]
    row = {**dict.fromkeys([*numbers, "float32", "float64"], 0), "bool": True}
    row["string"] = {"b64": "/w=="}
    code, answer = ask(server, "/v1/models/echo:predict", {"instances": [row]})
    assert code == 200
    assert answer["predictions"][0]["string"] == {"b64": "/w=="}


def test_a_sparse_input(server):
    parts = {"indices": [[0, 1], [1, 0]], "values": ["a", "b"], "dense_shape": [2, 2]}
    body = {"signature_name": "sparse", "inputs": {"tags": parts}}
    dense = [["-", "a"], ["b", "-"]]
    assert ask(server, "/v1/models/echo:predict", body) == (200, {"outputs": dense})
    body["inputs"] = parts  # the only input
    assert ask(server, "/v1/models/echo:predict", body) == (200, {"outputs": dense})


def test_a_sparse_input_as_rows_of_any_length(server):
    body = {"signature_name": "sparse", "instances": [{"tags": ["a"]}, {"tags": []}, ["b", "c"]]}
    rows = [["a", "-"], ["-", "-"], ["b", "c"]]
    assert ask(server, "/v1/models/echo:predict", body) == (200, {"predictions": rows})


def test_a_signature_that_cannot_run_spoils_no_other(server):
    body = {"signature_name": "unsupported", "inputs": [1.0]}
    code, answer = ask(server, "/v1/models/echo:predict", body)
    assert code == 400
    assert "half is not supported" in answer["error"]


def test_paths_and_methods_that_do_not_exist(server):
    assert ask(server, "/")[0] == 404
    assert ask(server, f"{MODEL}:explain", {})[0] == 405
    assert ask(server, f"{MODEL}:predict")[0] == 405
    assert ask(server, "/healthz", {})[0] == 405
    assert ask(server, "/v1/models/")[0] == 404
    code, answer = ask(server, f"{MODEL}:predict", b"\x1f\x8b", **{"Content-Encoding": "gzip"})
    assert (code, answer["error"]) == (415, "the body must not be compressed")


def test_health_and_metrics(server):
    assert ask(server, "/healthz") == (200, {"ready": True})
    ask(server, f"{MODEL}:predict", {"instances": [1.0]})
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4"
        lines = dict(line.rsplit(" ", 1) for line in response.read().decode().splitlines())
    label = '{model="half_plus_three"}'
    assert float(lines[f"tfdist_model_version{label}"]) == 123
    assert float(lines["tfdist_connections"]) >= 1
    parts = [
        float(lines[f"tfdist_{part}_seconds_sum{label}"])
        for part in ("queue", "session", "transport")
    ]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(float(lines[f"tfdist_request_seconds_sum{label}"]))
    count = lines[f"tfdist_request_seconds_count{label}"]
    assert lines['tfdist_request_seconds_bucket{model="half_plus_three",le="+Inf"}'] == count


def test_head_has_the_size_and_no_body(server):
    request = urllib.request.Request(server.url + "/healthz", method="HEAD")
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.headers["Content-Length"] == "16"
        assert response.read() == b""
