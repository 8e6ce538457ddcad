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
from tfdist.train import checkpoint, graph

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
    loop = Loop(model, args, task.name, sum(meta.part_sizes[mine]))

    with graph.session(task, target, restore=saver.restore) as session:
        first_step = int(session.run(model.global_step)) if task.is_chief else 0
        summary = movielens_report.Summary(args.data, first_step, args.json)

        def save_and_evaluate(result: tfdist.train.EpochResult) -> None:
            if result.number <= args.epochs:  # not after the farewell
                saved = saver.save(session)
                rmse = movielens_model.rmse(session, model, movielens_data.load_heldout(args.data))
                summary.add_epoch(result, epoch.last_wait(), rmse, saved)

        tfdist.Barrier(task, "start", timeout=WAIT_SECS).wait()
        epoch = tfdist.train.Epoch(
            task, "train", expected=meta.num_train, action=save_and_evaluate, timeout=WAIT_SECS
        )
        while epoch.number <= args.epochs:
            loop.train_epoch(session, epoch)
            epoch.finish().check()
        farewell = epoch.finish()  # one of no examples, which tells when each has left the last
        return summary.finish(farewell) if task.is_chief else []


class Loop:
    """One trainer's steps."""

    def __init__(
        self,
        model: movielens_model.Model,
        args: argparse.Namespace,
        name: str,
        num_examples: int,
    ) -> None:
        self._model, self._num_examples = model, num_examples
        self._slowness = args.slow.get(name, 1.0)
        self._num_epochs = args.epochs
        self._name, self._reads = name, args.reads
        self._progress = tfdist.Progress.from_env()

    def train_epoch(self, session: Any, epoch: tfdist.train.Epoch) -> None:
        """Trains until this trainer's data has ended; nothing is raised there."""
        model, examples, ledger = self._model, 0, tfdist.data.Ledger()
        session.run(model.start_epoch)
        while True:
            step_start = time.monotonic()
            _, example, weight, has_value = session.run(
                [model.step, model.example, model.weight, model.has_value]
            )
            if not has_value:
                break
            read = example[weight > 0]
            epoch.read(read)
            if self._reads:
                ledger.add(read)
            examples += len(read)
            self._progress.update(
                f"epoch {epoch.number} of {self._num_epochs}", examples, self._num_examples
            )
            time.sleep((self._slowness - 1) * (time.monotonic() - step_start))
        if self._reads:
            ledger.save(self._reads / f"epoch-{epoch.number}-{self._name}.json")
        state = f"epoch {epoch.number} done, waits for the others"
        self._progress.update(state, examples, examples)
