"""libFuzzer looks for a request that the readers of requests cannot bear.

`fuzz_requests.cc` is the target. It is built with AddressSanitizer and with the sanitizer of
undefined behaviour; simdjson is the library of the system, which has neither.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tfdist.serving.build import SOURCES

TARGET = Path(__file__).parent / "fuzz_requests.cc"
READERS = ("tensor", "json", "base64", "tensorflow_rest", "open_inference")
PACKAGES = "apt install clang libclang-rt-14-dev libsimdjson-dev"
SANITIZERS = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined"]
SECS, NIGHTLY_SECS = 8, 60
SHOWN_LINES = 60

TYPES = {
    "float32": ("FP32", [0.5, -1]),
    "float64": ("FP64", [0.5, 1e300]),
    "int8": ("INT8", [-128, 127]),
    "int16": ("INT16", [-32768, 1]),
    "int32": ("INT32", [-(2**31), 1]),
    "int64": ("INT64", [-(2**63), 1]),
    "uint8": ("UINT8", [0, 255]),
    "uint16": ("UINT16", [0, 65535]),
    "uint32": ("UINT32", [0, 2**32 - 1]),
    "uint64": ("UINT64", [0, 2**64 - 1]),
    "bool": ("BOOL", [True, False]),
    "string": ("BYTES", ["a", {"b64": "/w=="}]),
}
SPARSE = {"indices": [[0, 1]], "values": ["red"], "dense_shape": [2, 2]}
ROW = {"ids": 1, "dense": [1, 2.5, -3e2], "text_bytes": "a\u00e9", "tags": ["red", "blue"]}
COLUMNS = {"ids": [1, 2], "dense": [[1, 2, 3]] * 2, "text_bytes": ["a", "b"], "tags": SPARSE}
PREDICT = [
    {"instances": [ROW, ROW]},
    {"instances": [{**ROW, "dense": [float("nan"), float("inf"), -float("inf")]}]},
    {"signature_name": "serving_default", "inputs": COLUMNS},
    {"signature_name": "types", "inputs": {name: values for name, (_, values) in TYPES.items()}},
    {"signature_name": "text", "instances": [["a", {"b64": "/w=="}]]},
    {"signature_name": "text", "inputs": {"b64": "AAEC"}},
    {"signature_name": "bool", "inputs": [[True], [False]]},
    {"signature_name": "sparse", "inputs": {**SPARSE, "values": [1.5], "dense_shape": [2, 4]}},
    {"signature_name": "any", "inputs": {"x": [[[1]]], "s": {**SPARSE, "values": [7]}}},
]
EXAMPLES = [
    {
        "signature_name": "examples",
        "context": {"country": "fr"},
        "examples": [{"id": [1, 2]}, {"id": 2.5, "tags": ["a", {"b64": "AA=="}]}, {}],
    },
]


def _tensor(name, datatype, shape, **parts):
    return {"name": name, "datatype": datatype, "shape": shape, **parts}


INFER = [
    {
        "id": "7",
        "parameters": {"binary_data_output": True},
        "inputs": [
            _tensor("ids", "INT64", [1], data=[1]),
            _tensor("dense", "FP32", [1, 3], data=[[1, 2, 3]]),
            _tensor("text_bytes", "BYTES", [1], data=["a"]),
            _tensor("tags/indices", "INT64", [1, 2], data=[0, 0]),
            _tensor("tags/values", "BYTES", [1], data=["red"]),
            _tensor("tags/dense_shape", "INT64", [2], data=[1, 1]),
        ],
        "outputs": [{"name": "ids"}, {"name": "dense", "parameters": {"binary_data": False}}],
    },
    {
        "parameters": {"signature_name": "types"},
        "inputs": [_tensor(name, kind, [2], data=data) for name, (kind, data) in TYPES.items()],
    },
]
RAW = b"\x01\0\0\0a\0\0\0\0"
WITH_RAW = {
    "parameters": {"signature_name": "text"},
    "inputs": [_tensor("x", "BYTES", [2, 1], parameters={"binary_data_size": len(RAW)})],
}


# As nested lists in an answer, its rows would take 500 MB.
EMPTY_ROWS = {
    "parameters": {"signature_name": "text"},
    "inputs": [_tensor("x", "BYTES", [2**27, 0], data=[])],
}


def seeds():
    """Requests, most of them valid. The first byte names the reader."""
    for letter, requests in (("p", PREDICT), ("e", EXAMPLES), ("i", [*INFER, EMPTY_ROWS])):
        for request in requests:
            yield letter.encode() + json.dumps(request).encode()
    golden = [request for request in PREDICT if "inputs" in request]
    yield b"g" + json.dumps({"requests": golden}).encode()
    text = json.dumps(WITH_RAW).encode()
    yield b"r" + len(text).to_bytes(2, "little") + text + RAW
    yield b"bAAEC/w=="


def words(value):
    """The keys and texts of a request."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from words(each)
    elif isinstance(value, list):
        for each in value:
            yield from words(each)
    elif isinstance(value, str):
        yield value


def dictionary():
    """What the fuzzer puts into an input as a whole."""
    found = set(words([PREDICT, EXAMPLES, INFER, WITH_RAW, {"requests": [], **TYPES}]))
    quoted = [f'"{word}"' for word in sorted(found) if word.isascii()]
    numbers = ["NaN", "-Infinity", "1e400", "-1", str(2**31), str(2**62), str(2**64)]
    tokens = [*quoted, *numbers, "[[]]", "[0, 0]", "\\ud800", "true", "null", '{"b64": ""}']
    return "\n".join(json.dumps(token) for token in tokens) + "\n"


def _run(command, timeout):
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    """The program, which takes half a minute to build on two cores."""
    folder = tmp_path_factory.mktemp("fuzzer")
    if shutil.which("clang++") is None:
        pytest.fail(f"no clang++ here, which builds the fuzzer: {PACKAGES}")

    def compiled(source):
        target = folder / f"{source.stem}.o"
        flags = ["-std=c++17", "-O1", "-g1", *SANITIZERS, f"-I{SOURCES}"]
        done = _run(["clang++", *flags, "-c", str(source), "-o", str(target)], 300)
        assert done.returncode == 0, f"{PACKAGES}\n{done.stdout}"
        return str(target)

    sources = [TARGET, *(Path(SOURCES, f"{name}.cc") for name in READERS)]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    program = folder / "fuzzer"
    done = _run(["clang++", *SANITIZERS, *objects, "-lsimdjson", "-o", str(program)], 120)
    assert done.returncode == 0, f"the fuzzer cannot be linked: {PACKAGES}\n{done.stdout}"
    return program


def test_no_request_breaks_its_reader(fuzzer, request, tmp_path):
    corpus, crashes = tmp_path / "corpus", tmp_path / "crashes"
    corpus.mkdir()
    crashes.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    (tmp_path / "dictionary").write_text(dictionary())
    secs = NIGHTLY_SECS if request.config.option.nightly else SECS
    # Linux hands the peak memory of this process down to its children; those of `timeout` are free
    # of it.
    done = _run(
        [
            *("timeout", str(secs + 30), str(fuzzer)),
            f"-max_total_time={secs}",
            *("-rss_limit_mb=1024", "-timeout=5", "-max_len=4096", "-print_final_stats=1"),
            *(f"-dict={tmp_path / 'dictionary'}", f"-artifact_prefix={crashes}/", str(corpus)),
        ],
        secs + 60,
    )
    found = [path.read_bytes() for path in crashes.iterdir()]
    shown = "\n".join(done.stdout.splitlines()[-SHOWN_LINES:])
    assert done.returncode == 0, f"the fuzzer ended with {done.returncode}: {found}\n{shown}"
    assert found == [], shown
    assert "stat::number_of_executed_units" in done.stdout
