"""A ledger compared with a multiset of example numbers."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfdist import ConfigError, EpochError
from tfdist.data import Ledger
from tfdist.data.ledger import Audit, audit

EXPECTED = 12
EXAMPLES = st.integers(0, EXPECTED - 1)
# Few different numbers, so ranges often touch, overlap or contain one another.
RANGES = st.tuples(EXAMPLES, EXAMPLES).map(lambda pair: (min(pair), max(pair) + 1))
BATCHES = st.lists(st.lists(EXAMPLES, max_size=6), max_size=6)


def spread(ranges) -> list[int]:
    return [example for start, stop in ranges for example in range(start, stop)]


def numbers_where(condition) -> list[int]:
    return [example for example in range(EXPECTED) if condition(example)]


@st.composite
def ledgers(draw) -> tuple[Ledger, Counter[int]]:
    """A ledger filled by ranges and by batches, and a count of its reads."""
    ranges, batches = draw(st.lists(RANGES, max_size=6)), draw(BATCHES)
    ledger = Ledger(ranges)
    for batch in batches:
        ledger.add(batch)
    return ledger, Counter(spread(ranges) + [example for batch in batches for example in batch])


@given(ledgers())
def test_an_audit_finds_exactly_the_missing_and_the_duplicate_examples(case):
    ledger, reads = case
    audit = ledger.audit(EXPECTED)
    assert spread(audit.missing) == numbers_where(lambda example: reads[example] == 0)
    assert spread(audit.duplicates) == numbers_where(lambda example: reads[example] > 1)
    assert audit.expected == EXPECTED
    assert audit.read_once == sum(count == 1 for count in reads.values())
    assert audit.exactly_once == all(reads[example] == 1 for example in range(EXPECTED))


@given(ledgers())
def test_an_audit_has_sorted_ranges_that_do_not_touch(case):
    audit = case[0].audit(EXPECTED)
    for ranges in (audit.missing, audit.duplicates):
        assert all(start < stop for start, stop in ranges)
        assert all(left[1] < right[0] for left, right in pairwise(ranges))


@given(ledgers())
def test_ranges_are_sorted_and_hold_all_reads(case):
    ledger, reads = case
    assert Counter(spread(ledger.ranges())) == reads
    assert list(ledger.ranges()) == sorted(ledger.ranges())


@given(ledgers())
def test_a_ledger_has_the_fewest_possible_ranges(case):
    ledger, reads = case
    # At each number at least as many ranges begin as its reads exceed those of its predecessor.
    fewest = sum(max(0, reads[example] - reads[example - 1]) for example in range(EXPECTED))
    assert len(ledger.ranges()) == fewest


@given(ledgers())
def test_a_ledger_made_from_the_ranges_of_another_equals_it(case):
    ledger, _ = case
    copy = Ledger(ledger.ranges())
    assert copy.ranges() == ledger.ranges()
    assert copy.audit(EXPECTED) == ledger.audit(EXPECTED)


@given(ledgers(), ledgers())
def test_merge_adds_all_reads_and_does_not_change_the_other_ledger(one, two):
    before = two[0].ranges()
    one[0].merge(two[0])
    assert Counter(spread(one[0].ranges())) == one[1] + two[1]
    assert two[0].ranges() == before


def test_an_epoch_read_exactly_once_passes_the_check():
    ledger = Ledger([(0, 3)])
    ledger.add([5, 3, 4])
    audit = ledger.audit(6)
    assert audit == Audit(6, 6, (), ())
    assert audit.exactly_once
    audit.check()


def test_an_epoch_without_examples_passes_the_audit():
    assert Ledger().audit(0) == Audit(0, 0, (), ())


def test_an_empty_ledger_misses_every_example():
    assert Ledger().audit(5) == Audit(5, 0, ((0, 5),), ())


def test_consecutive_reads_join_into_one_range():
    ledger = Ledger()
    for start in range(0, 1000, 10):
        ledger.add(range(start, start + 10))
    assert ledger.ranges() == ((0, 1000),)


def test_an_array_counts_like_its_numbers_and_may_be_reused():
    ledger, numbers = Ledger(), np.array([4, 0, 1], np.int32)
    assert (ledger.add(numbers), ledger.add([1]), ledger.add([])) == (3, 1, 0)
    numbers[:] = 7
    assert ledger.ranges() == ((0, 2), (1, 2), (4, 5))


@pytest.mark.parametrize("examples", [[0.0], np.array([0.0]), ["0"]])
def test_an_example_that_is_not_a_whole_number_is_refused(examples):
    with pytest.raises(ConfigError, match="must be whole numbers"):
        Ledger().add(examples)


def test_shuffled_reads_of_many_steps_join_into_one_range():
    numbers = np.random.default_rng(1).permutation(300_000).reshape(-1, 1000)
    ledger = Ledger()
    for step in numbers:
        ledger.add(step)
    assert ledger.audit(300_000).exactly_once
    assert ledger.ranges() == ((0, 300_000),)


def test_an_example_that_comes_twice_in_one_batch_is_a_duplicate():
    ledger = Ledger()
    ledger.add([1, 1, 2])
    assert ledger.audit(3) == Audit(3, 1, ((0, 1),), ((1, 2),))


def test_a_merge_with_itself_counts_each_read_twice():
    ledger = Ledger([(0, 2)])
    ledger.merge(ledger)
    assert ledger.ranges() == ((0, 2), (0, 2))


class TestCheck:
    def test_the_error_has_the_counts_and_the_missing_and_duplicate_ranges(self):
        with pytest.raises(EpochError) as caught:
            Ledger([(1, 3), (2, 3)]).audit(4).check()
        assert caught.value.missing == ((0, 1), (3, 4))
        assert caught.value.duplicates == ((2, 3),)
        for part in ("1 of 4", "missing [0, 1), [3, 4)", "duplicates [2, 3)"):
            assert part in str(caught.value)

    @pytest.mark.parametrize("reads", [[(0, 3)], [(0, 4), (1, 2)]], ids=["missing", "duplicates"])
    def test_missing_or_duplicate_examples_alone_are_an_error(self, reads):
        with pytest.raises(EpochError, match="none"):
            Ledger(reads).audit(4).check()

    def test_duplicates_do_not_count_as_read_exactly_once(self):
        with pytest.raises(EpochError, match="0 of 4 examples were read exactly once"):
            Ledger([(0, 4), (0, 4)]).audit(4).check()

    def test_the_error_shows_five_ranges_and_counts_the_rest(self):
        with pytest.raises(EpochError, match=r"\[8, 9\) and 3 more ranges;") as caught:
            Ledger([(n, n + 1) for n in range(1, 16, 2)]).audit(16).check()
        assert len(caught.value.missing) == 8


class TestBadInput:
    @pytest.mark.parametrize("read", [(-1, 2), (2, 2), (3, 2)])
    def test_an_empty_or_negative_range_is_a_config_error(self, read):
        with pytest.raises(ConfigError) as caught:
            Ledger([(0, 1), read])
        assert (caught.value.field, caught.value.value) == ("ranges", read)

    def test_a_negative_example_is_a_config_error_and_its_batch_is_not_recorded(self):
        ledger = Ledger([(0, 1)])
        with pytest.raises(ConfigError) as caught:
            ledger.add([7, 4, -2])
        assert (caught.value.field, caught.value.value) == ("examples", -2)
        assert ledger.ranges() == ((0, 1),)

    @pytest.mark.parametrize(
        ("reads", "last"),
        [
            ([(0, 4)], 3),
            ([(0, 2), (5, 6)], 5),
            ([(2, 5), (0, 10)], 9),
        ],
    )
    def test_an_epoch_shorter_than_the_ledger_is_a_config_error(self, reads, last):
        with pytest.raises(ConfigError, match=rf"\b{last}\b") as caught:
            Ledger(reads).audit(3)
        assert (caught.value.field, caught.value.value) == ("expected", 3)


@given(ledgers(), ledgers())
def test_audit_combines_ledgers_and_files_of_ledgers(tmp_path_factory, one, other):
    path = tmp_path_factory.mktemp("reads") / "worker-1.json"
    other[0].save(path)
    both = Ledger([*one[0].ranges(), *other[0].ranges()])
    assert audit([one[0], path], EXPECTED) == both.audit(EXPECTED)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"tfdist_ledger": [[2, 1]]}'])
def test_the_path_of_a_file_that_is_not_a_ledger_is_named(tmp_path, text):
    path = tmp_path / "ledger.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"ledger\.json.*is not a file that Ledger\.save wrote"):
        audit([path], EXPECTED)
