"""The training loop of one trainer."""

import argparse
import tempfile
import time
from typing import Any

import movielens_data
import movielens_model
import movielens_report
import tensorflow as tf

import tfdist
from tfdist.train import checkpoint, graph, telemetry

WAIT_SECS = 300.0  # for the slowest trainer, at the end of an epoch


def train(task: tfdist.Task, target: str, args: argparse.Namespace) -> list[str]:
    """Trains for `args.epochs`; on the chief, returns what did not turn out as promised."""
    # The optimizers and the Saver of TensorFlow 1 warn of their age at every use.
    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)
    meta = movielens_data.load_meta(args.data)
    mine = slice(task.rank, None, len(task.trainers))
    model = movielens_model.build(
        task, meta, movielens_data.part_files(args.data)[mine], args.batch_size
    )
    saver = checkpoint.Checkpointer(args.model_dir or tempfile.mkdtemp(prefix="movielens-"))
    reports = telemetry.Reports(task, "epochs")
    loop = Loop(task, model, args, sum(meta.part_sizes[mine]))

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
        return summary.finish(reports.collect(args.epochs + 1)) if task.is_chief else []


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
        self._progress = tfdist.Progress.from_env()

    def train_epoch(self, session: Any, epoch: int, left: float | None) -> telemetry.EpochReport:
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
