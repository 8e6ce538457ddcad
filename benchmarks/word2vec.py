"""Words per CPU second of skip-gram with negative sampling, in TensorFlow and in gensim.

    python -m benchmarks.word2vec [--quick] [--seed S] [--json]

All candidates get the same sentences, lists of words, and the same vocabulary: the sources of
Python's standard library with its documentation strings and tests. All that follows counts: numbers
of words, subsampling, windows, negatives, updates. Vectors have 100 numbers, a window has up to 5
words on each side, a pair has 5 negatives drawn by frequency to the power 0.75, frequent words are
subsampled with 1e-3, and the rate falls from 0.025 to 0.0001 in a straight line.

- gensim: `Word2Vec` with one worker thread. A sentence has at most 1,000 words, and no window
  crosses its end.
- TensorFlow, blocks: `_word2vec_blocks.py`. It takes the sentences as one text.
- TensorFlow, pairs: `tfdist.nn.negative_sampling` in batches of 1,024 pairs that share 64
  negatives, with a tape. It reads some 50,000 words a round, and its loss is not measured.

A run trains from random vectors for some epochs, and each epoch is a round: the candidates take
turns within it, in an order that is shuffled. TensorFlow has one thread. The figures are words of
the vocabulary, before subsampling, per second of CPU time of the process; ratios are taken within
a round. The loss is that of skip-gram with negative sampling, on pairs of files that no candidate
has read, with 5 fixed negatives for each pair.

Results go to standard output, everything else to standard error. Without gensim (`pip install
gensim`) TensorFlow is measured alone. A missed target does not change the exit code.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import sys
import time
from typing import Any

import numpy as np

from benchmarks._report import (
    add_options,
    describe_machine,
    log,
    machine,
    make_console,
    make_table,
    print_targets,
    ratios,
    shown_range,
    target,
    with_spread,
)
from benchmarks._word2vec_corpus import (
    NEGATIVES,
    POWER,
    SAMPLE,
    WINDOW,
    Array,
    Corpus,
    Pairs,
    held_out_pairs,
    read_corpus,
)

GENSIM, BLOCKS, PAIRS = "gensim", "TensorFlow, blocks", "TensorFlow, pairs"
_DIM = 100
_FIRST_RATE, _LAST_RATE = 0.025, 0.0001
_WORDS_OF_PAIRS = 50_000
_RUNS, _EPOCHS = 3, 3
_QUICK_SHARE, _QUICK_RUNS, _QUICK_EPOCHS = 0.25, 1, 2

Values = dict[str, dict[str, list[float]]]


class Gensim:
    """The peer."""

    def __init__(self, corpus: Corpus, seed: int) -> None:
        from gensim.models import Word2Vec

        counts = dict(zip(corpus.vocabulary, corpus.counts.tolist(), strict=True))
        self._model = Word2Vec(
            vector_size=_DIM,
            window=WINDOW,
            negative=NEGATIVES,
            ns_exponent=POWER,
            sample=SAMPLE,
            sg=1,
            min_count=1,
            workers=1,
            seed=seed,
        )
        self._model.build_vocab_from_freq(counts, corpus_count=len(corpus.sentences))
        self._order = [self._model.wv.key_to_index[word] for word in corpus.vocabulary]
        self._corpus = corpus

    def train(self, first_rate: float, last_rate: float) -> None:
        self._model.train(
            self._corpus.sentences,
            total_examples=len(self._corpus.sentences),
            total_words=self._corpus.num_words,
            epochs=1,
            start_alpha=first_rate,
            end_alpha=last_rate,
        )

    def vectors(self) -> tuple[Array, Array]:
        return self._model.wv.vectors[self._order], self._model.syn1neg[self._order]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.word2vec", description=(__doc__ or "").splitlines()[0]
    )
    add_options(parser, "one run of two epochs, on a quarter of the text")
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    report = _measure_all(arguments.quick, arguments.seed)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print_report(report)
    return 0


# Measuring.


def _measure_all(quick: bool, seed: int) -> dict[str, Any]:
    notes = {}
    if importlib.util.find_spec("gensim") is None:
        notes[GENSIM] = "not measured: gensim is not installed; pip install gensim"
        log(notes[GENSIM])
    rng = random.Random(seed)
    corpus = read_corpus(_QUICK_SHARE if quick else 1.0, rng)
    pairs = held_out_pairs(corpus, np.random.default_rng(seed))
    values: Values = {}
    runs, epochs = (_QUICK_RUNS, _QUICK_EPOCHS) if quick else (_RUNS, _EPOCHS)
    for run in range(runs):
        log(f"run {run + 1} of {runs} ...")
        _measure_run(corpus, pairs, epochs, rng, GENSIM not in notes, values)
    return {
        "machine": machine(),
        "seed": seed,
        "corpus": {
            "text": "sources of Python's standard library",
            "words": corpus.num_words,
            "vocabulary": len(corpus.vocabulary),
            "held_out_pairs": len(pairs.word),
        },
        "rows": _rows(values, notes),
        "targets": _targets(values),
    }


def _measure_run(
    corpus: Corpus,
    pairs: Pairs,
    epochs: int,
    rng: random.Random,
    has_gensim: bool,
    values: Values,
) -> None:
    """Trains new models; adds a speed for each epoch, and the loss after the last one."""
    import tensorflow as tf

    if not values:  # it is an error once TensorFlow has started
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    from benchmarks._word2vec_blocks import SkipGram
    from benchmarks._word2vec_pairs import PairedSkipGram

    seed = rng.randrange(2**31)
    blocks, paired = SkipGram(corpus, _DIM, seed), PairedSkipGram(corpus, _DIM, seed)
    models: dict[str, Any] = {BLOCKS: blocks}
    if has_gensim:
        models[GENSIM] = Gensim(corpus, seed)

    def rate(done: float) -> float:
        return _FIRST_RATE + (_LAST_RATE - _FIRST_RATE) * done / epochs

    def train(name: str, epoch: int) -> int:
        if name == PAIRS:
            return paired.train(_WORDS_OF_PAIRS)
        if name == BLOCKS:
            blocks.train(lambda share: rate(epoch + share))
        else:
            models[GENSIM].train(rate(epoch), rate(epoch + 1))
        return corpus.num_words

    names = [*models, PAIRS]
    for epoch in range(epochs):
        for name in rng.sample(names, len(names)):
            began = time.process_time()
            num_words = train(name, epoch)
            speed = num_words / (time.process_time() - began)
            values.setdefault(name, {}).setdefault("words_per_cpu_s", []).append(speed)
            log(f"epoch {epoch + 1}, {name}: {speed:,.0f} words per CPU second")
    for name, model in models.items():
        values[name].setdefault("loss", []).append(pairs.loss(*model.vectors()))


# Figures.


def _rows(values: Values, notes: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    for name in (GENSIM, BLOCKS, PAIRS):
        found = dict(values.get(name, {}))
        if GENSIM in values and found:
            found["ratio_to_gensim"] = ratios(*_both(values, "words_per_cpu_s", name))
        rows.append({"kind": name, **with_spread(found), "note": notes.get(name)})
    return rows


def _both(values: Values, figure: str, name: str = BLOCKS) -> tuple[list[float], list[float]]:
    return values[name][figure], values[GENSIM][figure]


def _targets(values: Values) -> list[dict[str, Any]]:
    speed = loss = None
    if GENSIM in values:
        speed = statistics.median(ratios(*_both(values, "words_per_cpu_s")))
        loss = max(ratios(*_both(values, "loss")))
    return [
        target("words per CPU second: blocks / gensim", speed, 1.0, at_least=True),
        target("held-out loss: blocks / gensim, worst run", loss, 1.03),
    ]


def _print_report(report: dict[str, Any]) -> None:
    console = make_console()
    console.print(f"{describe_machine(report['machine'])}, seed {report['seed']}")
    corpus = report["corpus"]
    console.print(
        f"{corpus['words']:,} words of the {corpus['text']}, {corpus['vocabulary']:,} different"
    )
    console.print("Median (min .. max) over the epochs; the loss over the runs.")
    table = make_table(["candidate"], ["words per CPU second", "/ gensim", "held-out loss"])
    for row in report["rows"]:
        spread = row["spread"]
        if row["note"]:
            table.add_row(row["kind"], row["note"])
            continue
        speed = spread["words_per_cpu_s"]
        cells = [f"{speed['median']:,.0f} ({speed['min']:,.0f} .. {speed['max']:,.0f})"]
        for name in ("ratio_to_gensim", "loss"):
            cells.append(shown_range(spread[name]) if name in spread else "")
        table.add_row(row["kind"], *cells)
    console.print(table)
    print_targets(report["targets"])


if __name__ == "__main__":
    sys.exit(main())
