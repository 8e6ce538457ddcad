"""Trains a recommender on MovieLens with parameter servers, and accounts for every example.

    tfdist run --ps 2 --workers 3 examples/movielens.py

Matrix factorisation, trained asynchronously: each trainer reads its own files, of deliberately
uneven sizes, and updates embeddings that lie partitioned over the ps. At the end of each epoch all
wait for the slowest at a barrier, in whose action the chief saves and evaluates the model.
"""

import argparse
import os
import sys
from pathlib import Path

import movielens_data

import tfdist

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
DATA = CACHE / "tfdist" / "movielens-1"  # counts up when the files change


def main(args: argparse.Namespace) -> None:
    task = tfdist.Task.from_env()
    if args.data is not None:
        movielens_data.part_files(args.data)
    with tfdist.worker_server(task) as target:
        # Only now, when all is known to be right, come the seconds that TensorFlow takes.
        import movielens_train

        if args.data is None:
            args.data = DATA
            prepare = tfdist.Barrier(task, "prepare", action=lambda: movielens_data.prepare(DATA))
            prepare.wait(timeout=movielens_train.WAIT_SECS)
        with movielens_train.tf.Graph().as_default():
            broken_promises = movielens_train.train(task, target, args)
    if broken_promises:
        sys.exit("\n".join(broken_promises))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--data",
        help="a folder that movielens_data.prepare made (default: make one in the user's cache)",
    )
    parser.add_argument(
        "--model-dir",
        help="for checkpoints; training goes on from the last one there (default: a new folder)",
    )
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--batch-size", type=positive, default=256)
    parser.add_argument(
        "--slow",
        type=slowness,
        default={},
        metavar="TASK=FACTOR",
        help="slow a trainer down: worker:1=5 takes five times as long for a step",
    )
    parser.add_argument(
        "--reads",
        type=folder,
        metavar="FOLDER",
        help="each trainer writes there which examples it has read, a file an epoch",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return parser.parse_args()


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; a whole number, at least 1")
    return int(text)


def folder(text: str) -> Path:
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}; a folder ({error.strerror})") from None
    return Path(text)


def slowness(text: str) -> dict[str, float]:
    name, _, factor = text.partition("=")
    try:
        if float(factor) < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; a task and a factor of at least 1, such as worker:1=5"
        ) from None
    return {name: float(factor)}


if __name__ == "__main__":
    with tfdist.one_line_errors():
        main(parse_args())
