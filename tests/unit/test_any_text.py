"""Any bytes and any text of a script can be shown, stored and sent; nothing of it is obeyed."""

import io
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdist.cli.output import Lines, Output, shown
from tfdist.errors import ConfigError, TaskFailed, described
from tfdist.runs.outcome import Outcome
from tfdist.runs.progress import Progress, ProgressNote

# Also control characters, and surrogates, which no encoding of a text has.
TEXTS = st.text(st.characters(categories=["L", "N", "P", "S", "Z", "Cc", "Cf", "Cs", "Co"]))
PIECES = st.lists(st.binary(max_size=40) | st.sampled_from([b"\r", b"\n", b"\r\n", b"\x1b[2J"]))
OFTEN = settings(max_examples=400, deadline=None)


@OFTEN
@given(PIECES)
def test_the_lines_of_any_output_do_not_depend_on_how_it_is_cut(pieces):
    whole, cut = Lines(lambda: 0.0), Lines(lambda: 0.0)
    in_pieces = [line for piece in pieces for line in cut.feed(piece)]
    assert in_pieces + cut.rest() == whole.feed(b"".join(pieces)) + whole.rest()


@OFTEN
@given(st.binary())
def test_a_shown_line_has_no_control_character(line):
    text = shown(line.replace(b"\x1b[", b""))
    assert not [sign for sign in text if sign != "\t" and sign != "\n" and not _is_harmless(sign)]


def _is_harmless(sign):
    return ord(sign) >= 32 and not 127 <= ord(sign) < 160


@OFTEN
@given(PIECES, st.sampled_from(["ascii", "utf-8", "latin-1"]))
def test_any_output_is_printed_on_any_console(pieces, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        output = Output(prefix=True, all_on_stderr=False)
        for piece in pieces:
            output.write("worker:0", 1, piece)
        output.flush()
    lines = stream.buffer.getvalue().split(b"\n")[:-1]
    assert all(line.startswith(b"[worker:0] ") for line in lines)


@OFTEN
@given(TEXTS, st.integers(0, 2**64), st.none() | st.integers(0, 2**64))
def test_any_state_is_noted_and_read_back(tmp_path_factory, state, done, total):
    path = tmp_path_factory.getbasetemp() / "progress.json"
    Progress(str(path)).update(state, done, total)
    found = ProgressNote.read(path)
    assert (found.done, found.total) == (done, total)
    json.dumps(found.state).encode()
    str(found.count).encode()


@OFTEN
@given(TEXTS)
def test_any_text_of_an_error_reaches_the_launcher(text):
    class Odd(Exception):
        pass

    assert described(Odd(text)).encode().count(b"\n") == 0
    try:
        raise Odd(text)
    except Odd as error:
        details = Outcome.of_error(error).details
    str(TaskFailed("worker:0", 1, details)).encode()
    str(ConfigError(text, text, text)).encode(errors="backslashreplace")
