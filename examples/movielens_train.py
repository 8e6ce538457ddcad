"""The training loop of one trainer."""

import argparse
import time

import movielens_data
import movielens_model
import movielens_report
import tensorflow as tf

import tfdist

WAIT_SECS = 300.0  # for the slowest trainer, at the end of an epoch


def train(task: tfdist.Task, target: str, args: argparse.Namespace) -> list[str]:
    """Trains for `args.epochs`; returns, on the chief, which promises the run did not keep."""
    # The optimizers and the Saver of TensorFlow 1 warn of their age at every use.
    tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)
    meta = movielens_data.load_meta(args.data)
    mine = slice(task.rank, None, len(task.trainers))
    files = movielens_data.part_files(args.data)[mine]
    slowness = args.slow.get(task.name, 1.0)

    with tfdist.train.replica_graph(task):
        model = movielens_model.build(task, meta, files, args.batch_size)
        saver = tfdist.train.Checkpointer(args.model_dir)
        with tfdist.train.session(task, target, restore=saver.restore) as session:
            first_step = int(session.run(model.global_step)) if task.is_chief else 0
            summary = movielens_report.Summary(args.data, args.epochs, first_step, args.json)

            def save_and_evaluate(result: tfdist.train.EpochResult) -> None:
                if result.number <= args.epochs:  # not after the farewell below
                    saved = saver.save(session)
                    heldout = movielens_data.load_heldout(args.data)
                    rmse = movielens_model.rmse(session, model, heldout)
                    summary.add_epoch(result, epoch.last_wait(), rmse, saved)

            tfdist.Barrier(task, "start", timeout=WAIT_SECS).wait()
            epoch = tfdist.train.Epoch(
                task,
                "train",
                expected=meta.num_train,
                share=sum(meta.part_sizes[mine]),
                action=save_and_evaluate,
                timeout=WAIT_SECS,
            )
            while epoch.number <= args.epochs:
                session.run(model.start_epoch)
                reads = tfdist.data.Ledger()
                more = True
                while more:
                    began = time.monotonic()
                    _, example, weight, more = session.run(
                        [model.step, model.example, model.weight, model.has_value]
                    )
                    epoch.read(example[weight > 0])
                    reads.add(example[weight > 0])
                    time.sleep((slowness - 1) * (time.monotonic() - began))
                if args.reads:
                    reads.save(args.reads / f"epoch-{epoch.number}-{task.name}.json")
                epoch.finish().check()
            farewell = epoch.finish()  # no examples; its reports say when each trainer left
            return summary.finish(farewell) if task.is_chief else []
