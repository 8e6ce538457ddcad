"""`tfdist export`: writes a trained model as a SavedModel without its reader."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from tfdist import export
from tfdist.cli.arguments import add_json
from tfdist.cli.output import PipeConsole
from tfdist.errors import HELD, ConfigError
from tfdist.lazy import require_tensorflow

_DESCRIPTION = """\
Writes a trained model for serving, as MODEL/VERSION: a SavedModel that takes the features of a
request where the training graph read them from files. The folder appears when the model is checked:
it runs at batches 1 and 3 as a C++ server would run it, and computes what the trained one computes.

The inputs are found where the reader ends, and at placeholders. For example:

  tfdist export checkpoints/model-1000 models/ratings --output score --records data/*.tfrecord
"""

# What the function calls its parameters, and the user of the command its arguments.
_FIELDS = {
    "source": "SOURCE",
    "directory": "MODEL",
    "outputs": "--output",
    "inputs": "--input",
    "constants": "--constant",
    "checkpoint": "--checkpoint",
    "records": "--records",
    "ids": "--ids",
    "version": "--version",
    "freeze": "--freeze",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `export` to the subcommands."""
    parser = commands.add_parser(
        "export",
        help="write a trained model as a SavedModel without its reader",
        description=_DESCRIPTION,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .meta file, a checkpoint or a folder with one; a frozen .pb; a .keras file",
    )
    parser.add_argument("directory", metavar="MODEL", help="the folder of the model")
    parser.add_argument(
        "--output",
        action="append",
        metavar="[NAME=]TENSOR",
        help="a tensor to compute; of a Keras model, the name of an output; can be repeated",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=TENSOR",
        help="a tensor where the graph is cut; three with commas for a SparseTensor: its indices, "
        "values and dense shape; can be repeated",
    )
    parser.add_argument(
        "--constant",
        action="append",
        default=[],
        metavar="TENSOR=VALUE",
        help="the value, as JSON, of a placeholder that no request gives; can be repeated",
    )
    parser.add_argument("--checkpoint", help="the checkpoint (default: the one of the .meta file)")
    parser.add_argument(
        "--records",
        nargs="+",
        metavar="FILE",
        help="TFRecord files to check the model with (default: made up rows)",
    )
    parser.add_argument(
        "--ids",
        action="append",
        default=[],
        metavar="NAME=N",
        help="the ids of this input are less than N; a request with another one gets an error",
    )
    parser.add_argument(
        "--version",
        type=int,
        metavar="N",
        help="the number of the version (default: the first one that is free)",
    )
    parser.add_argument(
        "--freeze", action="store_true", help="also write a GraphDef without variables"
    )
    add_json(parser)
    parser.set_defaults(command_function=command)


def command(parsed: argparse.Namespace) -> int:
    """Exports the model, and prints what it takes and returns."""
    require_tensorflow("tfdist export")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import, which logs
    outputs, inputs = _outputs(parsed.output), _inputs(parsed.input) or None
    ids = dict(_number(text) for text in parsed.ids)
    constants, source = _constants(parsed.constant) or None, _source(parsed.source)
    try:
        exported = export.export_model(
            source,
            parsed.directory,
            outputs=outputs,
            inputs=inputs,
            constants=constants,
            checkpoint=parsed.checkpoint,
            records=parsed.records,
            ids=ids,
            version=parsed.version,
            freeze=parsed.freeze,
        )
    except ConfigError as error:
        raise ConfigError(_FIELDS.get(error.field, error.field), error.value, error.rule) from error
    about = {
        name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list(), "sparse": _is_sparse(spec)}
        for name, spec in exported.inputs.items()
    }
    if parsed.json:
        print(
            json.dumps(
                {
                    "path": exported.path,
                    "inputs": about,
                    "outputs": exported.outputs,
                    "signatures": exported.signatures,
                    "num_records": exported.num_records,
                    "frozen": exported.frozen,
                    "exit_code": HELD,
                }
            )
        )
        return HELD
    console = PipeConsole(highlight=False)
    console.out(exported.path)
    for name, each in about.items():
        kind = "SparseTensor" if each["sparse"] else "tensor"
        console.out(f"  input {name}: {kind} of {each['dtype']}, shape {_shape(each['shape'])}")
    console.out(f"  outputs: {', '.join(exported.outputs)}")
    console.out(f"  signatures: {', '.join(exported.signatures)}")
    rows = f"{exported.num_records} real records" if exported.num_records else "made up rows"
    console.out(f"  checked at batches 1 and 3 with {rows}")
    return HELD


def _source(path: str) -> Any:
    if not path.endswith(".keras"):
        return path
    import tensorflow as tf

    try:
        return tf.keras.models.load_model(path, compile=False)
    except (OSError, ValueError) as error:
        raise ConfigError("SOURCE", path, f"must be a Keras model ({error})") from error


def _outputs(texts: Sequence[str] | None) -> Any:
    """A list of tensors, or a mapping if a name is given."""
    if texts is None or not any("=" in text for text in texts):
        return texts
    pairs = [text.split("=", 1) if "=" in text else [text, text] for text in texts]
    return dict(pairs)


def _inputs(texts: Sequence[str]) -> dict[str, Any]:
    named = {}
    for text in texts:
        name, tensors = _pair("--input", text, "NAME=TENSOR")
        parts = tensors.split(",")
        named[name] = parts[0] if len(parts) == 1 else tuple(parts)
    return named


def _constants(texts: Sequence[str]) -> dict[str, Any]:
    values = {}
    for text in texts:
        name, value = _pair("--constant", text, "TENSOR=VALUE")
        try:
            values[name] = json.loads(value)
        except ValueError:
            rule = 'must have a value in JSON, such as 1.0, false or "text"'
            raise ConfigError("--constant", text, rule) from None
    return values


def _number(text: str) -> tuple[str, int]:
    name, value = _pair("--ids", text, "NAME=N")
    if not (value.isascii() and value.isdecimal()):
        raise ConfigError("--ids", text, "must be NAME=N with a whole number")
    return name, int(value)


def _pair(field: str, text: str, form: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise ConfigError(field, text, f"must be {form}")
    return name, value


def _is_sparse(spec: Any) -> bool:
    return type(spec).__name__ == "SparseTensorSpec"


def _shape(sizes: Sequence[int | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in sizes)}]"
