"""The command `tfdist` itself: its version, and wrong usage."""

import platform
import subprocess
import sys
from importlib import metadata

import pytest

import tfdist
from tfdist.cli import main


@pytest.mark.parametrize(
    ("owners", "line"),
    [
        (["tensorflow-cpu"], "TensorFlow 2.22.0 (tensorflow-cpu)"),
        (["tf-nightly", "tensorflow"], "TensorFlow 2.22.0 (tensorflow), 2.22.0 (tf-nightly)"),
        ([], "TensorFlow none"),
    ],
)
def test_the_version_names_the_distribution_that_provides_tensorflow(
    monkeypatch, capsys, owners, line
):
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"tensorflow": owners})
    monkeypatch.setattr(metadata, "version", lambda name: "2.22.0")
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert not end.value.code
    assert capsys.readouterr().out.splitlines() == [
        f"tfdist {tfdist.__version__}",
        line,
        f"Python {platform.python_version()}",
    ]


def test_the_version_is_found_without_an_import_of_tensorflow():
    code = (
        "import sys; from tfdist.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: print('tensorflow' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout.splitlines()[-1] == "False"


def test_an_unknown_option_is_shown_with_the_usage_of_its_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["status", "--wrong"])
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("usage: tfdist status ")
    assert errors.endswith("tfdist status: error: unrecognized arguments: --wrong\n")
