"""The kinds of messages that are measured, and the costs that follow from the measurements."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfdist.planner.message_costs import Cost, Line, MessageCosts

RUN, RUN_ON_TWO = "a run that does nothing", "the same on two ps"
DIRECT = "the same straight to the ps"
PULL, PUSH = "pull a variable", "push a gradient"
LOOKUP, SCATTER = "look rows up", "push gradients of rows"
ARRIVAL, POLLED_ARRIVAL = "arrive at a barrier, queue", "arrive at a barrier, counter"
CLAIM, COMMIT, RENEW = "claim a split", "commit in a run of its own", "renew"
UPDATE, WITH_COMMIT = "a run of an addition", "the same with a commit"
CHAIN = "commits one after the other, from two trainers"

# Commits in a run, and trainers that send such runs; one of them always waits for the other.
CHAINED, CHAINS = 20, 2


@dataclass(frozen=True)
class Sizes:
    """The sizes of the measured messages.

    Attributes:
        present: trainers that send at the same time.
        many_parties: trainers of a large job.
        splits: splits of a small table and of a large one.
        dense_bytes: sizes of a variable.
        rows: numbers of rows to look up.
    """

    present: int = 8
    many_parties: int = 4096
    splits: tuple[int, int] = (1000, 100_000)
    dense_bytes: tuple[int, ...] = (1 << 12, 1 << 18, 1 << 22)
    rows: tuple[int, ...] = (16, 1024, 16_384)

    @property
    def parties(self) -> tuple[int, int]:
        """Trainers that the ps knows of: only the present ones, or many."""
        return self.present, self.many_parties


@dataclass(frozen=True)
class Sample:
    """The mean figures of one message, in seconds.

    Attributes:
        ps: CPU time of ps 0.
        trainer: CPU time of the process of the trainers.
        wall: time from the message to its answer.
    """

    ps: float
    trainer: float
    wall: float


@dataclass(frozen=True)
class Kind:
    """A kind of message.

    Attributes:
        name: what it does.
        size: its bytes or rows, or the splits of the table; 0 if it has none.
        parties: trainers of the barrier or the table; 0 if that does not matter.
    """

    name: str
    size: int = 0
    parties: int = 0


@dataclass(frozen=True)
class Pair:
    """Both measurements of a message: in a burst of many trainers, and alone."""

    burst: Sample
    alone: Sample


# One pair for each round.
Samples = Mapping[Kind, Sequence[Pair]]


def costs_of(samples: Samples, sizes: Sizes) -> MessageCosts:
    """The medians over the rounds, as lines over the sizes.

    CPU times are those of bursts. The delay is the latency of a single message beyond them.
    """

    def median(kind: Kind) -> Sample:
        pairs = samples[kind]
        return Sample(
            ps=statistics.median(pair.burst.ps for pair in pairs),
            trainer=statistics.median(pair.burst.trainer for pair in pairs),
            wall=statistics.median(pair.alone.wall for pair in pairs),
        )

    def lines(points: Mapping[int, Sample]) -> Cost:
        return Cost(
            ps=Line.through({size: each.ps for size, each in points.items()}),
            trainer=Line.through({size: each.trainer for size, each in points.items()}),
            delay=Line.through(
                {size: each.wall - each.ps - each.trainer for size, each in points.items()}
            ),
        )

    def beyond_run(name: str, counts: Sequence[int]) -> Cost:
        return lines({count: _less(median(Kind(name, count)), run) for count in counts})

    def by_parties(name: str, size: int = 0) -> Cost:
        return lines({parties: median(Kind(name, size, parties)) for parties in sizes.parties})

    (few, many), splits = sizes.parties, sizes.splits[0]
    run, update = median(Kind(RUN)), median(Kind(UPDATE))
    own, own_of_many = (median(Kind(COMMIT, splits, parties)) for parties in sizes.parties)
    grown = _less(own_of_many, own)
    commit = _less(median(Kind(WITH_COMMIT, splits, few)), update)
    claim, arrival = by_parties(CLAIM, splits), by_parties(ARRIVAL)
    section = statistics.median(
        pair.burst.wall / CHAINED / CHAINS for pair in samples[Kind(CHAIN, splits, few)]
    )
    # A claim is sent in the same way as a commit in its own run.
    outside_section = max(0.0, own.ps - section)
    return MessageCosts(
        run=lines({1: run, 2: median(Kind(RUN_ON_TWO))}),
        pull=beyond_run(PULL, sizes.dense_bytes),
        push=beyond_run(PUSH, sizes.dense_bytes),
        lookup=beyond_run(LOOKUP, sizes.rows),
        scatter=beyond_run(SCATTER, sizes.rows),
        commit=lines({few: commit, many: _plus(commit, grown)}),
        claim=claim,
        arrival=arrival,
        commit_section=Line.through({few: section, many: section + grown.ps}),
        claim_section=claim.ps.less(outside_section),
        # An arrival feeds and fetches nothing, like an empty run.
        arrival_section=arrival.ps.less(median(Kind(DIRECT)).ps),
    )


def mean(samples: Sequence[Sample]) -> Sample:
    """The mean of samples with equally many messages."""
    columns = zip(*((each.ps, each.trainer, each.wall) for each in samples), strict=True)
    return Sample(*map(statistics.fmean, columns))


def _plus(one: Sample, other: Sample, factor: float = 1.0) -> Sample:
    return Sample(
        one.ps + factor * other.ps,
        one.trainer + factor * other.trainer,
        one.wall + factor * other.wall,
    )


def _less(one: Sample, other: Sample) -> Sample:
    return _plus(one, other, -1.0)
