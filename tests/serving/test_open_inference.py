"""A client of the Open Inference Protocol from PyPI gets answers."""

from __future__ import annotations

import json
import urllib.request

import numpy as np
import pytest
from tritonclient import http as client
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.serving import saved_models
from tfdist.serving import ModelServer

TYPES = [
    *("float32", "float64", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "bool"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    saved_models.half_plus(folder / "half" / "3", 3.0)
    saved_models.echo(folder / "echo" / "1")
    with ModelServer(folder / "half", folder / "echo") as server:
        yield server


@pytest.fixture
def triton(server):
    with client.InferenceServerClient(server.url.removeprefix("http://")) as triton:
        yield triton


def tensor(name, values, *, binary):
    made = client.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def test_health_and_metadata(triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("half")
    assert triton.is_model_ready("half", "3")
    assert not triton.is_model_ready("half", "4")
    assert not triton.is_model_ready("other")
    assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert triton.get_model_metadata("half") == {
        "name": "half",
        "versions": ["3"],
        "platform": "tensorflow_savedmodel",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
    }


@pytest.mark.parametrize("binary", [True, False])
def test_infer(triton, binary):
    x = tensor("x", np.array([1, 5], np.float32), binary=binary)
    outputs = [client.InferRequestedOutput("y", binary_data=binary)]
    answer = triton.infer("half", [x], outputs=outputs, request_id="a 7", model_version="3")
    assert answer.as_numpy("y").tolist() == [3.5, 5.5]
    response = answer.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == (
        "a 7",
        "half",
        "3",
    )


@pytest.mark.parametrize("binary", [True, False])
def test_each_type_is_returned_as_it_was_sent(triton, binary):
    values = {each: np.array([0, 1], each) for each in TYPES}
    values["string"] = np.array([b"one", "grün".encode()], object)
    inputs = [tensor(name, value, binary=binary) for name, value in values.items()]
    outputs = [client.InferRequestedOutput(name, binary_data=binary) for name in values]
    answer = triton.infer("echo", inputs, outputs=outputs)
    for name, value in values.items():
        got = answer.as_numpy(name)
        if name == "string" and not binary:  # JSON has text
            got = np.array([each.encode() for each in got], object)
        assert got.dtype == value.dtype
        assert got.tolist() == value.tolist()


def test_another_signature_and_all_outputs(triton):
    x = tensor("x", np.array([2], np.float32), binary=True)
    answer = triton.infer("half", [x], parameters={"signature_name": "two_outputs"})
    assert [answer.as_numpy(name).tolist() for name in ("half", "y")] == [[1.0], [4.0]]


def test_a_sparse_input_is_three_tensors(triton):
    parts = [
        tensor("tags/indices", np.array([[0, 1], [1, 0]], np.int64), binary=True),
        tensor("tags/values", np.array([b"a", b"b"], object), binary=False),
        tensor("tags/dense_shape", np.array([2, 2], np.int64), binary=True),
    ]
    answer = triton.infer("echo", parts, parameters={"signature_name": "sparse"})
    assert answer.as_numpy("dense").tolist() == [[b"-", b"a"], [b"b", b"-"]]


def test_an_error_names_the_input(triton):
    x = tensor("x", np.array([1], np.int64), binary=True)
    with pytest.raises(InferenceServerException, match='datatype must be FP32, not "INT64"'):
        triton.infer("half", [x])


def test_nested_data_and_no_names_of_outputs(server):
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 5]}]}
    request = urllib.request.Request(
        server.url + "/v2/models/half/versions/3/infer", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert json.loads(response.read()) == {
            "model_name": "half",
            "model_version": "3",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [3.5, 5.5]}],
        }
