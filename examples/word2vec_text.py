"""The standard library as numbers of words, in blocks and in pairs, for the word2vec example."""

import re
import sysconfig
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

WINDOW = 5  # words on each side
BLOCK = 32  # words whose pairs a step computes together
COLUMNS = BLOCK + 2 * WINDOW
MIN_COUNT = 5
SAMPLE = 1e-3  # more frequent words than this are read less often
HELD_OUT = 20  # one file of so many

# The weight of each column as a neighbour of each word of a block: (6 - d) / 5 at distance d. That
# is how often word2vec, whose windows have a random size of 1 to 5, has the pair.
_DISTANCE = np.abs(np.arange(BLOCK)[:, None] + WINDOW - np.arange(COLUMNS))
BAND = np.where(_DISTANCE > 0, np.maximum(1 - (_DISTANCE - 1) / WINDOW, 0), 0).astype(np.float32)


class Corpus(NamedTuple):
    vocabulary: list[str]  # in the order of the alphabet
    counts: np.ndarray  # of each word
    files: list[np.ndarray]  # the words of each file
    held_out: list[np.ndarray]


def read_corpus() -> Corpus:
    """Reads the same on every trainer: the sources without their tests."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = [path.relative_to(library) for path in sorted(library.rglob("*.py"))]
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    paths = [path for path in paths if not skipped.intersection(path.parts)]
    texts = [
        re.findall("[a-z]+", (library / path).read_text("utf-8", errors="replace").lower())
        for path in paths
    ]
    counts = Counter(word for text in texts for word in text)
    # Not by frequency: the shards are contiguous, and the first ps would have most of the work.
    vocabulary = sorted(word for word, count in counts.items() if count >= MIN_COUNT)
    number = {word: index for index, word in enumerate(vocabulary)}
    files = [np.array([number[w] for w in text if w in number], np.int32) for text in texts]
    return Corpus(
        vocabulary,
        np.array([counts[word] for word in vocabulary]),
        [file for index, file in enumerate(files) if index % HELD_OUT],
        files[::HELD_OUT],
    )


Files = list[np.ndarray]


def blocks(files: Files, counts: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """The blocks of some files, in random order, as [steps, size, COLUMNS]."""
    words = _subsampled(files, counts, rng)
    starts = rng.permutation(np.arange(0, len(words) - COLUMNS, BLOCK))
    starts = starts[: len(starts) // size * size].reshape(-1, size, 1)
    return words[starts + np.arange(COLUMNS)]


def pairs(
    files: Files, counts: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Words of the files, and for each a word near it."""
    words = _subsampled(files, counts, rng)
    at = np.arange(len(words))
    distance = rng.integers(1, rng.integers(1, WINDOW + 1, len(at)) + 1)
    near = at + distance * rng.choice([-1, 1], len(at))
    return words, words[near % len(words)]


def _subsampled(files: Files, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The words as one text, without most occurrences of the frequent ones."""
    words = np.concatenate(files)
    excess = counts / counts.sum() / SAMPLE
    keep_prob = (np.sqrt(excess) + 1) / excess
    return words[rng.random(len(words)) < keep_prob[words]]
