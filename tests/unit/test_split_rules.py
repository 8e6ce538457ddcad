"""What the table of splits promises, one rule at a time; Alice has rank 0, Bob has rank 1."""

import pytest

from tfdist.errors import ConfigError, SplitLostError
from tfdist.splits.plan import Plan, epoch_order
from tfdist.splits.rules import (
    NOBODY,
    Lease,
    Loss,
    Over,
    SplitTable,
    Wait,
    begin_epoch,
    claim,
    commit,
    enter,
    freeze,
    release,
    restored,
)

ALICE, BOB = 0, 1
LEASE_US = 1000
AHEAD = 10  # records in a batch


class Desk:
    """A table and a clock; the first incarnation of each trainer is its rank + 1."""

    def __init__(self, *splits, parties=2, retries=1, seed=0):
        plan = Plan(splits, seed=seed, lease_us=LEASE_US, max_retries=retries)
        self.table, self.now, self.incarnations = SplitTable.start(plan, parties), 0, {}
        for rank in range(parties):
            self.enter(rank, rank + 1)

    def enter(self, rank, incarnation, previous=None):
        self.table = enter(self.table, rank, incarnation, previous)
        self.incarnations[rank] = incarnation

    def claim(self, rank, epoch=0, ahead=AHEAD, incarnation=None):
        incarnation = self.incarnations[rank] if incarnation is None else incarnation
        self.table, answer = claim(
            self.table, rank, incarnation, epoch=epoch, now=self.now, ahead=ahead
        )
        return answer

    def commit(self, lease, offset=None, ahead=AHEAD):
        offset = lease.reserved if offset is None else offset
        self.table, answer = commit(self.table, lease, offset, now=self.now, ahead=ahead)
        return answer

    def release(self, lease):
        self.table, answer = release(self.table, lease)
        return answer

    def renew(self, lease):
        return self.commit(lease, lease.offset)

    def read(self, rank, epoch=0):
        """Claims and commits until nothing is left for it; gives the last answer."""
        while isinstance(answer := self.claim(rank, epoch), Lease):
            while not answer.finished:
                answer = self.commit(answer)
        return answer


class TestAClaim:
    def test_gives_a_split_and_reserves_one_batch_of_it(self):
        lease = Desk((100, 164)).claim(ALICE)
        assert (lease.offset, lease.reserved, lease.stop) == (100, 110, 164)

    def test_gives_another_split_to_another_trainer(self):
        desk = Desk((0, 5), (5, 10))
        assert {desk.claim(rank).offset for rank in (ALICE, BOB)} == {0, 5}

    def test_that_is_repeated_gives_the_same_lease(self):
        desk = Desk((0, 100), (100, 200))
        assert desk.claim(ALICE) == desk.claim(ALICE)

    def test_waits_for_the_end_of_the_first_lease_if_nothing_is_free(self):
        desk = Desk((0, 10), (10, 20), parties=3)
        desk.claim(ALICE)
        desk.now = 7
        desk.claim(BOB)
        assert desk.claim(2) == Wait(until=LEASE_US)

    def test_is_told_when_all_is_done(self):
        desk = Desk((0, 25), (25, 30))
        assert desk.read(ALICE) == Over(0)
        assert desk.claim(BOB) == Over(0)
        assert desk.table.read == ((0, 30),)

    def test_of_an_epoch_that_has_not_begun_is_refused(self):
        with pytest.raises(ConfigError, match="epoch 0 is the last that has begun"):
            Desk((0, 1)).claim(ALICE, epoch=1)

    def test_of_no_records_is_refused(self):
        with pytest.raises(ConfigError, match="at least 1 record"):
            Desk((0, 1)).claim(ALICE, ahead=0)


class TestACommit:
    def test_reserves_the_next_batch(self):
        desk = Desk((0, 25))
        lease = desk.commit(desk.claim(ALICE))
        assert (lease.offset, lease.reserved, lease.stop) == (10, 20, 25)
        lease = desk.commit(lease)
        assert (lease.offset, lease.reserved) == (20, 25)
        assert desk.commit(lease).finished

    def test_that_is_repeated_changes_nothing(self):
        desk = Desk((0, 25))
        lease = desk.claim(ALICE)
        assert desk.commit(lease) == desk.commit(lease)
        last = desk.commit(desk.commit(desk.claim(ALICE)))
        assert last.finished
        before = desk.table
        assert desk.commit(last._replace(offset=20, stop=25), 25).finished
        assert desk.table == before

    def test_of_less_than_is_committed_changes_nothing(self):
        desk = Desk((0, 25))
        lease = desk.commit(desk.claim(ALICE))
        before = desk.table
        assert desk.commit(lease, 5) == lease
        assert desk.table == before

    def test_of_what_was_not_reserved_is_refused(self):
        desk = Desk((0, 25))
        with pytest.raises(ConfigError, match="reserved are those before 10"):
            desk.commit(desk.claim(ALICE), 11)

    def test_renews_the_lease(self):
        desk = Desk((0, 20))
        lease = desk.claim(ALICE)
        desk.now = LEASE_US - 1
        desk.commit(lease)
        desk.now = LEASE_US
        assert isinstance(desk.claim(BOB), Wait)


class TestALeaseThatIsLost:
    def test_goes_to_another_at_its_committed_offset_once_it_has_ended(self):
        desk = Desk((0, 30))
        desk.commit(desk.claim(ALICE))
        desk.now = LEASE_US
        lease = desk.claim(BOB)
        assert (lease.offset, lease.stop) == (10, 30)
        assert desk.table.lost == (Loss(0, ALICE, 10, 20, 30, dead=0),)

    def test_fences_its_former_holder(self):
        desk = Desk((0, 30))
        zombie = desk.claim(ALICE)
        desk.now = LEASE_US
        desk.claim(BOB)
        for call in (desk.commit, desk.renew):
            with pytest.raises(
                SplitLostError, match=r"nothing was committed or renewed for 0\.001 s"
            ):
                call(zombie)

    def test_may_go_on_if_it_has_ended_and_nobody_wanted_it(self):
        desk = Desk((0, 30))
        lease = desk.claim(ALICE)
        desk.now = 5 * LEASE_US
        assert desk.commit(lease).offset == 10

    def test_lasts_as_long_as_it_is_renewed(self):
        desk = Desk((0, 10))
        lease = desk.claim(ALICE)
        for desk.now in range(0, 5 * LEASE_US, LEASE_US // 2):
            desk.renew(lease)
            assert isinstance(desk.claim(BOB), Wait)

    def test_comes_before_the_splits_that_nobody_has_had(self):
        desk = Desk(*((start, start + 10) for start in range(0, 100, 10)), parties=3)
        first = desk.claim(ALICE)
        desk.claim(BOB)
        desk.enter(ALICE, 8)
        assert desk.claim(2).offset == first.offset

    def test_that_is_given_back_goes_to_the_next_and_once_more_changes_nothing(self):
        desk = Desk((0, 30))
        lease = desk.commit(desk.claim(ALICE))
        for _ in range(2):
            desk.release(lease)
        assert desk.table.lost == (Loss(0, ALICE, 10, 20, 30, dead=0),)
        assert desk.claim(BOB)[3:] == (10, 20, 30)

    def test_that_is_given_back_too_often_is_a_dead_letter(self):
        desk = Desk((0, 30), retries=1)
        for _ in range(2):
            desk.release(desk.claim(ALICE))
        assert [loss.dead for loss in desk.table.lost] == [0, 1]
        assert desk.claim(ALICE) == Over(0)

    def test_is_given_up_after_too_many_and_is_a_dead_letter(self):
        desk = Desk((0, 30), retries=1)
        desk.commit(desk.claim(ALICE))
        for incarnation in (8, 9):
            desk.enter(ALICE, incarnation)
            answer = desk.claim(ALICE)
        assert answer == Over(0)
        assert desk.table.dead_letters == (Loss(0, ALICE, 10, 20, 30, dead=1),)
        assert desk.table.read == ((0, 10),)

    def test_counts_only_what_was_lost_since_the_last_commit(self):
        desk = Desk((0, 30), retries=1)
        for incarnation in (8, 9, 10):
            desk.commit(desk.claim(ALICE), ahead=1)
            desk.enter(ALICE, incarnation)
        assert desk.table.dead_letters == ()


class TestALife:
    def test_that_is_new_takes_the_lease_of_the_old_one_away(self):
        desk = Desk((0, 30))
        old = desk.claim(ALICE)
        desk.enter(ALICE, 8)
        with pytest.raises(SplitLostError, match="another incarnation speaks for it"):
            desk.commit(old)
        assert desk.claim(ALICE).offset == 0

    def test_that_is_old_is_refused(self):
        desk = Desk((0, 30))
        desk.enter(ALICE, 8)
        with pytest.raises(SplitLostError, match="another incarnation"):
            desk.claim(ALICE, incarnation=1)

    def test_renews_only_its_own_earlier_one(self):
        desk = Desk((0, 30))
        desk.enter(ALICE, 8)  # another process
        before = desk.table
        desk.enter(ALICE, 9, previous=1)
        assert desk.table == before

    def test_that_has_left_leaves_its_split_to_others(self):
        desk = Desk((0, 30))
        desk.claim(ALICE)
        desk.enter(ALICE, NOBODY)
        assert desk.claim(BOB).offset == 0


class TestStealing:
    def test_takes_half_of_the_largest_rest_in_whole_batches(self):
        desk = Desk((0, 100))
        victim = desk.claim(ALICE)
        thief = desk.claim(BOB)
        assert (thief.offset, thief.stop) == (50, 100)
        assert desk.commit(victim).stop == 50

    def test_leaves_what_is_reserved(self):
        desk = Desk((0, 20))
        desk.claim(ALICE)
        thief = desk.claim(BOB)
        assert (thief.offset, thief.stop) == (10, 20)

    def test_leaves_less_than_a_batch(self):
        desk = Desk((0, 19))
        desk.claim(ALICE)
        assert isinstance(desk.claim(BOB), Wait)

    def test_takes_nothing_as_long_as_something_is_free(self):
        desk = Desk((0, 100), (100, 200), parties=3)
        leases = [desk.claim(rank) for rank in (ALICE, BOB)]
        assert [lease.stop - lease.offset for lease in leases] == [100, 100]


class TestAnEpoch:
    def test_begins_when_the_one_before_is_over(self):
        desk = Desk((0, 10), (10, 20))
        lease = desk.claim(ALICE)
        assert begin_epoch(desk.table, 1) == desk.table
        desk.commit(lease)
        desk.read(ALICE)
        desk.table = begin_epoch(desk.table, 1)
        assert desk.table.read == ()
        assert begin_epoch(desk.table, 1) == desk.table
        assert desk.read(BOB, epoch=1) == Over(1)
        assert desk.table.read == ((0, 20),)

    def test_that_is_over_is_so_for_a_late_trainer_too(self):
        desk = Desk((0, 10))
        desk.read(ALICE)
        desk.table = begin_epoch(desk.table, 1)
        assert desk.claim(BOB, epoch=0) == Over(0)

    def test_knows_no_lease_of_an_earlier_one(self):
        desk = Desk((0, 10))
        earlier = desk.claim(ALICE)
        desk.commit(earlier)
        desk.table = begin_epoch(desk.table, 1)
        desk.claim(ALICE, epoch=1)
        with pytest.raises(SplitLostError):
            desk.commit(earlier)

    def test_has_an_order_of_its_own_that_never_changes(self):
        assert epoch_order(8, seed=1, epoch=0) == [7, 4, 2, 0, 3, 6, 5, 1]
        assert epoch_order(8, seed=1, epoch=1) == [5, 3, 6, 7, 4, 1, 0, 2]
        assert sorted(epoch_order(1000, seed=5, epoch=3)) == [*range(1000)]


class TestACheckpoint:
    def test_goes_on_at_the_committed_offsets_with_as_many_trainers_as_there_are(self):
        desk = Desk((0, 30), retries=0)
        desk.commit(desk.claim(ALICE))
        desk.table = restored(desk.table, 1)
        assert desk.table.lost == (Loss(0, ALICE, 10, 20, 30, dead=0),)
        desk.enter(ALICE, 8)
        assert desk.claim(ALICE).offset == 10

    def test_that_was_saved_between_two_epochs_goes_on_with_the_next(self):
        desk = Desk((0, 30))
        desk.read(ALICE)
        assert restored(desk.table, 2).first == 1

    def test_that_was_saved_in_an_epoch_goes_on_with_it_though_all_is_read(self):
        desk = Desk((0, 30))
        desk.read(ALICE)  # but nobody has come to the end of the epoch, where more may be to do
        desk.table, _ = freeze(desk.table, ALICE, desk.incarnations[ALICE])
        assert restored(desk.table, 2).first == 0


@pytest.mark.parametrize(
    ("splits", "rule"),
    [
        (((5, 5),), "0 <= start < stop"),
        (((-1, 5),), "0 <= start < stop"),
        (((0, 5), (4, 8)), "has records of another one"),
    ],
)
def test_bad_splits_are_refused(splits, rule):
    with pytest.raises(ConfigError, match=rule):
        Plan(splits, seed=0, lease_us=1, max_retries=0)
