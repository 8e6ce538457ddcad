"""Exports a trained model: checked, and complete before its folder has its name."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdist.errors import ConfigError, checked_flag, checked_integer, checked_path
from tfdist.export import golden, sample, verify
from tfdist.export.feature import EXAMPLES, Feature
from tfdist.export.frozen import freeze as freeze_model
from tfdist.export.functions import FunctionSource, is_function
from tfdist.export.graph_source import GraphSource
from tfdist.export.saved_model import SERVING_DEFAULT
from tfdist.export.training_graph import load

FROZEN = "frozen.pb"


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        path: the folder of the version.
        inputs: what a request gives: the `tf.TensorSpec` or `tf.SparseTensorSpec` by name.
        outputs: the names of what it gets.
        signatures: the names of the signatures.
        num_records: how many real records it was checked with; 0 for made up ones.
        frozen: the path of the frozen graph, or None.
    """

    path: str
    inputs: dict[str, Any]
    outputs: tuple[str, ...]
    signatures: tuple[str, ...]
    num_records: int
    frozen: str | None


def export_model(
    source: Any,
    directory: str | os.PathLike[str],
    *,
    outputs: Mapping[str, Any] | Sequence[Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    constants: Mapping[Any, Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    records: str | Sequence[str] | None = None,
    ids: Mapping[str, int] | None = None,
    version: int | None = None,
    freeze: bool = False,
) -> Exported:
    """Exports a trained model for serving, without its reader, as `directory`/VERSION.

    The folder appears when it is complete and checked: the model runs at batches 1 and 3 in the
    graph that C++ would run, and computes there what the trained one computes. So a server that
    watches `directory` never loads half a model.

    Args:
        source: a training graph: a `tf.Graph`, a MetaGraphDef, the path of a `.meta` file, of a
            checkpoint or of a folder with one. Or a frozen GraphDef in a `.pb` or `.pbtxt` file. Or
            a `tf.function`, a `tf.Module` whose `__call__` is one, or a Keras model.
        directory: of the model; made if it is missing.
        outputs: of a graph, the tensors to compute: a list of names, or a mapping of the names of
            the outputs to tensors. Of a function, the names of what it returns.
        inputs: of a graph, tensors where it is cut, by the name of the input; three for a
            SparseTensor. Those that are not named are found: where the reader ends, and each
            placeholder. Of a function, a `tf.TensorSpec` by name, where it has no
            `input_signature`.
        constants: of a graph, the values of placeholders that no request gives, such as
            `{"is_training:0": False}`.
        checkpoint: of the graph; by default the one that belongs to the `.meta` file.
        records: TFRecord files of `tf.train.Example`s to check the model with. Without them rows
            are made up: small ids, fractions, and empty texts.
        ids: by the name of an input, the number of its ids: a request with another id gets an
            error. A table that is partitioned over several ps would look up a wrong row for it.
        version: the number of the folder; by default the first one that is free.
        freeze: whether to write also a GraphDef whose variables are constants.

    Raises:
        ConfigError: a parameter is wrong, or the exported model does not compute what was trained.
        OSError: the model cannot be written, for example because the disk is full.
    """
    checked_flag("freeze", freeze)
    folder = Path(checked_path("directory", directory))
    number = _next_version(folder) if version is None else checked_integer("version", version, 0)
    if (folder / str(number)).exists():
        raise ConfigError("version", number, f"is in {folder} already")
    model: FunctionSource | GraphSource
    if is_function(source):
        for field, value in (("constants", constants), ("checkpoint", checkpoint)):
            if value is not None:
                raise ConfigError(field, value, "is for a graph only")
        model = FunctionSource(source, inputs, outputs)
    else:
        model = GraphSource(load(source, checkpoint), inputs, outputs, constants)
    limits = _num_ids(model.features, ids or {})
    can_parse = all(each.parsed is not None for each in model.features)
    if records is not None and not can_parse:
        raise ConfigError(
            "records", records, "cannot be parsed: an input has no type of an Example"
        )
    found = sample.read_records(records) if records is not None else []
    used = found or (sample.made_up_records(model.features) if can_parse else [])
    with _unfinished(folder, number) as written, verify.quiet():
        model.write(str(written), limits)
        with verify.served(str(written)) as served:
            with model.trained() as trained:
                make = functools.partial(sample.rows, model.features, used)
                verify.compare(served, trained, make, model.trained_batch)
            answers = _answers(served, make, used)
            if freeze:
                freeze_model(served, model.features, written / FROZEN)
        golden.write(written, folder.name, answers)
    path = folder / str(number)
    return Exported(
        path=str(path),
        inputs={each.name: each.spec for each in model.features},
        outputs=tuple(answers[0].outputs),
        signatures=tuple(answer.signature for answer in answers),
        num_records=len(found),
        frozen=str(path / FROZEN) if freeze else None,
    )


def _num_ids(features: Sequence[Feature], ids: Mapping[str, int]) -> dict[str, int]:
    """The number of ids of some inputs.

    Raises:
        ConfigError: there is no such input, it has no whole numbers, or the number is none.
    """
    inputs = {each.name: each.dtype for each in features}
    for name, number in ids.items():
        if name not in inputs or not inputs[name].is_integer:
            known = ", ".join(name for name, dtype in inputs.items() if dtype.is_integer)
            raise ConfigError(
                "ids", name, f"must be an input with whole numbers: {known or 'none'}"
            )
        checked_integer("ids", number, 1)
    return dict(ids)


def _next_version(folder: Path) -> int:
    """One more than the highest version in the folder; 1 in a new one."""
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isascii() and name.isdecimal()), default=0) + 1


@contextmanager
def _unfinished(folder: Path, version: int) -> Iterator[Path]:
    """A folder for the files of that version; it gets its name at the end, unless an error ends it.

    No server takes it for a version before, because its name is no number.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        parent = Path(tempfile.mkdtemp(prefix=f"{version}.unfinished.", dir=folder))
    except OSError as error:
        rule = f"must be a folder that can be written ({error.strerror})"
        raise ConfigError("directory", str(folder), rule) from error
    try:
        yield parent / "model"  # TensorFlow creates it
        (parent / "model").rename(folder / str(version))
    finally:
        shutil.rmtree(parent)


def _answers(
    served: verify.ServedModel, make: Callable[[int], Any], records: Sequence[bytes]
) -> list[golden.Answer]:
    rows = make(max(verify.BATCHES))
    answers = [golden.Answer(SERVING_DEFAULT, rows, served.run(rows))]
    if EXAMPLES in served.signatures:
        serialized = {EXAMPLES: np.array(sample.cycled(records, max(verify.BATCHES)), object)}
        answers.append(golden.Answer(EXAMPLES, serialized, served.run(serialized, EXAMPLES)))
        verify.check_equal(answers[1].outputs, answers[0].outputs)
    return answers
