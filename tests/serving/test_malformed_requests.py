"""Each malformed request gets one clear line, and the server answers the next request."""

from __future__ import annotations

import http.client
import itertools
import json
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, closing

import psutil
import pytest

from tests.serving import exported_models
from tfdist.deadline import Deadline
from tfdist.serving import ModelServer

ANSWER_SECS = 10.0
MAX_ERROR_CHARS = 300 + len("...")
INTERNALS = ("{{node", "::", "tensorflow/core", "simdjson", "std::", "\\n", "0x")
PREDICT, INFER = "/v1/models/mixed:predict", "/v2/models/mixed/infer"
MAX_BODY_BYTES = 16 << 20
NAN, INFINITY = float("nan"), float("inf")

ROW = {"ids": 1, "small": 2, "dense": [1, 2, 3], "word": "ab", "tags": [1.5]}
SPARSE = {"indices": [[0, 0]], "values": [1.5], "dense_shape": [1, 1]}
COLUMNS = {"ids": [1], "small": [2], "dense": [[1, 2, 3]], "word": ["ab"], "tags": SPARSE}
SCORE = 1 + 2 + 6 + 2 + 1.5

# --- bodies of :predict

WHOLE = [None, True, "1", 1.5, "", {}, {"a": 1}, NAN, INFINITY, -INFINITY, "NaN", 2**64, [], 1e30]
VALUES = {  # of one row
    "ids": [*WHOLE, -1, exported_models.NUM_IDS, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, [[1]]],
    "small": [*WHOLE, 2**31, -(2**31) - 1, 2**63 - 1, [[2]]],
    "dense": [
        *(None, True, 1, "123", {}, [], [1], [1, 2], [1, 2, 3, 4], [[1, 2, 3]], ["a", "b", "c"]),
        *([1, 2, None], [1, 2, True], [1, 2, [3]], [1, 2, 1e39], [1, 2, -1e39], [1, 2, "nan"]),
    ],
    "word": [
        *(None, True, 1, 1.5, {}, {"b64": 1}, {"b64": None}, {"b64": "A"}, {"b64": "?AAA"}),
        *({"b64": "AA="}, {"b64": "AAAAA"}, {"b64": "AA=A"}, {"b64": "AA", "more": 1}, {"B64": ""}),
        *({"b64": "A\nAA"}, {"b64": "\u00e4AAA"}, {"b64": "===="}, ["a", ["b"]]),
    ],
    "tags": [None, True, 1, "a", {}, [None], ["a"], [True], [[1]], [1e39], {"b64": "AA=="}],
}
PARTS = {  # of a SparseTensor
    "indices": [
        *(None, 0, "a", {}, [0], [[0]], [[0, 0, 0]], [[0, 0], [0, 0]], [[0, 1]], [[1, 0]]),
        *([[-1, 0]], [[0, -(2**63)]], [[0, 2**63 - 1]], [[0, 2**63]], [[0, 0.5]], [[0, NAN]]),
        *([[0, 0], [0]], [[]], []),
    ],
    "values": [None, 1.5, "a", {}, [], [1, 2], [[1.5]], ["a"], [None], [1e39], [True]],
    "dense_shape": [
        *(None, 1, "a", {}, [], [1], [1, 1, 1], [[1, 1]], [0, 0], [0, 1], [-1, 1], [1, -1]),
        *([2, 2**62], [2**62, 2**62], [2**40, 1], [2**63, 1], [1.5, 1], [1] * 300, [1, NAN]),
    ],
}
TOPS = [
    *(b"", b" ", b"\0", b"nul", b"nan", b"[]", b"[1]", b"1", b'"text"', b"true", b"null", b"{"),
    *(b"}", b"{}", b"{}{}", b"{} x", b"\xef\xbb\xbf{}", b'{"a"}', b'{"a":}', b"{'inputs': 1}"),
    *(b'{"inputs": }', b'{"inputs": 01}', b'{"inputs": .5}', b'{"inputs": +1}', b'{"inputs": 1e}'),
    *(b'{"inputs": [1,]}', b'{"inputs": [1 2]}', b'{"inputs": "\xff\xfe"}', b'{"inputs": "\\x"}'),
    *(b'{"inputs": "\\ud800"}', b'{"inputs": "\xed\xa0\x80"}', b'{"inputs": "\n"}', b"\xff\xfe{}"),
    *(b'{"inputs": -NaN}', b'{"inputs": NaNNaN}', b'{"inputs": -}', b"<html>", b"a=1&b=2"),
    *(b'{"inputs": ' + b"9" * 400 + b"}", b'{"inputs": 1e999}', b'{"inputs": /* none */ 1}'),
    b'{"two\\nlines\\u007f": 1}',
    b'{"' + b"long" * 1000 + b'": 1}',
    b'{"inputs": ' + b"[" * 65 + b"]" * 65 + b"}",
    b"[" * 2_000_000,
    b"[" * 2_000_000 + b"]" * 2_000_000,
    b'{"inputs":' * 200_000 + b"1" + b"}" * 200_000,
]
OBJECTS = [
    *({"instances": [ROW], "inputs": COLUMNS}, {"Instances": [ROW]}, {"examples": [{}]}),
    *({"instances": each} for each in (None, 1, "a", {}, [], ROW, [None], [1], [[ROW]], [[]])),
    *({"instances": each} for each in ([ROW, 1], [ROW, None], [ROW, {}], [{}], [ROW, [ROW]])),
    *({"inputs": each} for each in (None, 1, "a", [], {}, [COLUMNS], {"b64": "AA=="})),
    *(
        {"inputs": COLUMNS, "signature_name": each}
        for each in (None, 1, [], {}, "", "none", "a\nb")
    ),
    *({"inputs": COLUMNS, key: 1} for key in ("outputs", "parameters", "", "signature")),
    {"signature_name": "examples", "inputs": [1]},
    {"signature_name": "examples", "inputs": [""]},
    {"signature_name": "examples", "inputs": ["two\nlines\x01"]},
    {"signature_name": "examples", "inputs": [{"b64": "/////w=="}]},
    {"signature_name": "examples", "inputs": ["x" * 5000]},
    {"signature_name": "examples", "inputs": [["a"]]},
    {"signature_name": "examples", "instances": [{"ids": 1}]},
    # Rows that do not belong together.
    {"inputs": {**COLUMNS, "ids": [1, 2], "small": [1, 2, 3]}},
    {"instances": [ROW, {**ROW, "dense": [1, 2]}]},
    {"instances": [{**ROW, "dense": [1, 2]}, {**ROW, "dense": [1]}]},
]


def text_of(value):
    return json.dumps(value).encode()


def predict_bodies():
    yield from TOPS
    yield from map(text_of, OBJECTS)
    for name, values in VALUES.items():
        for value in values:
            yield text_of({"instances": [{**ROW, name: value}]})
            if name != "tags":
                # The columns of a text in a list have two dimensions, and so on.
                yield text_of({"inputs": {**COLUMNS, name: [value]}})
    for name in ROW:
        yield text_of({"instances": [{key: ROW[key] for key in ROW if key != name}]})
        yield text_of({"inputs": {key: COLUMNS[key] for key in COLUMNS if key != name}})
        yield text_of({"inputs": {**COLUMNS, f"{name}s": 1}})
        yield text_of({"instances": [ROW, {**ROW, f"{name}s": 1}]})
    for part, values in PARTS.items():
        for value in values:
            yield text_of({"inputs": {**COLUMNS, "tags": {**SPARSE, part: value}}})
        missing = {key: SPARSE[key] for key in SPARSE if key != part}
        yield text_of({"inputs": {**COLUMNS, "tags": missing}})
    yield text_of({"inputs": {**COLUMNS, "tags": {**SPARSE, "more": 1}}})
    valid = text_of({"inputs": COLUMNS})
    yield from (valid[:size] for size in range(2, len(valid), 2))


# --- bodies of /infer

TENSORS = {
    "ids": ("INT64", [1], [1]),
    "small": ("INT32", [1], [2]),
    "dense": ("FP32", [1, 3], [1, 2, 3]),
    "word": ("BYTES", [1], ["ab"]),
    "tags/indices": ("INT64", [1, 2], [0, 0]),
    "tags/values": ("FP32", [1], [1.5]),
    "tags/dense_shape": ("INT64", [2], [1, 1]),
}
SHAPES = [
    *(None, 1, "1", {}, [], [0], [3], [-1], [1, -1], [1.5], [None], [[1]], [NAN], [2**63]),
    *([2**32, 2**32], [2**62, 2**62, 4], [2**40, 0], [0, 2**62], [1] * 253, [1] * 300),
]
DATATYPES = [None, 1, "", "int64", "INT8", "FP16", "BF16", "UINT64", "\n", "x" * 500]
DATA = [None, True, {}, [], [None], [{}], [[1], [2, 3]], [[[]]], [1e39] * 3, ["a", 1, 2]]


def tensor(name, /, **changed):
    datatype, shape, data = TENSORS[name]
    made = {"name": name, "datatype": datatype, "shape": shape, "data": data, **changed}
    return {key: value for key, value in made.items() if value is not ...}


def infer(name=None, /, **changed):
    inputs = [tensor(each, **(changed if each == name else {})) for each in TENSORS]
    return {"inputs": inputs}


def infer_objects():
    for name in TENSORS:
        yield from (infer(name, shape=shape) for shape in SHAPES if shape != TENSORS[name][1])
        yield from (infer(name, datatype=datatype) for datatype in DATATYPES)
        yield from (infer(name, data=data) for data in DATA)
        yield from (infer(name, **{key: ...}) for key in ("name", "datatype", "shape", "data"))
        yield {"inputs": [tensor(each) for each in TENSORS if each != name]}
        yield {"inputs": [*infer()["inputs"], tensor(name)]}
    yield from (infer("ids", name=other) for other in (None, 1, "", "none", "tags", "a\nb", []))
    yield from ({"inputs": inputs} for inputs in (None, 1, {}, [], [None], [1], [[]], "a"))
    yield from ({**infer(), "id": each} for each in (1, None, [], {}))
    yield from ({**infer(), "parameters": each} for each in (None, 1, "a", []))
    for each in (1, "true", None, []):
        yield {**infer(), "parameters": {"binary_data_output": each}}
    for each in (1, None, "", "none", []):
        yield {**infer(), "parameters": {"signature_name": each}}
    for each in (
        None,
        1,
        {},
        [1],
        [{}],
        [{"name": 1}],
        [{"name": "none"}],
        [{"name": "score"}] * 2,
    ):
        yield {**infer(), "outputs": each}
    for each in ({"binary_data": 1}, {"classification": 3}):
        yield {**infer(), "outputs": [{"name": "score", "parameters": each}]}
    for size in (None, -1, 1.5, "8", 1, 8, 2**63, 2**64):
        yield infer("ids", data=..., parameters={"binary_data_size": size})
    yield from (infer("ids", data=..., parameters=each) for each in (None, 1, [], "a"))


def raw_bodies():
    """Bodies with raw bytes, and the size of the JSON that the header claims."""
    for size, raw in itertools.product((0, 1, 4, 7, 9, 16), (b"", b"\1" * 7, b"\1" * 9)):
        if size != len(raw):
            text = text_of(infer("ids", data=..., parameters={"binary_data_size": size}))
            yield text + raw, len(text)
    for raw in (
        b"\1",
        b"\1\0\0",
        b"\xff\xff\xff\xff",
        b"\5\0\0\0a",
        b"\0\0\0\0" * 2,
        b"\1\0\0\0ab",
    ):
        text = text_of(infer("word", data=..., parameters={"binary_data_size": len(raw)}))
        yield text + raw, len(text)
    text = text_of(infer())
    for size in (0, 1, len(text) - 1, len(text) + 1, 2**64 - 1, 2**64, -1, "", "a", "1.5", "1 2"):
        if size != "":
            yield text, size
    yield text + b"more", len(text)


# --- what is no request

POST = b"POST /v1/models/mixed:predict HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
VALID = text_of({"instances": [ROW]})
REQUEST = POST + b"Content-Length: %d\r\n\r\n" % len(VALID) + VALID
WIRE = [
    *(
        b"GARBAGE\r\n\r\n",
        b"\r\n\r\n",
        b"\0" * 100,
        b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3",
        b"GET\r\n\r\n",
    ),
    *(
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\n\n",
        b"GET  / HTTP/1.1\r\n\r\n",
    ),
    *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"get / FTP/1.1\r\n\r\n", b"GET /\x01 HTTP/1.1\r\n\r\n"),
    *(b"GE(T / HTTP/1.1\r\n\r\n", b" GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1 \r\n\r\n"),
    *(b"BREW /v1/models/mixed:predict HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n"),
    *(b"DELETE /v1/models/mixed HTTP/1.1\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n"),
    *(
        b"GET http://x/v1/models/mixed HTTP/1.1\r\n\r\n",
        b"GET /v1/models/\xff\xfe HTTP/1.1\r\n\r\n",
    ),
    *(b"GET /v1/models/mixed/versions/%s HTTP/1.1\r\n\r\n" % each for each in (b"9", b"x", b"-1")),
    b"GET /v1/models/mixed/versions/99999999999999999999 HTTP/1.1\r\n\r\n",
    *(b"GET /v1/models/%s HTTP/1.1\r\n\r\n" % each for each in (b"", b"none", b"mixed/x", b"%00")),
    *(
        POST + each + b"\r\n\r\n"
        for each in (b"bad header", b": x", b"A\0: b", b"A : b", b"A: \x01")
    ),
    *(POST + b"X: " + b"a" * 20_000 + b"\r\n\r\n", POST + b"X: a\r\n" * 5000 + b"\r\n"),
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    *(
        POST + b"Content-Length: %s\r\n\r\n{}" % size
        for size in (
            b"",
            b"-1",
            b"abc",
            b"0x2",
            b"2 2",
            b"1e1",
            b"99999999999999",
            b"9" * 30,
            b"2.0",
        )
    ),
    POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    *(
        POST + b"Transfer-Encoding: %s\r\n\r\n0\r\n\r\n" % each + REQUEST
        for each in (
            b"",
            b"gzip",
            b"identity",
            b"gzip, chunked",
            b"chunked, gzip",
            b"xchunked",
            b"\0",
        )
    ),
    POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    *(CHUNKED + each for each in (b"zz\r\n", b"-1\r\n", b"2\r\n{}zz\r\n", b"f" * 20 + b"\r\n")),
    CHUNKED + b"1;" + b"a" * 1_000_000 + b"\r\n",
    CHUNKED + b"0\r\n" + b"A: b\r\n" * 200_000 + b"\r\n",
    CHUNKED + b"1000001\r\n" + b" " * 1000,
    POST + b"Expect: 100-continue\r\nContent-Length: 20000000\r\n\r\n",
    POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    POST + b"\r\n",
]


def groups():
    infer_bodies = [(text_of(each), None) for each in infer_objects()]
    return {
        "predict": [(PREDICT, body, None) for body in predict_bodies()],
        "infer": [(INFER, body, size) for body, size in infer_bodies],
        "raw": [(INFER, body, size) for body, size in raw_bodies()],
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    exported_models.mixed(folder / "mixed")
    exported_models.any_rank(folder / "any_rank")
    return [folder / "mixed", folder / "any_rank"]


@pytest.fixture(scope="module")
def running(models):
    with ModelServer(*models) as server:
        yield server


@pytest.fixture
def server(running):
    """The server, which answers a correct request also after the test."""
    yield running
    assert running.process.poll() is None, running.errors()
    assert_answers(running)


def port_of(server):
    return int(server.url.rpartition(":")[2])


def connect(server):
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=ANSWER_SECS)
    connection.connect()
    return closing(connection)


def dial(server):
    return socket.create_connection(("127.0.0.1", port_of(server)), ANSWER_SECS)


def ask(connection, path, body, headers=()):
    connection.request("POST", path, body, dict(headers))
    response = connection.getresponse()
    return response.status, response.read()


def assert_answers(server):
    with connect(server) as connection:
        status, text = ask(connection, PREDICT, VALID)
        assert (status, json.loads(text)) == (200, {"predictions": [SCORE]})


def problem(status, text):
    """What is wrong with the answer to a malformed request; empty if nothing is."""
    if not 400 <= status < 500:
        return f"status {status}"
    try:
        line = json.loads(text)["error"]
    except (ValueError, KeyError):
        return "not JSON with an error"
    if not line or not line.isprintable() or len(line) > MAX_ERROR_CHARS:
        return "not one short line"
    found = [word for word in INTERNALS if word in line]
    return f"it names {found}" if found else ""


def test_there_are_many_malformed_requests():
    cases = [*itertools.chain(*groups().values()), *WIRE]
    assert len(set(cases)) == len(cases)
    assert len(cases) >= 300


@pytest.mark.parametrize("group", ["predict", "infer", "raw"])
def test_a_malformed_request_is_refused(group, server):
    found = []
    with connect(server) as connection:
        for path, body, size in groups()[group]:
            headers = {} if size is None else {"Inference-Header-Content-Length": str(size)}
            status, text = ask(connection, path, body, headers)
            if wrong := problem(status, text):
                found.append((wrong, status, text[:400], body[:400], size))
    assert found == []


def test_what_is_no_request_is_refused(server):
    found = []
    for data in WIRE:
        with dial(server) as client, closing(http.client.HTTPResponse(client)) as response:
            client.sendall(data)
            response.begin()
            if wrong := problem(response.status, response.read()):
                found.append((wrong, response.status, data[:200]))
    assert found == []


def test_a_valid_request_is_not_refused(server):
    with connect(server) as connection:
        for path, body in ((PREDICT, {"inputs": COLUMNS}), (INFER, infer())):
            status, text = ask(connection, path, text_of(body))
            assert status == 200, text
            assert str(SCORE).encode() in text


def test_an_unknown_transfer_encoding_ends_the_connection(server):
    """Its body would otherwise be the next request."""
    with dial(server) as client:
        client.sendall(POST + b"Transfer-Encoding: gzip\r\n\r\n" + REQUEST)
        assert everything(client).count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("rank", [255, 300, 100_000])
def test_a_tensor_of_too_many_dimensions(rank, server):
    """TensorFlow would abort the process."""
    x = {"name": "x", "datatype": "FP32", "shape": [1] * rank, "data": [1]}
    with connect(server) as connection:
        status, text = ask(connection, "/v2/models/any_rank/infer", text_of({"inputs": [x]}))
        assert problem(status, text) == ""
        assert f"at most 254 dimensions, not {rank}".encode() in text


@pytest.mark.parametrize("shape", [[2**40, 0], [0, 2**62], [2**30, 0, 2**30]])
def test_an_empty_tensor_of_a_huge_size(shape, server):
    x = {"name": "x", "datatype": "FP32", "shape": shape, "data": []}
    with connect(server) as connection:
        status, text = ask(connection, "/v2/models/any_rank/infer", text_of({"inputs": [x]}))
        assert problem(status, text) == ""


@pytest.mark.parametrize("action", ["classify", "regress"])
def test_a_context_is_not_copied_without_a_limit(action, server):
    body = b'{"context": {"a": "%s"}, "examples": [%s{}]}' % (b"a" * 4_000_000, b"{}," * 1_000_000)
    with connect(server) as connection:
        status, text = ask(connection, f"/v1/models/mixed:{action}", body)
        assert problem(status, text) == ""
        assert b"too large to be copied into 1000001 examples" in text
        status, text = ask(connection, f"/v1/models/mixed:{action}", b'{"examples": [{"ids": 1}]}')
        assert problem(status, text) == ""


def test_a_body_above_the_limit(server):
    with connect(server) as connection:
        status, text = ask(connection, PREDICT, b" " * 20_000_000)
        assert (status, problem(status, text)) == (413, "")
    assert str(MAX_BODY_BYTES).encode() in text


def everything(client):
    """What comes until the server closes the connection."""
    received = b""
    while data := client.recv(1 << 16):
        received += data
    return received


def test_requests_in_one_packet_are_answered_in_order(server):
    rows = [{**ROW, "small": number} for number in range(20)]
    bodies = [text_of({"instances": [row]}) for row in rows]
    packet = b"".join(POST + b"Content-Length: %d\r\n\r\n" % len(each) + each for each in bodies)
    with dial(server) as client:
        client.sendall(packet + b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
        received = everything(client)
    places = [received.index(b'{"predictions": [%.1f]}' % (SCORE - 2 + each)) for each in range(20)]
    assert places == sorted(places)
    assert received.endswith(b'{"ready": true}\n')


@pytest.mark.parametrize("sent", [0, 10, len(POST), len(REQUEST) - 5, len(REQUEST)])
def test_a_client_that_leaves_early(sent, server):
    for _ in range(20):
        with dial(server) as client:
            client.sendall(REQUEST[:sent])
    assert_answers(server)
    deadline = Deadline(ANSWER_SECS)
    while num_connections(server) > 1:  # that of the question
        assert not deadline.expired, "connections of clients that are gone stay open"
        time.sleep(0.01)


def num_connections(server):
    with connect(server) as connection:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    return int(next(each.split()[1] for each in lines if each.startswith("tfdist_connections ")))


def test_slow_clients_do_not_delay_others(server):
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(server)) for _ in range(200)]
        longest = 0.0
        for place in range(20):  # a byte of each header, or body, at a time
            for number, client in enumerate(clients):
                start = 0 if number % 2 else len(REQUEST) - 25
                if place == 0:
                    client.sendall(REQUEST[:start])
                client.sendall(REQUEST[start + place : start + place + 1])
            begin = time.monotonic()
            assert_answers(server)
            longest = max(longest, time.monotonic() - begin)
        assert longest < 2.0


def test_a_large_body_of_curl(server, tmp_path):
    """Curl sends it once the server has answered `100 Continue`."""
    if shutil.which("curl") is None:
        pytest.fail("no curl here: apt install curl")
    body = tmp_path / "body"
    body.write_bytes(VALID + b" " * (1 << 20))
    done = subprocess.run(
        [
            *("curl", "-sS", "-v", "--max-time", str(ANSWER_SECS), "-H", "Expect: 100-continue"),
            *("-d", f"@{body}", server.url + PREDICT),
        ],
        capture_output=True,
        text=True,
        timeout=2 * ANSWER_SECS,
        check=True,
    )
    assert "100 Continue" in done.stderr
    assert json.loads(done.stdout) == {"predictions": [SCORE]}


def test_it_listens_on_this_machine_only(server):
    connections = psutil.Process(server.process.pid).net_connections("inet")
    listening = [each.laddr for each in connections if each.status == psutil.CONN_LISTEN]
    assert [(each.ip, each.port) for each in listening] == [("127.0.0.1", port_of(server))]


@pytest.mark.parametrize("number", [12, 300])
def test_it_stops_although_connections_are_idle(number, models):
    with (
        ModelServer(*models, options=["--threads", "8"]) as server,
        ExitStack() as stack,
    ):
        for _ in range(number):
            stack.enter_context(dial(server))
        assert num_connections(server) == number + 1
        begin = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin < ANSWER_SECS


@pytest.mark.parametrize("attempt", range(4))
def test_a_server_that_has_just_started_stops_in_order(attempt, models):
    with ModelServer(*models) as server:
        assert server.stop() == 0, attempt
