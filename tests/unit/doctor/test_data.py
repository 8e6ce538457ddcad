"""The files of --data must suffice for the trainers."""

import pytest

from tfdist.doctor.examination import check_data


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.csv", "b.csv", "deep/c.csv"):
        (tmp_path / name).write_text("1\n")
    return tmp_path


def found(pattern, trainers):
    return [(f.check.removeprefix("data."), f.severity) for f in check_data(pattern, trainers)]


@pytest.mark.parametrize(("pattern", "trainers"), [("*.csv", 2), ("*.csv", None), ("**/*.csv", 3)])
def test_a_file_for_each_trainer_is_enough(folder, pattern, trainers):
    assert found(f"{folder}/{pattern}", trainers) == []


@pytest.mark.parametrize(("pattern", "trainers"), [("*.csv", 3), ("**/*.csv", 4)])
def test_fewer_files_than_trainers_is_a_warning(folder, pattern, trainers):
    assert found(f"{folder}/{pattern}", trainers) == [("too_few_files", "warning")]


@pytest.mark.parametrize("pattern", ["*.tsv", "deep"])
def test_no_file_is_an_error(folder, pattern):
    assert found(f"{folder}/{pattern}", 1) == [("no_match", "error")]


def test_an_empty_file_is_a_warning(folder):
    (folder / "d.csv").touch()
    assert found(f"{folder}/*.csv", 1) == [("empty", "warning")]


def test_remote_files_are_not_checked():
    assert found("gs://bucket/*.csv", 9) == [("remote", "note")]
