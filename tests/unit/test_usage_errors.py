"""Wrong flags: the usage of the subcommand, and the flag that was probably meant."""

import pytest

from tfdist.cli import main


def complaint(capsys, *arguments):
    """The first and the last line on standard error."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    first, *_, last = capsys.readouterr().err.splitlines()
    return first, last


def test_an_unknown_flag_shows_the_usage_of_its_subcommand_and_a_suggestion(capsys):
    first, last = complaint(capsys, "run", "--wrokers", "2", "train.py")
    assert first.startswith("usage: tfdist run ")
    assert last == ("tfdist run: error: unrecognized arguments: --wrokers; did you mean --workers?")


def test_an_unknown_flag_with_its_value(capsys):
    _, last = complaint(capsys, "repro", "run", "--seeed=3", "sync/worker-short")
    assert last == (
        "tfdist repro run: error: unrecognized arguments: --seeed=3; did you mean --seed?"
    )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("--stall", "--stall-timeout"), ("--on", "--on-stall"), ("--no", "--no-chief")],
)
def test_the_beginning_of_a_flag_suggests_that_flag(capsys, typed, meant):
    _, last = complaint(capsys, "run", typed, "3", "train.py")
    assert last.endswith(f"unrecognized arguments: {typed}; did you mean {meant}?")


def test_an_argument_too_many_gets_no_suggestion(capsys):
    assert complaint(capsys, "status", "a", "b")[1] == (
        "tfdist status: error: unrecognized arguments: b"
    )


@pytest.mark.parametrize("command", ["run", "node", "compose"])
def test_only_the_script_is_required_and_the_usage_names_its_arguments(
    capsys, monkeypatch, command
):
    monkeypatch.setenv("COLUMNS", "500")
    first, last = complaint(capsys, command)
    assert last.endswith("error: the following arguments are required: script")
    assert first.endswith(" script [arguments ...]")


@pytest.mark.parametrize("command", ["run", "stacks", "status", "repro"])
def test_a_description_fills_the_terminal(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    description = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert all(40 < len(line) < 60 for line in description[:-1])


def test_the_examples_in_a_description_keep_their_lines(capsys):
    with pytest.raises(SystemExit):
        main(["repro", "--help"])
    assert "\n  tfdist repro run sync/worker-short --fixed     see" in capsys.readouterr().out


def test_a_family_of_cases_is_not_a_case_and_its_cases_are_listed(capsys):
    assert main(["repro", "run", "sync"]) == 2
    assert "is a family of cases; name one: sync/chief-short, " in capsys.readouterr().err


def test_a_list_is_repeated_as_it_was_typed(capsys):
    assert main(["repro", "run", "sync/worker-short", "--ps", "2,4"]) == 2
    said = "tfdist: --ps: got '2,4'; only t23846/end-of-epoch takes it\n"
    assert capsys.readouterr().err == said
