"""Trains a recommender on MovieLens with parameter servers, and accounts for every example.

    tfdist run --ps 2 --workers 3 examples/movielens.py

Matrix factorisation, trained asynchronously: each trainer reads its own files, of deliberately
uneven sizes, and updates embeddings that lie partitioned over the ps. At the end of each epoch all
wait for the slowest at a barrier, in whose action the chief saves and evaluates the model.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import movielens_data
import movielens_model
import movielens_report
import tensorflow as tf

import tfdist
from tfdist.train import checkpoint, graph, telemetry

DATA = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tfdist" / "movielens"
WAIT_SECS = 300.0  # for the slowest trainer, at the end of an epoch


def main(args: argparse.Namespace) -> None:
    task = tfdist.Task.from_env()
    with tfdist.trainer_server(task) as target:
        if args.data is None:
            args.data = DATA
            prepare = tfdist.Barrier(task, "prepare", action=lambda: movielens_data.prepare(DATA))
            prepare.wait(timeout=WAIT_SECS)
        with tf.Graph().as_default():
            kept = train(task, target, args)
    if not kept:
        sys.exit(1)


def train(task: tfdist.Task, target: str, args: argparse.Namespace) -> bool:
    """Trains for `args.epochs`; False if the chief found that a promise was not kept."""
    meta = movielens_data.load_meta(args.data)
    files = movielens_data.part_files(args.data)[task.rank :: len(task.trainers)]
    model = movielens_model.build(task, meta, files, args.batch_size)
    saver = checkpoint.Checkpointer(args.model_dir or tempfile.mkdtemp(prefix="movielens-"))
    reports = telemetry.Reports(task, "epochs")
    loop = Loop(task, model, args, sum(meta.part_sizes[task.rank :: len(task.trainers)]))

    with graph.session(task, target, restore=saver.restore) as session:
        first_step = int(session.run(model.global_step)) if task.is_chief else 0
        summary = movielens_report.Summary(args.data, meta.num_train, first_step, args.json)

        def save_and_evaluate() -> None:
            saved = saver.save(session)
            rmse = movielens_model.rmse(session, model, movielens_data.load_heldout(args.data))
            summary.add_epoch(reports.collect(epoch), end.statistics().last_wait, rmse, saved)

        tfdist.Barrier(task, "start", timeout=WAIT_SECS).wait()
        end = tfdist.Barrier(task, "end of epoch", action=save_and_evaluate, timeout=WAIT_SECS)
        left = None
        for epoch in range(1, args.epochs + 1):
            reports.send(loop.train_epoch(session, epoch, left))
            end.wait()
            left = reports.now()
        reports.send(telemetry.EpochReport(task.name, args.epochs + 1, 0, 0, 0.0, left=left))
        tfdist.Barrier(task, "farewell", timeout=WAIT_SECS).wait()
        return not task.is_chief or summary.finish(reports.collect(args.epochs + 1))


class Loop:
    """One trainer's steps, and what it reports of them."""

    def __init__(
        self,
        task: tfdist.Task,
        model: movielens_model.Model,
        args: argparse.Namespace,
        num_examples: int,
    ) -> None:
        self._task, self._model, self._num_examples = task, model, num_examples
        self._slowness = args.slow.get(task.name, 1.0)
        self._num_epochs = args.epochs
        self._progress = telemetry.Progress.from_env()

    def train_epoch(self, session, epoch: int, left: float | None) -> telemetry.EpochReport:
        """Trains until this trainer's data has ended; nothing is raised there."""
        model, ledger = self._model, tfdist.Ledger()
        steps = examples = 0
        start = time.monotonic()
        session.run(model.start_epoch)
        while True:
            step_start = time.monotonic()
            _, example, weight, has_value = session.run(
                [model.step, model.example, model.weight, model.has_value]
            )
            if not has_value:
                break
            visited = example[weight > 0]
            ledger.add(visited)
            steps, examples = steps + 1, examples + len(visited)
            self._progress.update(
                f"epoch {epoch} of {self._num_epochs}", examples, self._num_examples
            )
            time.sleep((self._slowness - 1) * (time.monotonic() - step_start))
        self._progress.update(f"epoch {epoch} done, waits for the others", examples, examples)
        return telemetry.EpochReport(
            self._task.name,
            epoch,
            steps,
            examples,
            seconds=time.monotonic() - start,
            visits=ledger.ranges(),
            left=left,
        )


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
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return parser.parse_args()


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; a whole number, at least 1")
    return int(text)


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
    main(parse_args())
