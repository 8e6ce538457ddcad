"""The read ledger against a multiset of numbers, which is what it stands for."""

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
# Few different numbers, so that ranges touch, overlap and lie within one another.
RANGES = st.tuples(EXAMPLES, EXAMPLES).map(lambda pair: (min(pair), max(pair) + 1))
BATCHES = st.lists(st.lists(EXAMPLES, max_size=6), max_size=6)


def spread(ranges) -> list[int]:
    return [example for start, stop in ranges for example in range(start, stop)]


def numbers_where(condition) -> list[int]:
    return [example for example in range(EXPECTED) if condition(example)]


@st.composite
def ledgers(draw) -> tuple[Ledger, Counter[int]]:
    """A ledger filled in both ways, and the reads that it was told of."""
    ranges, batches = draw(st.lists(RANGES, max_size=6)), draw(BATCHES)
    ledger = Ledger(ranges)
    for batch in batches:
        ledger.add(batch)
    return ledger, Counter(spread(ranges) + [example for batch in batches for example in batch])


@given(ledgers())
def test_an_audit_finds_exactly_what_is_missing_and_what_came_twice(case):
    ledger, reads = case
    audit = ledger.audit(EXPECTED)
    assert spread(audit.missing) == numbers_where(lambda example: reads[example] == 0)
    assert spread(audit.duplicates) == numbers_where(lambda example: reads[example] > 1)
    assert (audit.read, audit.expected) == (len(reads), EXPECTED)
    assert audit.complete == all(reads[example] == 1 for example in range(EXPECTED))


@given(ledgers())
def test_an_audit_names_ranges_in_order_that_do_not_touch(case):
    audit = case[0].audit(EXPECTED)
    for ranges in (audit.missing, audit.duplicates):
        assert all(start < stop for start, stop in ranges)
        assert all(left[1] < right[0] for left, right in pairwise(ranges))


@given(ledgers())
def test_ranges_hold_the_same_reads_in_order(case):
    ledger, reads = case
    assert Counter(spread(ledger.ranges())) == reads
    assert list(ledger.ranges()) == sorted(ledger.ranges())


@given(ledgers())
def test_ranges_are_as_few_as_can_be(case):
    ledger, reads = case
    # Wherever the reads of one number exceed those of the number before, so many ranges begin.
    fewest = sum(max(0, reads[example] - reads[example - 1]) for example in range(EXPECTED))
    assert len(ledger.ranges()) == fewest


@given(ledgers())
def test_a_ledger_made_of_the_ranges_of_another_is_its_equal(case):
    ledger, _ = case
    copy = Ledger(ledger.ranges())
    assert copy.ranges() == ledger.ranges()
    assert copy.audit(EXPECTED) == ledger.audit(EXPECTED)


@given(ledgers(), ledgers())
def test_merging_adds_up_the_reads_and_leaves_the_other_alone(one, two):
    before = two[0].ranges()
    one[0].merge(two[0])
    assert Counter(spread(one[0].ranges())) == one[1] + two[1]
    assert two[0].ranges() == before


def test_an_epoch_of_one_read_each_is_complete_and_passes_the_check():
    ledger = Ledger([(0, 3)])
    ledger.add([5, 3, 4])
    audit = ledger.audit(6)
    assert audit == Audit(6, 6, (), ())
    assert audit.complete
    audit.check()


def test_an_epoch_of_no_examples_is_complete():
    assert Ledger().audit(0) == Audit(0, 0, (), ())


def test_nothing_read_means_that_all_is_missing():
    assert Ledger().audit(5) == Audit(5, 0, ((0, 5),), ())


def test_reads_in_order_are_one_range_however_many():
    ledger = Ledger()
    for start in range(0, 1000, 10):
        ledger.add(range(start, start + 10))
    assert ledger.ranges() == ((0, 1000),)


def test_an_array_counts_as_its_numbers_do_and_may_be_used_again():
    ledger, numbers = Ledger(), np.array([4, 0, 1], np.int32)
    assert (ledger.add(numbers), ledger.add([1]), ledger.add([])) == (3, 1, 0)
    numbers[:] = 7
    assert ledger.ranges() == ((0, 2), (1, 2), (4, 5))


@pytest.mark.parametrize("examples", [[0.0], np.array([0.0]), ["0"]])
def test_what_is_no_whole_number_is_refused(examples):
    with pytest.raises(TypeError):
        Ledger().add(examples)


def test_shuffled_reads_of_many_steps_join():
    numbers = np.random.default_rng(1).permutation(300_000).reshape(-1, 1000)
    ledger = Ledger()
    for step in numbers:
        ledger.add(step)
    assert ledger.audit(300_000).complete
    assert ledger.ranges() == ((0, 300_000),)


def test_an_example_twice_in_one_batch_is_remembered():
    ledger = Ledger()
    ledger.add([1, 1, 2])
    assert ledger.audit(3) == Audit(3, 2, ((0, 1),), ((1, 2),))


def test_a_merge_with_itself_counts_all_twice():
    ledger = Ledger([(0, 2)])
    ledger.merge(ledger)
    assert ledger.ranges() == ((0, 2), (0, 2))


class TestCheck:
    def test_tells_how_many_were_read_and_which_are_missing_or_came_twice(self):
        with pytest.raises(EpochError) as caught:
            Ledger([(1, 3), (2, 3)]).audit(4).check()
        assert caught.value.missing == ((0, 1), (3, 4))
        assert caught.value.duplicates == ((2, 3),)
        for part in ("1 of 4", "missing [0, 1), [3, 4)", "duplicates [2, 3)"):
            assert part in str(caught.value)

    @pytest.mark.parametrize("reads", [[(0, 3)], [(0, 4), (1, 2)]], ids=["missing", "duplicates"])
    def test_either_alone_is_an_error(self, reads):
        with pytest.raises(EpochError, match="none"):
            Ledger(reads).audit(4).check()

    def test_does_not_claim_that_what_came_twice_came_once(self):
        with pytest.raises(EpochError, match="read once: 0 of 4 examples"):
            Ledger([(0, 4), (0, 4)]).audit(4).check()

    def test_of_many_ranges_shows_five_and_counts_the_rest(self):
        with pytest.raises(EpochError, match=r"\[8, 9\) and 3 ranges more;") as caught:
            Ledger([(n, n + 1) for n in range(1, 16, 2)]).audit(16).check()
        assert len(caught.value.missing) == 8


class TestBadInput:
    @pytest.mark.parametrize("read", [(-1, 2), (2, 2), (3, 2)])
    def test_a_range_that_holds_no_example_is_refused(self, read):
        with pytest.raises(ConfigError) as caught:
            Ledger([(0, 1), read])
        assert (caught.value.field, caught.value.value) == ("reads", read)

    def test_a_negative_example_is_refused_and_its_batch_not_recorded(self):
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
    def test_an_epoch_that_is_shorter_than_the_reads_is_refused(self, reads, last):
        with pytest.raises(ConfigError, match=rf"\b{last}\b") as caught:
            Ledger(reads).audit(3)
        assert (caught.value.field, caught.value.value) == ("expected", 3)


@given(ledgers(), ledgers())
def test_all_trainers_are_audited_together_from_memory_or_from_files(tmp_path_factory, one, other):
    path = tmp_path_factory.mktemp("reads") / "worker-1.json"
    other[0].save(path)
    both = Ledger([*one[0].ranges(), *other[0].ranges()])
    assert audit([one[0], path], EXPECTED) == both.audit(EXPECTED)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"tfdist_reads": [[2, 1]]}'])
def test_what_is_no_ledger_is_told_by_its_path(tmp_path, text):
    path = tmp_path / "reads.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"reads\.json.*a file of Ledger\.save"):
        audit([path], EXPECTED)
