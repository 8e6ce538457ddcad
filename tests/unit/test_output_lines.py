"""How `tfdist run` splits and shows the output of its tasks."""

import pytest

from tfdist.cli.output import Lines, Output, ShownRun, shown


@pytest.fixture
def now():
    return [0.0]


@pytest.fixture
def lines(now):
    return Lines(lambda: now[0])


def test_whole_lines_are_kept_together(lines):
    assert lines.feed(b"one\ntw") == [b"one"]
    assert lines.feed(b"o\r\nthree\r") == [b"two"]
    assert lines.feed(b"\n\nrest") == [b"three", b""]
    assert lines.rest() == [b"rest"]
    assert Lines().rest() == []


def test_a_long_line_comes_in_pieces_and_nothing_is_lost(lines):
    pieces = [piece for _ in range(40) for piece in lines.feed(b"x" * 10_000)]
    assert {len(piece) for piece in pieces} == {65536}
    assert sum(map(len, [*pieces, *lines.rest()])) == 400_000


def test_of_the_updates_of_a_progress_bar_one_per_second_is_shown(lines, now):
    assert lines.feed(b"\r 1 %\r 2 %\r 3 %\r") == [b" 1 %"]
    now[0] = 0.9
    assert lines.feed(b" 4 %\r 5 %") == []
    now[0] = 1.0
    assert lines.feed(b"\r 6 %\r 7 %") == [b" 5 %"]
    assert lines.feed(b"\n") == [b" 7 %"]


def test_the_last_update_is_shown_although_no_line_ends(lines):
    assert lines.feed(b"1 %\r2 %\r3 %\r4") == [b"1 %"]
    assert lines.rest() == [b"4"]
    bar = Lines(lambda: 0.0)
    assert bar.feed(b"1 %\r2 %\r\r\r") == [b"1 %"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"plain \t text", "plain \t text"),
        ("Größe".encode(), "Größe"),
        (b"\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"),
        (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        (b"\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        (b"back\x08", "back\\x08"),
        ("\x9b2J".encode(), "\\x9b2J"),
        ("a\u202eb".encode(), "a\\u202eb"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_a_terminal_shows_control_characters_and_obeys_only_colors(line, text):
    assert shown(line) == text


def test_output_that_cannot_be_written_is_said_once_and_hurts_no_task(tmp_path, capsys):
    run = ShownRun(str(tmp_path), Output(prefix=True, all_on_stderr=False))
    for number in range(3):  # the folder of the task does not exist
        run.output("worker:0", 1, 1, b"line %d\n" % number)
    printed = capsys.readouterr()
    assert printed.out == "[worker:0] line 0\n[worker:0] line 1\n[worker:0] line 2\n"
    [complaint] = printed.err.splitlines()
    assert (
        complaint
        == f"tfdist: cannot write to {tmp_path}: No such file or directory; the job continues"
    )
