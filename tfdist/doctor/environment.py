"""Environment variables that TensorFlow and gRPC read, and packages that do not work together.

Versions come from the installed metadata; nothing is imported.
"""

from __future__ import annotations

import ast
import ipaddress
import re
import sys
from collections.abc import Callable, Mapping

from tfdist.doctor.finding import Finding
from tfdist.doctor.script import calls, names
from tfdist.task import parse_address

Installed = Callable[[str], str | None]

# In gRPC's order: the first one that is set counts, even if it is empty
# (src/core/handshaker/http_connect/http_proxy_mapper.cc). gRPC does not read upper-case names.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_LOOPBACK = {"127.0.0.1", "localhost"}

_TENSORFLOWS = ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tf-nightly")
_OLDEST, _TOO_NEW = (2, 21), (3, 0)  # the bounds of the extra tfdist[tensorflow]
_INSTALL = "pip install 'tensorflow>=2.21,<3'"
_STRATEGIES = {
    "ParameterServerStrategy",
    "ParameterServerStrategyV2",
    "MultiWorkerMirroredStrategy",
    "CollectiveAllReduceStrategy",
}
_LEGACY = "TF_USE_LEGACY_KERAS"
_TRUE = ("true", "True", "1")  # tensorflow/__init__.py, 2.21


def proxies(environ: Mapping[str, str], addresses: Mapping[str, str]) -> list[Finding]:
    """A proxy between the tasks."""
    found = {parse_address(address).host for address in addresses.values()}
    if found & _LOOPBACK:
        found |= _LOOPBACK  # tfdist connects by the other name, see session_target
    hosts = sorted(found)
    variable = _first(environ, _PROXIES)
    if variable is None or not environ[variable]:
        capitals = [name.upper() for name in _PROXIES if environ.get(name.upper())]
        return [_capitals(capitals)] if capitals and hosts else []
    exceptions = _first(environ, _EXCEPTIONS)
    listed = environ[exceptions] if exceptions else ""
    through = [host for host in hosts if not _is_listed(host, listed)]
    if not through:
        return []
    how = f"{exceptions} is {listed!r}" if exceptions else "no_grpc_proxy and no_proxy are not set"
    return [
        Finding(
            "variables.proxy",
            "error",
            f"{variable} is set, and {how}, so calls to {', '.join(through)} go through the proxy",
            "The calls between tasks fail at the proxy, or hang.",
            f"export no_grpc_proxy={','.join(hosts)} for every task. gRPC matches the ends of "
            "names, and addresses with subnets such as 10.0.0.0/8. It knows neither * nor "
            "NO_PROXY.",
        )
    ]


def _capitals(names: list[str]) -> Finding:
    return Finding(
        "variables.proxy_capitals",
        "note",
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} set, in upper case only",
        "gRPC reads lower-case names only, so calls between tasks do not use this proxy; other "
        "programs may.",
        "Nothing to do. If you set the lower-case name too, set no_grpc_proxy as well.",
    )


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in environ), None)


def _is_listed(host: str, listed: str) -> bool:
    """Whether gRPC connects to `host` without the proxy."""
    entries = [entry.strip().lower() for entry in listed.split(",")]
    if any(entry and host.lower().endswith(entry) for entry in entries):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False  # a subnet does not match a name
    return any(_in_subnet(address, entry) for entry in entries if "/" in entry)


def _in_subnet(address: ipaddress.IPv4Address | ipaddress.IPv6Address, entry: str) -> bool:
    try:
        return address in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False  # gRPC ignores it too


def fail_fast(environ: Mapping[str, str]) -> list[Finding]:
    """A `GRPC_FAIL_FAST` other than `use_caller`, which is the default of TensorFlow 2.21."""
    value = environ.get("GRPC_FAIL_FAST", "use_caller")
    why = {
        "use_caller": None,
        "false": "A call to a dead task waits forever instead of failing.",
        "true": "A call to a task that has not started yet fails instead of waiting.",
    }.get(value.lower(), "TensorFlow does not know this value, and every call between tasks fails.")
    if why is None:
        return []
    return [
        Finding(
            "variables.fail_fast",
            "warning" if value.lower() in ("true", "false") else "error",
            f"GRPC_FAIL_FAST is {value!r}",
            why,
            "export GRPC_FAIL_FAST=use_caller, or unset it.",
        )
    ]


def reuse_port(environ: Mapping[str, str], own_address: str | None) -> list[Finding]:
    """A `TF_GRPC_REUSE_PORT` that lets two servers share one port."""
    if own_address is None or environ.get("TF_GRPC_REUSE_PORT", "").lower() not in ("1", "true"):
        return []
    return [
        Finding(
            "variables.reuse_port",
            "note",
            f"TF_GRPC_REUSE_PORT is {environ['TF_GRPC_REUSE_PORT']!r}",
            f"If the job is started twice, a second server can listen at {own_address}. The two "
            "share the connections, so tasks reach the wrong one.",
            "Unset it, unless a launcher such as `tfdist run` holds the port. "
            "tfdist.parameter_server and tfdist.worker_server check first that the port is free.",
        )
    ]


def gpus(
    environ: Mapping[str, str], task: str | None, find: Callable[[], list[str]]
) -> list[Finding]:
    """GPUs that a ps would take."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    # CUDA stops at the first entry that names no device, so "-1" hides all, and so does "".
    hidden = visible is not None and not re.match(r"\s*([0-9]|GPU-|MIG-)", visible)
    if task is None or not task.startswith("ps:") or hidden or not (found := find()):
        return []
    return [
        Finding(
            "gpu.ps",
            "warning",
            f"{task} sees {', '.join(found)}",
            "TensorFlow allocates nearly all memory of each GPU that it sees. A ps does not use "
            "it, and a worker on this machine would find none left.",
            "export CUDA_VISIBLE_DEVICES=-1 for the ps.",
        )
    ]


def tensorflow(installed: Installed) -> list[Finding]:
    """No TensorFlow, two of them, or a version that tfdist does not support."""
    found = {name: version for name in _TENSORFLOWS if (version := installed(name))}
    listed = " and ".join(f"{name} {version}" for name, version in found.items())
    if not found:
        return [
            Finding(
                "versions.absent",
                "error",
                f"TensorFlow is not installed for {sys.executable}",
                "No task of the job can run with this Python.",
                f"{_INSTALL}, or the build that suits your machine, such as tensorflow-cpu.",
            )
        ]
    findings = []
    if len(found) > 1:
        findings.append(
            Finding(
                "versions.two_tensorflows",
                "warning",
                f"{listed} are installed",
                "Both install files into the folder tensorflow/, which may now contain a mixture.",
                f"pip uninstall {' '.join(found)}, then install the one that you want.",
            )
        )
    if any(not _OLDEST <= _numbers(version) < _TOO_NEW for version in found.values()):
        findings.append(
            Finding(
                "versions.tensorflow",
                "error",
                f"{listed} is installed",
                "tfdist needs TensorFlow 2.21 or a later 2.x.",
                _INSTALL,
            )
        )
    return findings


def legacy_keras(installed: Installed, environ: Mapping[str, str]) -> list[Finding]:
    """`TF_USE_LEGACY_KERAS` without Keras 2 (tf_keras), or with one for another TensorFlow."""
    if environ.get(_LEGACY) not in _TRUE:
        return []
    tf_keras, own = installed("tf_keras"), installed("tensorflow")
    if tf_keras is None:
        what = f"{_LEGACY} is set, and tf_keras is not installed"
        why = "The first use of tf.keras raises ImportError."
    elif own is not None and _numbers(tf_keras) != _numbers(own):
        what = f"tf_keras {tf_keras} is installed with tensorflow {own}"
        why = "A tf_keras supports only the TensorFlow with the same version number."
    else:
        return []
    pin = ".".join(map(str, _numbers(own or "2.21")))
    fix = f"pip install 'tf_keras=={pin}.*'"
    return [Finding("versions.legacy_keras", "error", what, why, fix)]


def keras_fit(
    installed: Installed, environ: Mapping[str, str], tree: ast.Module | None
) -> list[Finding]:
    """Keras 3, whose `Model.fit` fails under a strategy for more than one machine.

    Args:
        installed: returns the version of a package.
        environ: the environment of the task.
        tree: the script; without one the finding is a note.
    """
    keras = installed("keras")
    legacy = environ.get(_LEGACY) in _TRUE and installed("tf_keras") is not None
    if keras is None or _numbers(keras) < (3, 0) or legacy:
        return []
    severity, what = "note", f"keras {keras} is installed"
    if tree is not None:
        used = names(tree)
        fits = [call.lineno for call in calls(tree, {"fit"})]
        # A script that contains the variable's name sets it, or handles both versions.
        if not fits or not _STRATEGIES & used or "keras" not in used or _LEGACY in used:
            return []
        strategy = min(_STRATEGIES & used)
        severity, what = "error", f"line {fits[0]} calls fit under {strategy}, with keras {keras}"
    return [
        Finding(
            "versions.keras_fit",
            severity,
            what,
            "Model.fit of Keras 3 raises ValueError under ParameterServerStrategy and "
            "MultiWorkerMirroredStrategy, although compile succeeds.",
            f"pip install tf_keras and export {_LEGACY}=1 for every task; or write the training "
            "loop yourself: Keras layers and optimizers work.",
        )
    ]


def _numbers(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
