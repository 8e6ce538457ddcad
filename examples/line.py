"""Fits a line with parameter servers, on data that needs no file: for trying out a cluster.

    tfdist run --ps 2 --workers 2 examples/line.py
    tfdist compose --ps 2 --workers 2 examples/line.py > compose.yaml

Each trainer reads its own share of the examples once an epoch. At the end of an epoch all trainers
wait for one another, and the chief saves. At the end of the job it exports the line to
MODEL_DIR/export/line/STEP, for a prediction server.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time

import tensorflow as tf

import tfdist

EXAMPLES, BATCH = 10_000, 50
SLOPE, OFFSET = 3.0, -2.0


def train(task: tfdist.Task, target: str, epochs: int, model_dir: str, step_secs: float) -> None:
    with tfdist.train.replica_graph(task):
        mine = tf.data.Dataset.range(EXAMPLES).shard(len(task.trainers), task.rank)
        batches = tfdist.data.endless_batches(mine, BATCH)
        iterator = tf.compat.v1.data.make_initializable_iterator(batches)
        number, weight, has_value = iterator.get_next()
        x = tf.cast(number, tf.float32) / EXAMPLES
        slope = tf.compat.v1.get_variable("slope", initializer=0.0)
        offset = tf.compat.v1.get_variable("offset", initializer=0.0)
        errors = slope * x + offset - (SLOPE * x + OFFSET)
        optimizer = tf.compat.v1.train.GradientDescentOptimizer(0.2 / BATCH)
        loss = tf.reduce_sum(weight * tf.square(errors))
        step = tfdist.train.minimize_if(has_value, optimizer, loss)
        saver = tfdist.train.Checkpointer(model_dir)

        with tfdist.train.session(task, target, restore=saver.restore) as session:

            def save(result: tfdist.train.EpochResult) -> None:
                saved = saver.save(session)
                line = "y = {:.3f} x {:+.3f}".format(*session.run([slope, offset]))
                counts = f"{result.examples} examples, step {saved.global_step}"
                print(f"epoch {result.number}: {counts}: {line}", flush=True)

            epoch = tfdist.train.Epoch(task, "train", expected=EXAMPLES, action=save, timeout=300)
            while epoch.number <= epochs:
                session.run(iterator.initializer)
                more = True
                while more:
                    _, numbers, weights, more = session.run([step, number, weight, has_value])
                    epoch.read(numbers[weights > 0])
                    time.sleep(step_secs)
                epoch.finish().check()
            trained = session.run([tf.compat.v1.train.get_global_step(), slope, offset])
    if task.is_chief:
        export(f"{model_dir}/export/line", *trained)


def export(folder: str, version: int, slope: float, offset: float) -> None:
    """Writes a SavedModel of the line alone, without the reader."""
    predict = tf.function(lambda x: {"y": slope * x + offset})
    signature = predict.get_concrete_function(tf.TensorSpec([None], tf.float32, "x"))
    unfinished = f"{folder}/unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    tf.saved_model.save(tf.Module(), unfinished, {"serving_default": signature})
    # Renamed when it is complete: a prediction server loads any folder whose name is a number.
    os.replace(unfinished, f"{folder}/{version}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--model-dir",
        help="for checkpoints; training continues from the last one (default: a temporary folder)",
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--step-secs",
        type=float,
        default=0.0,
        help="sleep this long after each step, to leave time to disturb the job (default: 0)",
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so the folder goes after Ctrl-C too
    with tempfile.TemporaryDirectory(prefix="line-") as scratch:
        tfdist.run_task(train, args.epochs, args.model_dir or scratch, args.step_secs)


if __name__ == "__main__":
    main()
