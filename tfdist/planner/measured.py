"""Iterations that were measured, or are to be predicted: one row of a table each."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tfdist.errors import ConfigError, checked_path, checked_several
from tfdist.planner.device_work import Work
from tfdist.planner.devices import Device
from tfdist.planner.training import Training
from tfdist.planner.transformer import LARGEST, Transformer

SHAPE = ("hidden", "heads", "layers")
BATCH, DIVISION = ("global_batch", "micro_batch"), ("sequence", "tensor", "data", "pipeline")
COLUMNS = ("gpus", *BATCH, *SHAPE, *DIVISION)
TIME, OUT_OF_MEMORY = "iteration_ms", "oom"
Table: TypeAlias = "str | os.PathLike[str] | Iterable[Mapping[str, Any]]"


@dataclass(frozen=True)
class Iteration:
    """One row: a training, and how long its iteration takes.

    Attributes:
        place: for messages: file and line.
        given: the row's values by column.
        model: the shape.
        training: how it is trained.
        work: of a device.
        milliseconds: None if it was not measured.
        out_of_memory: whether it was tried, and ran out of memory.
    """

    place: str
    given: dict[str, Any]
    model: Transformer
    training: Training
    work: Work
    milliseconds: float | None
    out_of_memory: bool


def read_iterations(
    name: str, table: Table, device: Device, vocabulary: int, recomputation: str
) -> list[Iteration]:
    """The rows of a CSV file, or a list of rows that are dictionaries.

    The columns are `gpus`, `global_batch`, `micro_batch`, `hidden`, `heads`, `layers`, `sequence`,
    `tensor`, `data`, `pipeline` and `iteration_ms`, in any order; others are ignored. The last one
    may be missing or empty; "oom" means that the iteration ran out of memory. "Hidden size" and
    "tensor parallelism" are understood, too.

    Args:
        name: of the table in messages, unless it is a file.
        table: the path of the file, or the rows.
        device: that all rows ran on.
        vocabulary: of all models.
        recomputation: of all trainings, as in `Training`.

    Raises:
        ConfigError: the file cannot be read, a column is missing, a value is not possible. It names
            file, line and column.
    """
    if isinstance(table, (str, os.PathLike)):
        rows = _rows_of_file(checked_path(name, table))
    else:
        several = checked_several(name, table, "must be the path of a CSV file, or a list of rows")
        rows = ((f"{name}[{index}]", row) for index, row in enumerate(several))
    found = [_iteration(place, row, device, vocabulary, recomputation) for place, row in rows]
    if not found:
        raise ConfigError(name, str(table), "must have at least one row")
    return found


def _rows_of_file(path: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets write a mark
            lines = csv.reader(file)
            columns = [_column(text) for text in next(lines, [])]
            for name in COLUMNS:
                if columns.count(name) != 1:
                    raise ConfigError(f"{path}, line 1", columns, f"must have one column {name}")
            for cells in lines:
                if any(cell.strip() for cell in cells):
                    # A short line leaves its last columns empty.
                    padded = [*cells, *[""] * (len(columns) - len(cells))]
                    yield f"{path}, line {lines.line_num}", dict(zip(columns, padded, strict=False))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(path, str(error), "must be a CSV file that can be read") from error


def _column(text: str) -> str:
    """A heading in our spelling: "Hidden size" is `hidden`, "# GPUs" is `gpus`."""
    words = re.findall(r"[a-z]+", text.lower())
    other = {"hidden_size": "hidden", "attention_heads": "heads", "sequence_length": "sequence"}
    name = "_".join(word for word in words if word not in ("parallelism", "time"))
    return other.get(name, name)


def _iteration(
    place: str, row: Any, device: Device, vocabulary: int, recomputation: str
) -> Iteration:
    if not isinstance(row, Mapping):
        raise ConfigError(place, row, "must be a dictionary of columns")
    given = {name: _integer(place, row, name) for name in COLUMNS}
    time = row.get(TIME)
    out_of_memory = isinstance(time, str) and time.strip().lower() == OUT_OF_MEMORY
    milliseconds = None if time in (None, "") or out_of_memory else _milliseconds(place, time)
    shape: dict[str, Any] = {name: given[name] for name in SHAPE}
    division: dict[str, Any] = {name: given[name] for name in (*BATCH, *DIVISION)}
    try:
        model = Transformer(vocabulary=vocabulary, positions=given["sequence"], **shape)
        training = Training(recomputation=recomputation, **division)
        work = Work.of(model, training, device)
    except ConfigError as error:  # a field is named like its column
        raise ConfigError(f"{place}, {error.field}", error.value, error.rule) from error
    if training.devices != given["gpus"]:
        rule = f"must be tensor * data * pipeline, which is {training.devices}"
        raise ConfigError(f"{place}, gpus", given["gpus"], rule)
    return Iteration(place, given, model, training, work, milliseconds, out_of_memory)


def _integer(place: str, row: Mapping[str, Any], name: str) -> int:
    number = _number(f"{place}, {name}", row.get(name, ""), "must be a whole number, at least 1")
    if not (number.is_integer() and 1 <= number <= LARGEST):
        raise ConfigError(f"{place}, {name}", row[name], "must be a whole number, at least 1")
    return int(number)


def _milliseconds(place: str, value: Any) -> float:
    rule = "must be a number of milliseconds, more than 0, or oom"
    number = _number(f"{place}, {TIME}", value, rule)
    if not 0 < number < math.inf:
        raise ConfigError(f"{place}, {TIME}", value, rule)
    return number


def _number(field: str, value: Any, rule: str) -> float:
    if value is None or value == "":
        raise ConfigError(field, None, rule, missing=True)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(field, value, rule) from error
