"""Calibration by measured iterations: errors on rows that it has not seen, and wrong tables."""

import csv
import functools
import json
import random
import statistics
from pathlib import Path

import numpy as np
import pytest

from tfdist.errors import ConfigError
from tfdist.planner.calibration import LEAST, calibrate
from tfdist.planner.device_work import Work
from tfdist.planner.devices import find_device
from tfdist.planner.iteration import Achieved, iteration_time, seconds
from tfdist.planner.measured import read_iterations
from tfdist.planner.training import Training
from tfdist.planner.transformer import Transformer

TABLES = Path(__file__).parent / "planner_tables"
SINGLE, MULTI = TABLES / "vtrain_single.csv", TABLES / "vtrain_multi.csv"
TARGETS = {SINGLE: 0.08, MULTI: 0.14}
VTRAIN = {SINGLE: 0.0837, MULTI: 0.1473}  # arXiv 2312.12391, which profiles each layer
SPLITS = 3


@functools.cache
def rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@functools.cache
def split(path, seed):
    """20 rows to calibrate by, and up to 120 others."""
    drawn = random.Random(seed).sample(rows(path), len(rows(path)))
    return drawn[:20], drawn[20:140]


@functools.cache
def predicted(path, seed):
    measured, others = split(path, seed)
    return calibrate(measured).predict(others)


@pytest.mark.parametrize("seed", range(SPLITS))
@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_the_error_on_other_rows_is_under_the_target(path, seed):
    found = predicted(path, seed)
    assert found["mean_error"] < TARGETS[path] < VTRAIN[path]
    errors = [row["error"] for row in found["rows"]]
    assert found["mean_error"] == pytest.approx(statistics.mean(errors))
    assert found["max_error"] == max(errors)
    for row, error in zip(found["rows"], errors, strict=True):
        assert error == pytest.approx(abs(row["predicted_ms"] / row["iteration_ms"] - 1))


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_times_of_the_wrong_rows_predict_nothing(path):
    measured, others = split(path, 0)
    times = [row["iteration_ms"] for row in measured]
    wrong = [
        row | {"iteration_ms": t} for row, t in zip(measured, times[1:] + times[:1], strict=True)
    ]
    assert calibrate(wrong).predict(others)["mean_error"] > 2 * TARGETS[path]


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_about_90_percent_of_the_measurements_are_in_the_intervals(path):
    inside = [
        row["interval"][0] < row["iteration_ms"] < row["interval"][1]
        for seed in range(SPLITS)
        for row in predicted(path, seed)["rows"]
    ]
    assert 0.85 < statistics.mean(inside) < 0.98


def test_the_intervals_are_narrower_near_measured_rows():
    measured, others = split(SINGLE, 0)
    calibration = calibrate(measured)
    widths = [
        statistics.mean(np.log(row["interval"][1] / row["interval"][0]) for row in found["rows"])
        for found in (calibration.predict(measured), calibration.predict(others))
    ]
    assert 2 * widths[0] < widths[1]


def test_more_rows_predict_better():
    others = rows(SINGLE)[80:200]
    few, many = (calibrate(rows(SINGLE)[:n]).predict(others)["mean_error"] for n in (LEAST, 80))
    assert many < few / 2


def test_the_true_time_of_a_row_does_not_influence_its_prediction():
    measured, others = split(MULTI, 1)
    unknown = [{k: v for k, v in row.items() if k != "iteration_ms"} for row in others]
    found = calibrate(measured).predict(unknown)
    known = predicted(MULTI, 1)
    for one, other in zip(found["rows"], known["rows"], strict=True):
        assert one["predicted_ms"] == other["predicted_ms"]
        assert one["error"] is None
    assert (found["mean_error"], found["max_error"]) == (None, None)
    assert json.loads(json.dumps(found)) == found


TRUE = Achieved(matrix=0.65, memory=0.5, launch_secs=1e-3, tensor_network=0.45, data_network=0.35)


def synthetic(path, achieved=TRUE):
    """Rows of a table with the times of a machine that achieves just this."""
    chosen = random.Random(0).sample(rows(path), 80)
    known = read_iterations("rows", chosen, find_device("a100-80g"), 51200, "full")
    times = 1e3 * seconds(Work.of_several(each.work for each in known), achieved).total
    return [row | {"iteration_ms": t} for row, t in zip(chosen, times.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("path", "names"),
    [(SINGLE, ["launch_secs"]), (MULTI, ["matrix", "tensor_network"])],
    ids=["single", "multi"],
)
def test_the_constants_of_a_made_up_machine_are_found(path, names):
    made = synthetic(path)
    calibration = calibrate(made[:40])
    assert calibration.predict(made[40:])["mean_error"] < 0.015
    for name in names:
        found = getattr(calibration.achieved, name)
        assert found == pytest.approx(getattr(TRUE, name), rel=0.15)
        assert abs(found / getattr(Achieved(), name) - 1) > 0.1  # it has moved
    inside = [c.interval[0] < getattr(TRUE, c.name) < c.interval[1] for c in calibration.constants]
    assert sum(inside) >= 11  # of 12


def test_what_the_rows_do_not_show_keeps_its_typical_value():
    calibration = calibrate(synthetic(SINGLE))  # one machine uses no network
    assert calibration.achieved.data_network == pytest.approx(Achieved().data_network)
    assert calibration.spread["data_network"] == pytest.approx(0.4)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_an_outlier_is_named_and_does_little_harm(factor):
    measured, others = split(SINGLE, 0)
    wrong = str(factor * float(measured[7]["iteration_ms"]))
    calibration = calibrate([*measured[:7], measured[7] | {"iteration_ms": wrong}, *measured[8:]])
    assert calibration.outliers == ("measured[7]",)
    assert calibration.predict(others)["mean_error"] < TARGETS[SINGLE]
    assert calibrate(measured).outliers == ()


def test_the_constants_serve_other_models():
    calibration = calibrate(MULTI)
    model = Transformer(96, 12288, 96, 51200)
    training = Training(1536, 2048, 2, tensor=8, pipeline=8, data=8, recomputation="full")
    found = iteration_time(model, training, find_device("a100-80g"), calibration.achieved)
    assert found.value == pytest.approx(55.1096, rel=0.1)


def test_the_rows_that_should_fit_and_did_not_are_counted():
    measured, others = split(MULTI, 0)
    large = others[0] | {"micro_batch": "8", "tensor": "1", "data": "8", "pipeline": "1"}
    large |= {"gpus": "8", "global_batch": "64", "hidden": "12288", "heads": "96", "layers": "96"}
    table = [
        *others[:3],
        others[3] | {"iteration_ms": " OOM"},
        large | {"iteration_ms": "oom"},
        large,
    ]
    found = calibrate([*measured, large | {"iteration_ms": "oom"}]).predict(table)
    assert [row["fits"] for row in found["rows"]] == [True] * 4 + [False] * 2
    assert found["fits"] == {
        **{"planned": 4, "out_of_memory": 1, "share": 0.25},
        "measured_without": 1,
    }
    assert [row["error"] is None for row in found["rows"]] == [False] * 3 + [True] * 2 + [False]


def test_a_calibration_repeats_exactly():
    assert predicted(MULTI, 0) == calibrate(split(MULTI, 0)[0]).predict(split(MULTI, 0)[1])


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding)
    return path


HEADER = (
    "gpus,global_batch,micro_batch,hidden,heads,layers,sequence,tensor,data,pipeline,iteration_ms"
)
ROW = "8,32,4,1024,16,24,1024,2,2,2,219.7"


def test_a_file_may_have_a_mark_other_headings_and_more_columns(tmp_path):
    titles = (
        "Parameters (billion),# GPUs,global batch,micro batch,hidden size,attention heads,# layers,"
        "sequence length,tensor parallelism,data parallelism,pipeline parallelism,"
        "iteration time (ms)"
    )
    plain = write(tmp_path / "plain.csv", "\n".join([HEADER, *[ROW] * 5]))
    other = write(
        tmp_path / "other.csv", "\r\n".join([titles, *["0.3," + ROW] * 5, ""]), "utf-8-sig"
    )
    assert calibrate(plain).predict(other) == calibrate(other).predict(plain)
    assert calibrate(str(plain)).measured == 5


@pytest.mark.parametrize(
    ("old", "new", "column", "rule"),
    [
        (",1024,16", ",wide,16", "hidden", "must be a whole number, at least 1"),
        (",1024,16", ",0,16", "hidden", "must be a whole number, at least 1"),
        (",1024,16", ",-8,16", "hidden", "must be a whole number, at least 1"),
        (",1024,16", ",1024.5,16", "hidden", "must be a whole number, at least 1"),
        (",1024,16", ",,16", "hidden", "must be a whole number, at least 1"),
        (",1024,16", ",1e99,16", "hidden", "must be a whole number, at least 1"),
        (",16,24", ",15,24", "heads", "must divide hidden"),
        ("8,32,4", "16,32,4", "gpus", r"must be tensor \* data \* pipeline, which is 8"),
        ("8,32,4", "8,33,4", "global_batch", "must be a multiple of data"),
        ("8,32,4", "8,32,5", "micro_batch", "must divide global_batch / data, which is 16"),
        (",24,1024", ",1,1024", "pipeline", "must be at most the layers"),
        ("219.7", "fast", "iteration_ms", "must be a number of milliseconds, more than 0"),
        ("219.7", "0", "iteration_ms", "must be a number of milliseconds, more than 0"),
        ("219.7", "-3", "iteration_ms", "must be a number of milliseconds, more than 0"),
        ("219.7", "nan", "iteration_ms", "must be a number of milliseconds, more than 0"),
        ("219.7", "inf", "iteration_ms", "must be a number of milliseconds, more than 0"),
        (",2,219.7", "", "pipeline", "must be a whole number, at least 1"),
        ("219.7", "", "iteration_ms", "must be measured in every row"),
    ],
)
def test_a_wrong_cell_is_named_by_file_line_and_column(tmp_path, old, new, column, rule):
    assert old in ROW
    path = write(
        tmp_path / "runs.csv", "\n".join([HEADER, ROW, "", ROW.replace(old, new, 1), *[ROW] * 4])
    )
    with pytest.raises(ConfigError, match=rule) as error:
        calibrate(path)
    assert error.value.field == f"{path}, line 4, {column}"


def test_a_missing_column_is_an_error(tmp_path):
    path = write(tmp_path / "runs.csv", "\n".join([HEADER.replace("hidden", "width"), *[ROW] * 5]))
    with pytest.raises(ConfigError, match=r"line 1: .*'width'.*; must have one column hidden"):
        calibrate(path)


def test_a_column_that_is_there_twice_is_an_error(tmp_path):
    path = write(tmp_path / "runs.csv", "\n".join([HEADER + ",Hidden size", *[ROW + ",1"] * 5]))
    with pytest.raises(ConfigError, match=r"line 1: .*; must have one column hidden"):
        calibrate(path)


def test_a_table_without_rows_is_an_error(tmp_path):
    path = write(tmp_path / "runs.csv", HEADER)
    with pytest.raises(ConfigError, match=r"runs.csv.*must have at least one row"):
        calibrate(path)
    with pytest.raises(ConfigError, match="must have at least one row"):
        calibrate(split(SINGLE, 0)[0]).predict([])


def test_too_few_rows_are_an_error():
    with pytest.raises(ConfigError, match="measured: got 4; must have at least 5 rows"):
        calibrate(rows(SINGLE)[:4])
    assert calibrate(rows(SINGLE)[:5]).measured == 5


def test_times_in_another_unit_are_an_error():
    in_seconds = [
        row | {"iteration_ms": float(row["iteration_ms"]) / 1e3} for row in rows(SINGLE)[:5]
    ]
    with pytest.raises(ConfigError, match=r"must be milliseconds on a100-80g; they are 0\.00"):
        calibrate(in_seconds)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, content):
    path = tmp_path / "runs.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="must be a CSV file that can be read"):
        calibrate(path)


@pytest.mark.parametrize("table", [None, 3, [3], [{"hidden": [1]}]])
def test_what_is_no_table_is_an_error(table):
    with pytest.raises(ConfigError, match="measured"):
        calibrate(table)


@pytest.mark.parametrize(
    ("name", "value"), [("device", "a1000"), ("vocabulary", 0), ("recomputation", "some")]
)
def test_a_wrong_setting_is_an_error(name, value):
    with pytest.raises(ConfigError, match=name):
        calibrate(rows(SINGLE)[:5], **{name: value})
