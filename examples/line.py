"""Fits a line with parameter servers, on data that needs no file: for trying out a cluster.

    tfdist run --ps 2 --workers 2 examples/line.py
    tfdist compose --ps 2 --workers 2 examples/line.py > compose.yaml

Each trainer reads its own share once an epoch; at its end all wait, and the chief saves. At the end
of the job it writes the line to MODEL_DIR/export/line/STEP, for a prediction server.
"""

import argparse
import os
import shutil
import tempfile
import time

import tfdist

EXAMPLES, BATCH, WAIT_SECS = 10_000, 50, 300
SLOPE, OFFSET = 3.0, -2.0


def main(task: tfdist.Task, target: str, args: argparse.Namespace) -> None:
    import tensorflow as tf

    from tfdist.train import checkpoint, graph

    with tf.Graph().as_default():
        mine = tf.data.Dataset.range(EXAMPLES).shard(len(task.trainers), task.rank)
        with tf.compat.v1.device(graph.device_setter(task)):
            global_step = tf.compat.v1.train.get_or_create_global_step()
            iterator = tf.compat.v1.data.make_initializable_iterator(
                tfdist.data.endless_batches(mine, BATCH)
            )
            number, weight, has_value = iterator.get_next()
            x = tf.cast(number, tf.float32) / EXAMPLES
            slope = tf.compat.v1.get_variable("slope", initializer=0.0, use_resource=True)
            offset = tf.compat.v1.get_variable("offset", initializer=0.0, use_resource=True)
            errors = slope * x + offset - (SLOPE * x + OFFSET)
            optimizer = tf.compat.v1.train.GradientDescentOptimizer(0.2 / BATCH)
            gradients = optimizer.compute_gradients(tf.reduce_sum(weight * tf.square(errors)))
            step = graph.apply_if(
                has_value, lambda: optimizer.apply_gradients(gradients, global_step=global_step)
            )
        model_dir = args.model_dir or tempfile.mkdtemp(prefix="line-")
        saver = checkpoint.Checkpointer(model_dir)
        progress = tfdist.Progress.from_env()

        with graph.session(task, target, restore=saver.restore) as session:

            def save(result: tfdist.train.EpochResult) -> None:
                saved = saver.save(session)
                found = "y = {:.3f} x {:+.3f}".format(*session.run([slope, offset]))
                counted = f"{result.examples} examples, step {saved.global_step}"
                print(f"epoch {result.number}: {counted}: {found}", flush=True)

            epoch = tfdist.train.Epoch(
                task, "train", expected=EXAMPLES, action=save, timeout=WAIT_SECS
            )
            while epoch.number <= args.epochs:
                session.run(iterator.initializer)
                examples, more = 0, True
                while more:
                    _, numbers, weights, more = session.run([step, number, weight, has_value])
                    read = numbers[weights > 0]
                    epoch.read(read)
                    examples += len(read)
                    progress.update(f"epoch {epoch.number} of {args.epochs}", examples, EXAMPLES)
                    time.sleep(args.step_secs)
                epoch.finish().check()
            trained_steps, *line = session.run([global_step, slope, offset])
    if task.is_chief:
        export(f"{model_dir}/export/line", trained_steps, *line)


def export(folder: str, version: int, slope: float, offset: float) -> None:
    """Writes a SavedModel of the line alone, without the reader."""
    import tensorflow as tf

    predict = tf.function(lambda x: {"y": slope * x + offset})
    signature = predict.get_concrete_function(tf.TensorSpec([None], tf.float32, "x"))
    unfinished = f"{folder}/unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    tf.saved_model.save(tf.Module(), unfinished, {"serving_default": signature})
    # A prediction server loads whatever is called by a number.
    os.replace(unfinished, f"{folder}/{version}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--model-dir",
        help="for checkpoints; training goes on from the last one there (default: a new folder)",
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--step-secs",
        type=float,
        default=0.0,
        help="sleep so long after each step, so that there is time to disturb the job (default: 0)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tfdist.one_line_errors():
        arguments = parse_args()
        this = tfdist.Task.from_env()
        with tfdist.worker_server(this) as address:
            main(this, address, arguments)
