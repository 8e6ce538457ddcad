"""The promises of the table of splits, one rule at a time. Alice has rank 0, Bob rank 1."""

import pytest

from tfdist.errors import ConfigError, SplitLostError
from tfdist.splits.plan import Plan, epoch_order
from tfdist.splits.rules import (
    NO_INCARNATION,
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
    recover,
    release,
)

ALICE, BOB = 0, 1
LEASE_US = 1000
BATCH = 10  # records in a batch


class Job:
    """A table and a clock; the first incarnation of each trainer is its rank + 1."""

    def __init__(self, *splits, parties=2, retries=1, seed=0):
        plan = Plan(splits, seed=seed, lease_us=LEASE_US, max_retries=retries)
        self.table, self.now, self.incarnations = SplitTable.start(plan, parties), 0, {}
        for rank in range(parties):
            self.enter(rank, rank + 1)

    def enter(self, rank, incarnation, previous=None):
        self.table = enter(self.table, rank, incarnation, previous)
        self.incarnations[rank] = incarnation

    def claim(self, rank, epoch=0, batch_size=BATCH, incarnation=None):
        incarnation = self.incarnations[rank] if incarnation is None else incarnation
        self.table, answer = claim(
            self.table, rank, incarnation, epoch=epoch, now=self.now, batch_size=batch_size
        )
        return answer

    def commit(self, lease, offset=None, batch_size=BATCH):
        offset = lease.reserved if offset is None else offset
        self.table, answer = commit(self.table, lease, offset, now=self.now, batch_size=batch_size)
        return answer

    def release(self, lease):
        self.table, answer = release(self.table, lease)
        return answer

    def renew(self, lease):
        return self.commit(lease, lease.offset)

    def finish(self, rank, epoch=0):
        """Claims and commits splits until a claim gets no lease; returns that answer."""
        while isinstance(answer := self.claim(rank, epoch), Lease):
            while not answer.finished:
                answer = self.commit(answer)
        return answer


class TestAClaim:
    def test_leases_a_split_and_reserves_one_batch(self):
        lease = Job((100, 164)).claim(ALICE)
        assert (lease.offset, lease.reserved, lease.stop) == (100, 110, 164)

    def test_leases_different_splits_to_different_trainers(self):
        job = Job((0, 5), (5, 10))
        assert {job.claim(rank).offset for rank in (ALICE, BOB)} == {0, 5}

    def test_that_is_repeated_returns_the_same_lease(self):
        job = Job((0, 100), (100, 200))
        assert job.claim(ALICE) == job.claim(ALICE)

    def test_waits_for_the_first_lease_to_expire_if_no_split_is_free(self):
        job = Job((0, 10), (10, 20), parties=3)
        job.claim(ALICE)
        job.now = 7
        job.claim(BOB)
        assert job.claim(2) == Wait(until=LEASE_US)

    def test_returns_over_when_all_splits_are_done(self):
        job = Job((0, 25), (25, 30))
        assert job.finish(ALICE) == Over(0)
        assert job.claim(BOB) == Over(0)
        assert job.table.committed == ((0, 30),)

    def test_for_an_epoch_that_has_not_begun_is_a_config_error(self):
        with pytest.raises(ConfigError, match="must be at most 0, the last epoch"):
            Job((0, 1)).claim(ALICE, epoch=1)

    def test_with_batches_of_no_records_is_a_config_error(self):
        with pytest.raises(ConfigError, match="at least 1 record"):
            Job((0, 1)).claim(ALICE, batch_size=0)


class TestACommit:
    def test_reserves_the_next_batch(self):
        job = Job((0, 25))
        lease = job.commit(job.claim(ALICE))
        assert (lease.offset, lease.reserved, lease.stop) == (10, 20, 25)
        lease = job.commit(lease)
        assert (lease.offset, lease.reserved) == (20, 25)
        assert job.commit(lease).finished

    def test_that_is_repeated_changes_nothing(self):
        job = Job((0, 25))
        lease = job.claim(ALICE)
        assert job.commit(lease) == job.commit(lease)
        last = job.commit(job.commit(job.claim(ALICE)))
        assert last.finished
        before = job.table
        assert job.commit(last._replace(offset=20, stop=25), 25).finished
        assert job.table == before

    def test_of_a_committed_offset_changes_nothing(self):
        job = Job((0, 25))
        lease = job.commit(job.claim(ALICE))
        before = job.table
        assert job.commit(lease, 5) == lease
        assert job.table == before

    def test_beyond_the_reserved_records_is_a_config_error(self):
        job = Job((0, 25))
        with pytest.raises(ConfigError, match="at most 10, the end of the batch"):
            job.commit(job.claim(ALICE), 11)

    def test_renews_the_lease(self):
        job = Job((0, 20))
        lease = job.claim(ALICE)
        job.now = LEASE_US - 1
        job.commit(lease)
        job.now = LEASE_US
        assert isinstance(job.claim(BOB), Wait)


class TestALostLease:
    def test_continues_with_another_trainer_at_the_committed_offset(self):
        job = Job((0, 30))
        job.commit(job.claim(ALICE))
        job.now = LEASE_US
        lease = job.claim(BOB)
        assert (lease.offset, lease.stop) == (10, 30)
        assert job.table.lost == (Loss(0, ALICE, 10, 20, 30, dead=0),)

    def test_fences_its_former_holder(self):
        job = Job((0, 30))
        zombie = job.claim(ALICE)
        job.now = LEASE_US
        job.claim(BOB)
        for call in (job.commit, job.renew):
            with pytest.raises(SplitLostError, match=r"attempt 1 .* had no commit for 0\.001 s"):
                call(zombie)

    def test_is_not_lost_by_expiring_if_no_trainer_wants_a_split(self):
        job = Job((0, 30))
        lease = job.claim(ALICE)
        job.now = 5 * LEASE_US
        assert job.commit(lease).offset == 10

    def test_does_not_expire_while_it_is_renewed(self):
        job = Job((0, 10))
        lease = job.claim(ALICE)
        for job.now in range(0, 5 * LEASE_US, LEASE_US // 2):
            job.renew(lease)
            assert isinstance(job.claim(BOB), Wait)

    def test_comes_before_all_splits_that_no_trainer_has_had(self):
        job = Job(*((start, start + 10) for start in range(0, 100, 10)), parties=3)
        first = job.claim(ALICE)
        job.claim(BOB)
        job.enter(ALICE, 8)
        assert job.claim(2).offset == first.offset

    def test_that_was_released_goes_to_the_next_trainer_and_a_second_release_changes_nothing(self):
        job = Job((0, 30))
        lease = job.commit(job.claim(ALICE))
        for _ in range(2):
            job.release(lease)
        assert job.table.lost == (Loss(0, ALICE, 10, 20, 30, dead=0),)
        assert job.claim(BOB)[3:] == (10, 20, 30)

    def test_that_was_released_too_often_is_a_dead_letter(self):
        job = Job((0, 30), retries=1)
        for _ in range(2):
            job.release(job.claim(ALICE))
        assert [loss.dead for loss in job.table.lost] == [0, 1]
        assert job.claim(ALICE) == Over(0)

    def test_becomes_a_dead_letter_after_too_many_retries(self):
        job = Job((0, 30), retries=1)
        job.commit(job.claim(ALICE))
        for incarnation in (8, 9):
            job.enter(ALICE, incarnation)
            answer = job.claim(ALICE)
        assert answer == Over(0)
        assert job.table.dead_letters == (Loss(0, ALICE, 10, 20, 30, dead=1),)
        assert job.table.committed == ((0, 10),)

    def test_before_the_last_commit_does_not_count_as_a_retry(self):
        job = Job((0, 30), retries=1)
        for incarnation in (8, 9, 10):
            job.commit(job.claim(ALICE), batch_size=1)
            job.enter(ALICE, incarnation)
        assert job.table.dead_letters == ()


class TestAnIncarnation:
    def test_that_enters_ends_the_lease_of_its_predecessor(self):
        job = Job((0, 30))
        old = job.claim(ALICE)
        job.enter(ALICE, 8)
        with pytest.raises(SplitLostError, match="another process acts for this trainer"):
            job.commit(old)
        assert job.claim(ALICE).offset == 0

    def test_that_was_replaced_cannot_claim(self):
        job = Job((0, 30))
        job.enter(ALICE, 8)
        with pytest.raises(SplitLostError, match="another process acts"):
            job.claim(ALICE, incarnation=1)

    def test_replaces_only_the_given_previous_one(self):
        job = Job((0, 30))
        job.enter(ALICE, 8)  # another process
        before = job.table
        job.enter(ALICE, 9, previous=1)
        assert job.table == before

    def test_that_has_left_frees_its_split(self):
        job = Job((0, 30))
        job.claim(ALICE)
        job.enter(ALICE, NO_INCARNATION)
        assert job.claim(BOB).offset == 0


class TestStealing:
    def test_takes_half_of_the_largest_rest_in_whole_batches(self):
        job = Job((0, 100))
        victim = job.claim(ALICE)
        thief = job.claim(BOB)
        assert (thief.offset, thief.stop) == (50, 100)
        assert job.commit(victim).stop == 50

    def test_takes_no_reserved_records(self):
        job = Job((0, 20))
        job.claim(ALICE)
        thief = job.claim(BOB)
        assert (thief.offset, thief.stop) == (10, 20)

    def test_takes_no_less_than_a_batch(self):
        job = Job((0, 19))
        job.claim(ALICE)
        assert isinstance(job.claim(BOB), Wait)

    def test_takes_nothing_while_a_split_is_free(self):
        job = Job((0, 100), (100, 200), parties=3)
        leases = [job.claim(rank) for rank in (ALICE, BOB)]
        assert [lease.stop - lease.offset for lease in leases] == [100, 100]


class TestAnEpoch:
    def test_begins_when_the_one_before_is_over(self):
        job = Job((0, 10), (10, 20))
        lease = job.claim(ALICE)
        assert begin_epoch(job.table, 1) == job.table
        job.commit(lease)
        job.finish(ALICE)
        job.table = begin_epoch(job.table, 1)
        assert job.table.committed == ()
        assert begin_epoch(job.table, 1) == job.table
        assert job.finish(BOB, epoch=1) == Over(1)
        assert job.table.committed == ((0, 20),)

    def test_that_is_over_is_over_for_a_late_trainer_too(self):
        job = Job((0, 10))
        job.finish(ALICE)
        job.table = begin_epoch(job.table, 1)
        assert job.claim(BOB, epoch=0) == Over(0)

    def test_fences_the_leases_of_earlier_epochs(self):
        job = Job((0, 10))
        earlier = job.claim(ALICE)
        job.commit(earlier)
        job.table = begin_epoch(job.table, 1)
        job.claim(ALICE, epoch=1)
        with pytest.raises(SplitLostError):
            job.commit(earlier)

    def test_has_an_order_of_its_own_that_is_the_same_everywhere(self):
        assert epoch_order(8, seed=1, epoch=0) == [7, 4, 2, 0, 3, 6, 5, 1]
        assert epoch_order(8, seed=1, epoch=1) == [5, 3, 6, 7, 4, 1, 0, 2]
        assert sorted(epoch_order(1000, seed=5, epoch=3)) == [*range(1000)]


class TestACheckpoint:
    def test_continues_at_the_committed_offsets_with_another_number_of_trainers(self):
        job = Job((0, 30), retries=0)
        job.commit(job.claim(ALICE))
        job.table = recover(job.table, 1)
        assert job.table.lost == (Loss(0, ALICE, 10, 20, 30, dead=0),)
        job.enter(ALICE, 8)
        assert job.claim(ALICE).offset == 10

    def test_saved_between_two_epochs_continues_with_the_next(self):
        job = Job((0, 30))
        job.finish(ALICE)
        assert recover(job.table, 2).first_epoch == 1

    def test_saved_in_an_epoch_continues_with_that_epoch_even_if_all_is_committed(self):
        job = Job((0, 30))
        job.finish(ALICE)
        job.table, _ = freeze(job.table, ALICE, job.incarnations[ALICE])
        assert recover(job.table, 2).first_epoch == 0


@pytest.mark.parametrize(
    ("splits", "rule"),
    [
        (((5, 5),), "0 <= start < stop"),
        (((-1, 5),), "0 <= start < stop"),
        (((0, 5), (4, 8)), "overlaps another split"),
    ],
)
def test_bad_splits_are_a_config_error(splits, rule):
    with pytest.raises(ConfigError, match=rule):
        Plan(splits, seed=0, lease_us=1, max_retries=0)
