"""Mistakes in a training script that its syntax tree shows."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

from tfdist.doctor.finding import Finding
from tfdist.errors import ConfigError

_SESSIONS = {"Session", "MonitoredSession", "MonitoredTrainingSession", "Supervisor"}
_SERVERS = {"Server", "worker_server"}
_EAGER_OFF = {"disable_eager_execution", "disable_v2_behavior"}
_SEEDS = {"set_seed", "set_random_seed"}
_SHUFFLE_POSITION = 1  # list_files(file_pattern, shuffle, seed)
_SEED_POSITION = 2


def parse(path: str) -> tuple[ast.Module | None, list[Finding]]:
    """The script's syntax tree, or None and a finding with the line.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        what = error.strerror or str(error)
        is_missing = isinstance(error, FileNotFoundError)
        rule = "the file does not exist" if is_missing else f"cannot be read: {what}"
        raise ConfigError("script", path, rule) from error
    return parse_source(source, path)


def parse_source(source: bytes, path: str) -> tuple[ast.Module | None, list[Finding]]:
    """Like `parse`, for the text of the file `path`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # Python prints them itself
            return ast.parse(source, path), []
    except (SyntaxError, ValueError) as error:
        where = f"{path}:{error.lineno}" if isinstance(error, SyntaxError) else path
        what = f"{where}: {getattr(error, 'msg', error)}"
        return None, [
            Finding(
                "script.syntax",
                "error",
                what,
                "No task can run it. The rest of the script was not checked.",
                "Correct the line.",
            )
        ]


def check(path: str, tree: ast.Module) -> list[Finding]:
    """All findings about the script itself."""
    found = [_ps_join(tree), _list_files(tree), _eager(tree), _device_filters(tree)]
    return [
        Finding(check, severity, f"{path}:{line}: {what}", why, fix)
        for check, severity, line, what, why, fix in filter(None, found)
    ]


_Mistake = tuple[str, str, int, str, str, str]


def _ps_join(tree: ast.Module) -> _Mistake | None:
    servers = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _called(node.value) == "Server"
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in calls(tree, {"join"}):
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        is_server = isinstance(receiver, ast.Name) and receiver.id in servers
        if is_server or _called(receiver) == "Server":
            return (
                "script.server_join",
                "warning",
                call.lineno,
                "the server's join() never returns",
                "A ps that joins serves forever, even when every worker is done, so the job never "
                "ends by itself.",
                "Call tfdist.parameter_server(task) instead, and tfdist.worker_server(task) in the "
                "workers: the ps ends when they are done.",
            )
    return None


def _list_files(tree: ast.Module) -> _Mistake | None:
    if _SEEDS & names(tree):
        return None  # the order may be the same on every worker
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    values.setdefault(target.id, []).append(node.value)
    for shard in calls(tree, {"shard"}):
        for call in _receivers(shard, values):
            if _called(call) == "list_files" and _is_shuffled(call):
                return (
                    "script.list_files",
                    "error",
                    call.lineno,
                    f"list_files shuffles the files, and line {shard.lineno} takes a shard of them",
                    "Each worker shuffles differently, so files are lost and others read twice.",
                    "Write list_files(pattern, shuffle=False), and shuffle after shard().",
                )
    return None


def _receivers(call: ast.Call, values: dict[str, list[ast.expr]]) -> Iterator[ast.Call]:
    """The calls that produced the object of this method call, through chains and names."""
    seen: set[str] = set()
    left: list[ast.expr] = [call.func]
    while left:
        node = left.pop()
        if isinstance(node, ast.Call):
            yield node
            left.append(node.func)
        elif isinstance(node, ast.Attribute):
            left.append(node.value)
        elif isinstance(node, ast.Name) and node.id not in seen:
            seen.add(node.id)
            left += values.get(node.id, [])


def _is_shuffled(call: ast.Call) -> bool:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    positional = dict(enumerate(call.args))
    shuffle = keywords.get("shuffle", positional.get(_SHUFFLE_POSITION))
    seed = keywords.get("seed", positional.get(_SEED_POSITION))
    open_ended = None in keywords or any(isinstance(arg, ast.Starred) for arg in call.args)
    # A value that is known only at run time counts as correct.
    by_default = shuffle is None or (
        isinstance(shuffle, ast.Constant) and shuffle.value in (None, True)
    )
    return by_default and seed is None and not open_ended


def _eager(tree: ast.Module) -> _Mistake | None:
    for call in calls(tree, _EAGER_OFF):
        return (
            "script.eager",
            "warning",
            call.lineno,
            f"{_called(call)}()",
            "It applies to the whole process, where ClusterCoordinator, Keras 3 and everything "
            "else that needs eager execution fails. Graphs and sessions do not need it.",
            "Remove it, and build the graph inside `with tf.Graph().as_default():`.",
        )
    return None


def _device_filters(tree: ast.Module) -> _Mistake | None:
    if "device_filters" in names(tree) or not any(calls(tree, _SERVERS)):
        return None
    for call in calls(tree, _SESSIONS):
        return (
            "script.device_filters",
            "warning",
            call.lineno,
            f"{_called(call)} has no device_filters",
            "Such a session waits for every task of the cluster, including workers that have not "
            "started yet or have ended.",
            "Pass config=tf.compat.v1.ConfigProto(device_filters=task.device_filters), or use "
            "tfdist.train.session.",
        )
    return None


def calls(tree: ast.AST, called: set[str]) -> Iterator[ast.Call]:
    """The calls of functions with one of these names after the last dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in called:
            yield node


def names(tree: ast.AST) -> set[str]:
    """All names, attributes, keywords, imports and string constants of the tree."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                found.add(name)
            case ast.Constant(value=str(name)):
                found.add(name)
            case ast.Import(names=aliases):
                found.update(part for alias in aliases for part in alias.name.split("."))
            case ast.ImportFrom(module=module, names=aliases):
                found.update((module or "").split("."))
                found.update(alias.name for alias in aliases)
    return found


def _called(node: ast.AST | None) -> str | None:
    """The last name of the called function."""
    match node:
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
            return name
    return None
