"""How the outcome of a task describes its error."""

import builtins
import os
import sys

import pytest

from tfdist.runs.outcome import LAUNCHERS, Outcome


def test_each_file_of_the_launchers_exists():
    assert all(os.path.exists(path) for path in LAUNCHERS if not path.startswith("<"))


def test_an_error_without_a_frame_of_the_user_keeps_all_frames():
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("1 / 0", LAUNCHERS[0], "exec"))  # as if the launcher itself had failed
    caught.value.__traceback__ = caught.tb.tb_next
    assert f'File "{LAUNCHERS[0]}"' in Outcome.of_error(caught.value).details


def test_an_error_that_has_no_text_is_described_by_its_type():
    class Odd(Exception):
        def __str__(self):
            raise ValueError

    assert "Odd" in Outcome.of_error(Odd()).details


GROUP = getattr(builtins, "ExceptionGroup", None)


@pytest.mark.skipif(GROUP is None, reason="Python 3.10 has no groups and notes")
def test_a_group_is_described_with_its_members_its_note_and_its_cause():
    try:
        try:
            raise KeyError("why")
        except KeyError as cause:
            group = GROUP("parts", [ValueError("first"), OSError("second")])
            group.add_note("seen in part 3")
            raise group from cause
    except GROUP as error:
        details = Outcome.of_error(error).details
    words = ("KeyError: 'why'", "direct cause", "parts (2 sub", "seen in part 3", "first", "second")
    assert all(word in details for word in words)


@pytest.mark.parametrize(
    ("code", "at_end"),
    [(None, 0), (0, 0), (7, 7), (True, 1), (-1, 255), (256, 0), (2**70, 255), ("no data", 1)],
)
def test_the_exit_code_is_that_of_python(code, at_end):
    assert Outcome.of_exit(SystemExit(code)).exit_code == at_end


class Odd:
    """An object without a text."""

    __str__ = __repr__ = lambda self: sys.exit(3)


class OddNumber(int):
    def __and__(self, *other):
        raise ZeroDivisionError

    __abs__ = __bool__ = __and__


class OddSyntax(SyntaxError):
    def __init__(self, **parts):
        super().__init__("x")
        for name, part in parts.items():
            setattr(self, name, part)


def lie(*about):
    raise KeyboardInterrupt


class Lying(ValueError):
    __cause__ = property(lie)


@pytest.mark.parametrize(
    ("make", "at_end", "details"),
    [(Odd, 1, "Odd"), (lambda: OddNumber(7), 7, ""), (lambda: (1, 2), 1, "(1, 2)")],
)
def test_an_exit_code_that_cannot_be_printed_is_named_by_its_type(make, at_end, details):
    outcome = Outcome.of_exit(SystemExit(make()))
    assert (outcome.exit_code, outcome.details) == (at_end, details)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OddSyntax(text=5, lineno=1, filename="a.py"),
        lambda: OddSyntax(lineno="a", text="x", filename="a.py", offset=1),
        Lying,
    ],
)
def test_an_error_that_cannot_be_printed_is_named_by_its_type_and_place(make):
    error = make()
    with pytest.raises(type(error)) as caught:
        raise error
    outcome = Outcome.of_error(caught.value)
    assert outcome.error is error
    assert type(error).__name__ in outcome.details
    assert os.path.basename(__file__) in outcome.details
