"""Each public name is there when it is asked for, and says what it promises."""

import dataclasses
import inspect

import pytest

import tfdist


def promises(thing: object) -> bool:
    """Whether a class or function has a docstring of its own; other values need none."""
    if not inspect.isclass(thing) and not inspect.isroutine(thing):
        return True
    # A dataclass without a docstring is given its signature for one.
    made_up = dataclasses.is_dataclass(thing) and (thing.__doc__ or "").startswith(
        f"{thing.__name__}("
    )
    return bool(thing.__doc__) and not made_up


@pytest.mark.parametrize("name", tfdist.__all__)
def test_name_resolves_and_is_documented(name):
    assert promises(getattr(tfdist, name)), f"tfdist.{name} has no docstring"


def test_a_missing_docstring_is_found():
    class Silent(Exception):
        pass

    @dataclasses.dataclass
    class MadeUp:
        field: int

    assert not any(promises(thing) for thing in (Silent, MadeUp, lambda: None))
    assert promises(7)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tfdist.no_such_name
