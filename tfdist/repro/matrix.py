"""All cases of the lab: what each shows, and what it was reported as."""

from __future__ import annotations

from tfdist.errors import ConfigError
from tfdist.repro.case import Case
from tfdist.verdict import Name

_ASYNCHRONOUS = (
    Case(
        "asynchronous/chief-short",
        "the chief has less data, and saves when it has ended itself",
        "the chief saves in the action of an Epoch, when all have ended",
        (Name.SAVED_TOO_EARLY,),
        examples=60,
        issues=(34750,),
    ),
    Case(
        "asynchronous/worker-short",
        "a worker has less data: the others do not need it",
        "an Epoch tells all when the last one has ended",
        (Name.FINE,),
        examples=44,
    ),
    Case(
        "asynchronous/no-device-filters",
        "a worker starts after the chief has left, and its session talks to all tasks",
        "device_filters: every ps, and itself",
        (Name.DEAD_DEPENDENCY,),
        examples=24,
        issues=(13337, 21629, 26559),
    ),
    Case(
        "asynchronous/iterator-on-other-worker",
        "the chief reads from an iterator of a worker that leaves first",
        "iterators are local",
        (Name.DEAD_DEPENDENCY,),
        examples=20,
        issues=(24338, 21745),
    ),
    Case(
        "asynchronous/iterator-on-ps",
        "the end of an iterator on the ps reaches its trainer",
        "iterators are local all the same: no batch crosses the network twice",
        (Name.FINE,),
        examples=32,
        issues=(23846,),
    ),
    Case(
        "asynchronous/shared-iterator",
        "all read from one iterator on the ps, each batch at most once",
        "a SplitQueue, which gives the rest of a trainer that dies to another",
        (Name.FINE,),
        examples=40,
    ),
)

_START: tuple[Case, ...] = ()

_SYNC: tuple[Case, ...] = ()

_BARRIER: tuple[Case, ...] = ()

_COLLECTIVE: tuple[Case, ...] = ()

_COORDINATOR: tuple[Case, ...] = ()

_FAULTS: tuple[Case, ...] = ()

_INPUT: tuple[Case, ...] = ()

_DATA_SERVICE: tuple[Case, ...] = ()

_SLOW: tuple[Case, ...] = ()

CASES: tuple[Case, ...] = (
    *_ASYNCHRONOUS,
    *_START,
    *_SYNC,
    *_BARRIER,
    *_COLLECTIVE,
    *_COORDINATOR,
    *_FAULTS,
    *_INPUT,
    *_DATA_SERVICE,
    *_SLOW,
)


def find(name: str) -> Case:
    """The case of this name.

    Raises:
        ConfigError: there is none.
    """
    for case in CASES:
        if case.name == name:
            return case
    raise ConfigError("CASE", name, "one that `tfdist repro list` shows")
