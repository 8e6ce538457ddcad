"""`tfdist plan --plot` draws plans; matplotlib takes a second to import."""

from tfdist.cli import main

GPT3 = "plan --preset gpt3-175b --device a100-80g --tokens 300e9"


def test_pictures_are_drawn(capsys, tmp_path):
    for name, command in (
        ("plan.svg", f"{GPT3} --devices 1024"),
        ("front.svg", f"{GPT3} --cheapest --most-devices 512"),
    ):
        assert main([*command.split(), "--plot", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text("utf-8").count("<path") > 10
    assert main([*GPT3.split(), "--devices", "1024", "--plot", str(tmp_path / "no/plan.svg")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
