"""Public names of a package, each imported on first use, and the error for a missing TensorFlow.

A package's `__init__.pyi` lists its public names. `import tfdist` therefore costs milliseconds, and
whatever needs no TensorFlow works without one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import lazy_loader

from tfdist.errors import did_you_mean

_MISSING = (
    "{} needs TensorFlow, and this Python environment has none. Install the build that suits your "
    "machine, for example: pip install 'tensorflow>=2.21,<3'"
)


def public_names(
    package: str, init_file: str
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package, read from the stub of `init_file`.

    Args:
        package: its `__name__`.
        init_file: its `__file__`.
    """
    load, names, public = lazy_loader.attach_stub(package, init_file)

    def load_or_explain(name: str) -> object:
        if name not in public and not name.startswith("_"):
            hint = _elsewhere(name) or did_you_mean(name, public)
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}", name=name)
        try:
            return load(name)
        except ModuleNotFoundError as error:
            if error.name != "tensorflow":
                raise
            explained = _missing(f"{package}.{name}")
        raise explained

    return load_or_explain, names, public


def _elsewhere(name: str) -> str:
    """The end of a message on a name that a package of tfdist has: "; did you mean ...?", or ""."""
    root = Path(__file__).parent
    for stub in sorted(root.rglob("__init__.pyi")):
        if stub.read_text("utf-8").find(f" as {name}\n") >= 0:
            owner = ".".join(stub.parent.relative_to(root.parent).parts)
            return f"; did you mean {owner}.{name}?"
    return ""


def require_tensorflow(user: str) -> None:
    """Raises ModuleNotFoundError if TensorFlow is not installed, without importing it.

    Args:
        user: what needs it, such as "tfdist run"; the message begins with it.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise _missing(user)


def _missing(user: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(_MISSING.format(user), name="tensorflow")
