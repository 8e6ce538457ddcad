"""Files against workers."""

import pytest

from tfdist.doctor import data


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.csv", "b.csv", "deep/c.csv"):
        (tmp_path / name).write_text("1\n")
    return tmp_path


def found(pattern, trainers):
    return [(f.check.removeprefix("data."), f.severity) for f in data.check(pattern, trainers)]


@pytest.mark.parametrize(("pattern", "trainers"), [("*.csv", 2), ("*.csv", None), ("**/*.csv", 3)])
def test_enough_files(folder, pattern, trainers):
    assert found(f"{folder}/{pattern}", trainers) == []


@pytest.mark.parametrize(("pattern", "trainers"), [("*.csv", 3), ("**/*.csv", 4)])
def test_too_few_files(folder, pattern, trainers):
    assert found(f"{folder}/{pattern}", trainers) == [("too_few_files", "warning")]


@pytest.mark.parametrize("pattern", ["*.tsv", "deep"])
def test_no_file(folder, pattern):
    assert found(f"{folder}/{pattern}", 1) == [("no_match", "error")]


def test_an_empty_file(folder):
    (folder / "d.csv").touch()
    assert found(f"{folder}/*.csv", 1) == [("empty", "warning")]


def test_files_elsewhere_are_not_looked_at():
    assert found("gs://bucket/*.csv", 9) == [("remote", "note")]
