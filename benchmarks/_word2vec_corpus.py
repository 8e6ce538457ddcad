"""The text, the vocabulary and the held-out pairs that all candidates of the benchmark share."""

from __future__ import annotations

import random
import re
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WINDOW, NEGATIVES, POWER = 5, 5, 0.75
SAMPLE = 1e-3  # a word of this frequency is still always kept
MIN_COUNT = 3
_SENTENCE = 1000  # words; neither candidate gets more context from a longer one
_HELD_OUT = 0.05  # of the files
_MOST_PAIRS = 40_000
_SLICE = 4096  # pairs whose loss is computed together

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Corpus:
    """Sentences of words that are in the vocabulary.

    Attributes:
        sentences: those to train on, in random order.
        held_out: those of other files.
        vocabulary: the words, the most frequent one first.
        counts: how often each occurs in `sentences`.
    """

    sentences: Sequence[Sequence[str]]
    held_out: Sequence[Sequence[str]]
    vocabulary: Sequence[str]
    counts: Array

    @property
    def num_words(self) -> int:
        return int(self.counts.sum())

    def keep_prob(self) -> Array:
        """The probability to keep an occurrence of each word, as in word2vec and in gensim."""
        excess = self.counts / self.counts.sum() / SAMPLE
        prob: Array = np.minimum(1, (np.sqrt(excess) + 1) / excess).astype(np.float32)
        return prob


@dataclass(frozen=True)
class Pairs:
    """Held-out pairs of a word and a word near it, with fixed negatives."""

    word: Array  # [n]
    near: Array  # [n]
    negatives: Array  # [n, NEGATIVES]

    def loss(self, inputs: Array, outputs: Array) -> float:
        """The mean of the loss of skip-gram with negative sampling, for these vectors."""
        total = 0.0
        for start in range(0, len(self.word), _SLICE):
            part = slice(start, start + _SLICE)
            rows = inputs[self.word[part]]
            positive = np.einsum("nd,nd->n", rows, outputs[self.near[part]])
            negative = np.einsum("nd,nkd->nk", rows, outputs[self.negatives[part]])
            total += float(np.logaddexp(0, -positive).sum() + np.logaddexp(0, negative).sum())
        return total / len(self.word)


def read_corpus(share: float, rng: random.Random) -> Corpus:
    """The sources of Python's standard library, with their documentation strings and tests.

    A word is a run of letters, in lower case; `assert_equal` is two words.

    Args:
        share: how much of it, up to 1.
        rng: chooses the files and their order.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    files = rng.sample(files, round(share * len(files)))
    texts = [
        re.findall("[a-z]+", path.read_text("utf-8", errors="replace").lower()) for path in files
    ]
    num_held_out = max(1, round(_HELD_OUT * len(texts)))
    counts = Counter(word for text in texts[num_held_out:] for word in text)
    vocabulary = [word for word, count in counts.most_common() if count >= MIN_COUNT]
    known = set(vocabulary)

    def sentences(texts: list[list[str]]) -> list[list[str]]:
        kept = [[word for word in text if word in known] for text in texts]
        parts = [t[i : i + _SENTENCE] for t in kept for i in range(0, len(t), _SENTENCE)]
        rng.shuffle(parts)
        return parts

    return Corpus(
        sentences(texts[num_held_out:]),
        sentences(texts[:num_held_out]),
        vocabulary,
        np.array([counts[word] for word in vocabulary]),
    )


def held_out_pairs(corpus: Corpus, rng: np.random.Generator) -> Pairs:
    """Pairs as training would draw them: subsampled, and the nearer ones more often."""
    number = {word: index for index, word in enumerate(corpus.vocabulary)}
    keep_prob, noise = corpus.keep_prob(), corpus.counts**POWER
    words, nears = [], []
    for sentence in corpus.held_out:
        ids = np.array([number[word] for word in sentence])
        ids = ids[rng.random(len(ids)) < keep_prob[ids]]
        at = np.arange(len(ids))
        near = at + rng.integers(1, rng.integers(1, WINDOW + 1, len(at)) + 1) * rng.choice(
            [-1, 1], len(at)
        )
        inside = (near >= 0) & (near < len(ids))
        words.append(ids[at[inside]])
        nears.append(ids[near[inside]])
    word, near = np.concatenate(words), np.concatenate(nears)
    chosen = rng.permutation(len(word))[:_MOST_PAIRS]
    negatives = rng.choice(len(noise), (len(chosen), NEGATIVES), p=noise / noise.sum())
    return Pairs(word[chosen], near[chosen], negatives)
