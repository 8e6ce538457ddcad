"""Public names of a package, each imported on first use.

A package's `__init__.pyi` lists its public names. `import tfdist` therefore costs milliseconds, and
the parts that need no TensorFlow work without one.
"""

from __future__ import annotations

from collections.abc import Callable

import lazy_loader


def public_names(
    package: str, init_file: str
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package, by the stub beside `init_file`.

    Args:
        package: its `__name__`.
        init_file: its `__file__`.
    """
    load, names, public = lazy_loader.attach_stub(package, init_file)

    def load_or_explain(name: str) -> object:
        try:
            return load(name)
        except ModuleNotFoundError as error:
            if error.name != "tensorflow":
                raise
            raise ModuleNotFoundError(
                f"{package}.{name} needs TensorFlow, and this Python has none. Install the build "
                "that suits your machine, for example: pip install 'tensorflow>=2.21,<3'",
                name="tensorflow",
            ) from None

    return load_or_explain, names, public
