"""Variables of gRPC and CUDA; the rules for proxies were measured with TensorFlow 2.21."""

import pytest

from tfdist.doctor import environment

HOSTS = {"ps:0": "ps-0.job.local:1", "worker:0": "10.1.2.3:1"}
PROXY = {"http_proxy": "http://proxy:3128"}


def proxies(environ, addresses=HOSTS):
    return [f.check.removeprefix("variables.") for f in environment.proxies(environ, addresses)]


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_a_proxy_without_exceptions_is_an_error(name):
    (finding,) = environment.proxies({name: "http://proxy:3128"}, HOSTS)
    assert (finding.check, finding.severity) == ("variables.proxy", "error")
    assert "10.1.2.3, ps-0.job.local go through the proxy" in finding.what
    assert "no_grpc_proxy=10.1.2.3,ps-0.job.local" in finding.fix


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"grpc_proxy": "", **PROXY},
        {"no_proxy": "ps-0.job.local,10.1.2.3", **PROXY},
        {"no_grpc_proxy": ".LOCAL, 10.1.0.0/16", "no_proxy": "", **PROXY},
    ],
)
def test_exceptions_for_all_hosts_suffice(environ):
    assert proxies(environ) == []


@pytest.mark.parametrize(
    "exceptions",
    [
        {"NO_PROXY": "ps-0.job.local,10.1.2.3"},
        {"no_proxy": "*"},
        {"no_proxy": "ps-0.job.local"},
        {"no_proxy": "*.local,10.1.2.3"},
        {"no_proxy": ".local,10.2.0.0/16"},
        {"no_proxy": ".local,10.1.2.3/x"},
        {"no_proxy": ""},
        {"no_grpc_proxy": "other", "no_proxy": ".local,10.1.2.3"},
    ],
)
def test_exceptions_must_cover_all_hosts(exceptions):
    assert proxies({**PROXY, **exceptions}) == ["proxy"]


def test_both_names_of_this_machine_need_an_exception():
    here = {"ps:0": "127.0.0.1:1"}
    assert proxies({**PROXY, "no_proxy": "127.0.0.1"}, here) == ["proxy"]
    assert proxies({**PROXY, "no_proxy": "127.0.0.1,localhost"}, here) == []


def test_a_proxy_in_upper_case_is_a_note():
    (finding,) = environment.proxies({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "x"}, HOSTS)
    assert (finding.check, finding.severity) == ("variables.proxy_capitals", "note")
    assert proxies({"HTTPS_PROXY": ""}) == []


@pytest.mark.parametrize("environ", [{}, {"GRPC_FAIL_FAST": "use_caller"}])
def test_use_caller_is_right(environ):
    assert environment.fail_fast(environ) == []


@pytest.mark.parametrize(
    ("value", "severity"), [("false", "warning"), ("TRUE", "warning"), ("1", "error")]
)
def test_any_other_fail_fast_is_reported(value, severity):
    (finding,) = environment.fail_fast({"GRPC_FAIL_FAST": value})
    assert (finding.check, finding.severity) == ("variables.fail_fast", severity)


def test_reuse_port_is_a_note_for_a_task_that_serves():
    (finding,) = environment.reuse_port({"TF_GRPC_REUSE_PORT": "1"}, "h:1")
    assert (finding.check, finding.severity) == ("variables.reuse_port", "note")
    assert "h:1" in finding.why
    assert environment.reuse_port({}, "h:1") == []
    assert environment.reuse_port({"TF_GRPC_REUSE_PORT": "0"}, "h:1") == []
    assert environment.reuse_port({"TF_GRPC_REUSE_PORT": "1"}, None) == []


@pytest.mark.parametrize(
    "environ", [{}, {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "GPU-8a,1"}]
)
def test_a_ps_that_sees_a_gpu_is_a_warning(environ):
    (finding,) = environment.gpus(environ, "ps:0", lambda: ["/dev/nvidia0"])
    assert (finding.check, finding.severity) == ("gpu.ps", "warning")
    assert "ps:0 sees /dev/nvidia0" in finding.what


@pytest.mark.parametrize("visible", ["", "-1", "-1,0", "NoDevFiles"])
def test_hidden_gpus_are_no_finding(visible):
    assert environment.gpus({"CUDA_VISIBLE_DEVICES": visible}, "ps:0", lambda: ["x"]) == []


@pytest.mark.parametrize(("task", "found"), [("worker:0", ["x"]), (None, ["x"]), ("ps:0", [])])
def test_a_gpu_of_a_worker_is_no_finding(task, found):
    assert environment.gpus({}, task, lambda: found) == []
