"""`__all__` is the whole public surface: sorted, and what dir() shows."""

from itertools import pairwise
from types import ModuleType

import pytest

import tfdist
import tfdist.testing


def problems(module: ModuleType) -> list[str]:
    """Where `__all__` is unsorted, or differs from the public names that dir() shows."""
    stated, shown = list(module.__all__), {n for n in dir(module) if not n.startswith("_")}
    found = [f"{a!r} stands before {b!r}" for a, b in pairwise(stated) if a >= b]
    found += [f"{name!r} is shown by dir() alone" for name in sorted(shown - set(stated))]
    return found + [f"{name!r} is hidden from dir()" for name in sorted(set(stated) - shown)]


@pytest.mark.parametrize("module", [tfdist, tfdist.testing], ids=lambda module: module.__name__)
def test_all_is_sorted_and_is_what_dir_shows(module):
    assert module.__all__
    assert problems(module) == []


def test_each_name_of_testing_is_there():
    # Those of tfdist itself need TensorFlow.
    assert all(getattr(tfdist.testing, name) for name in tfdist.testing.__all__)


def test_a_wrong_list_is_told():
    module = ModuleType("wrong")
    module.extra, module.a, module.b = 1, 1, 1
    module.__all__ = ["b", "a", "a", "gone"]
    assert problems(module) == [
        "'b' stands before 'a'",
        "'a' stands before 'a'",
        "'extra' is shown by dir() alone",
        "'gone' is hidden from dir()",
    ]
