"""Trains a recommender on MovieLens with parameter servers, and accounts for every example.

    tfdist run --ps 2 --workers 3 examples/movielens.py

Matrix factorization, trained asynchronously: each trainer reads its own files, whose sizes differ
on purpose, and updates embeddings that are partitioned over the ps. At the end of each epoch all
trainers wait at a barrier for the slowest. In its action the chief saves and evaluates the model.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

import movielens_data

import tfdist

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
DATA = CACHE / "tfdist" / "movielens-1"  # the number grows when the files change


def train(task: tfdist.Task, target: str, args: argparse.Namespace) -> None:
    import movielens_train  # imports TensorFlow, which takes seconds

    if args.data is None:
        args.data = DATA
        prepare = tfdist.Barrier(task, "prepare", action=lambda: movielens_data.prepare(DATA))
        prepare.wait(timeout=movielens_train.WAIT_SECS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so the folder goes after Ctrl-C too
    with tempfile.TemporaryDirectory(prefix="movielens-") as scratch:
        args.model_dir = args.model_dir or scratch
        broken_promises = movielens_train.train(task, target, args)
    if broken_promises:
        sys.exit("\n".join(broken_promises))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--data",
        type=data_folder,
        help="a folder that movielens_data.prepare made (default: one in the user's cache)",
    )
    parser.add_argument(
        "--model-dir",
        help="for checkpoints; training continues from the last one (default: a temporary folder)",
    )
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--batch-size", type=positive, default=256)
    parser.add_argument(
        "--slow",
        type=slowness,
        default={},
        metavar="TASK=FACTOR",
        help="slow a trainer down: with worker:1=5 its steps take five times as long",
    )
    parser.add_argument(
        "--reads",
        type=folder,
        metavar="FOLDER",
        help="each trainer writes there which examples it read, one file an epoch",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return parser.parse_args()


def data_folder(text: str) -> str:
    try:
        movielens_data.part_files(text)
    except tfdist.ConfigError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}; {error.rule}") from None
    return text


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; must be a whole number of at least 1")
    return int(text)


def folder(text: str) -> Path:
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}; {error.strerror}") from None
    return Path(text)


def slowness(text: str) -> dict[str, float]:
    name, _, factor = text.partition("=")
    try:
        if float(factor) < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; must be a task and a factor of at least 1, such as worker:1=5"
        ) from None
    return {name: float(factor)}


if __name__ == "__main__":
    tfdist.run_task(train, parse_args())
