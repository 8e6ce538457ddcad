"""The rules of the barrier, case by case; test_barrier_rules_exhaustive.py explores all orders."""

import pytest

from tfdist.barrier.rules import (
    RESIGNED,
    Arrivals,
    Decision,
    abort,
    arrive,
    begin_action,
    decide,
    describe,
    enter,
    next_parity,
    release,
    reset,
    resign,
)

INCARNATION, NEW = 1, 2  # of every trainer: the first one, and a later one


def entered(parties: int, *, has_action: bool = False) -> Arrivals:
    state = Arrivals.start(parties)
    for rank in range(parties):
        state = enter(state, rank, INCARNATION, has_action=has_action)
    return state


def come(state: Arrivals, *ranks: int) -> Arrivals:
    """The state after these ranks have arrived in the present generation."""
    parity = state.generation & 1
    for rank in ranks:
        state = arrive(state, rank, INCARNATION, parity)
    return state


def acted(state: Arrivals) -> Arrivals:
    return release(begin_action(state, INCARNATION), INCARNATION)


def decision(
    state: Arrivals, rank: int, parity: int = 1, *, incarnation: int = INCARNATION, resets: int = 0
):
    """The decision for a trainer that waits for a generation of that parity."""
    return decide(state, rank, incarnation, parity, resets)


@pytest.fixture
def half():
    """Three trainers; 0 and 1 have arrived in generation 1."""
    return come(entered(3), 0, 1)


def test_at_the_start_all_are_missing_in_generation_1():
    state = Arrivals.start(3)
    assert (state.generation, state.waiting, state.missing) == (1, (), (0, 1, 2))
    assert (state.full, state.broken, state.has_action, state.acting) == (False,) * 4


def test_a_trainer_waits_until_the_last_has_arrived(half):
    assert (half.waiting, half.missing) == ((0, 1), (2,))
    assert [decision(half, rank) for rank in (0, 1)] == [Decision.WAIT] * 2


def test_the_last_to_arrive_releases_all(half):
    state = come(half, 2)
    assert [decision(state, rank) for rank in range(3)] == [Decision.PASS] * 3
    assert (state.generation, state.waiting, state.missing) == (2, (), (0, 1, 2))


def test_arriving_again_counts_once(half):
    assert come(half, 1) == half


def test_a_trainer_whose_arrival_was_lost_arrives_again(half):
    assert decision(half, 2) is Decision.ARRIVE


def test_a_fast_trainer_waits_in_the_next_generation_for_a_slow_one(half):
    state = come(come(half, 2), 0)
    assert decision(state, 0, parity=0) is Decision.WAIT
    assert decision(state, 1, parity=1) is Decision.PASS
    assert (state.waiting, state.missing) == ((0,), (1, 2))


def test_a_thousand_generations_pass():
    state = entered(3)
    for _ in range(1001):
        state = come(state, 0, 1, 2)
    assert (state.released, state.arrived) == (1001, (1001,) * 3)


def test_a_barrier_of_one_never_waits():
    assert decision(come(entered(1), 0), 0) is Decision.PASS


class TestAction:
    @pytest.fixture
    def full(self):
        return come(entered(2, has_action=True), 0, 1)

    def test_the_chief_does_not_act_before_all_have_arrived(self):
        state = come(entered(2, has_action=True), 0)
        assert decision(state, 0) is Decision.WAIT
        assert begin_action(state, INCARNATION) == state

    def test_the_chief_acts_while_the_others_wait(self, full):
        for state in (full, begin_action(full, INCARNATION)):
            assert [decision(state, rank) for rank in (0, 1)] == [Decision.ACT, Decision.WAIT]

    def test_all_pass_once_the_chief_releases_them(self, full):
        state = acted(full)
        assert [decision(state, rank) for rank in (0, 1)] == [Decision.PASS] * 2
        assert not state.acting

    def test_releasing_twice_releases_one_generation(self, full):
        assert release(acted(full), INCARNATION) == acted(full)

    def test_no_trainer_is_released_before_the_action_began(self, full):
        assert release(full, INCARNATION) == full

    @pytest.mark.parametrize("stop", [abort, reset])
    def test_a_generation_that_was_broken_or_reset_meanwhile_is_not_released(self, full, stop):
        state = release(stop(begin_action(full, INCARNATION)), INCARNATION)
        assert [decision(state, rank) for rank in (0, 1)] == [Decision.BROKEN] * 2

    @pytest.mark.parametrize("stop", [abort, reset])
    def test_the_action_does_not_begin_after_an_abort_or_a_reset(self, full, stop):
        assert begin_action(stop(full), INCARNATION) == stop(full)

    def test_after_a_reset_the_next_action_has_to_begin_again(self, full):
        state = come(reset(begin_action(full, INCARNATION)), 0, 1)
        assert release(state, INCARNATION) == state
        assert acted(state).released == state.generation

    def test_the_last_to_resign_leaves_the_release_to_the_chief(self):
        state = resign(come(entered(2, has_action=True), 0), 1, INCARNATION)
        assert decision(state, 0) is Decision.ACT

    def test_a_chief_that_died_in_its_action_breaks_the_barrier_when_it_restarts(self, full):
        state = enter(begin_action(full, INCARNATION), 0, NEW, has_action=True)
        assert state.broken
        assert decision(state, 1) is Decision.BROKEN
        assert release(state, NEW) == release(state, INCARNATION) == state

    def test_a_worker_that_restarts_during_the_action_breaks_nothing(self, full):
        state = enter(begin_action(full, INCARNATION), 1, NEW)
        assert (state.has_action, state.broken) == (True, False)
        assert decision(release(state, INCARNATION), 1, incarnation=NEW) is Decision.PASS

    def test_a_chief_that_died_before_or_after_its_action_breaks_nothing(self, full):
        assert not enter(full, 0, NEW, has_action=True).broken
        assert not enter(acted(full), 0, NEW, has_action=True).broken

    def test_after_a_reset_a_chief_that_died_in_its_action_breaks_nothing(self, full):
        assert not enter(reset(begin_action(full, INCARNATION)), 0, NEW, has_action=True).broken

    def test_a_chief_that_restarts_without_an_action_releases_as_the_last_to_arrive(self, full):
        state = enter(full, 0, NEW)
        assert decision(state, 0, incarnation=NEW) is not Decision.ACT
        state = arrive(state, 0, NEW, 1)
        assert [
            decision(state, rank, incarnation=incarnation)
            for rank, incarnation in ((0, NEW), (1, INCARNATION))
        ] == [Decision.PASS] * 2


class TestAbort:
    def test_waiting_trainers_get_an_error(self, half):
        assert [decision(abort(half), rank) for rank in (0, 1)] == [Decision.BROKEN] * 2

    def test_a_trainer_that_arrives_later_gets_an_error_and_does_not_count(self, half):
        state = come(abort(half), 2)
        assert decision(state, 2) is Decision.BROKEN
        assert state == abort(half)

    def test_trainers_that_were_released_before_still_pass(self, half):
        state = abort(come(half, 2))
        assert [decision(state, rank) for rank in range(3)] == [Decision.PASS] * 3

    def test_resigning_releases_no_trainer_from_a_broken_barrier(self, half):
        assert decision(resign(abort(half), 2, INCARNATION), 0) is Decision.BROKEN

    def test_a_new_incarnation_does_not_mend_it(self, half):
        assert enter(abort(half), 0, NEW).broken


class TestReset:
    @pytest.fixture(params=[False, True], ids=["whole", "broken"])
    def after(self, half, request):
        return reset(abort(half) if request.param else half)

    def test_trainers_that_waited_get_an_error(self, after):
        assert [decision(after, rank) for rank in (0, 1)] == [Decision.BROKEN] * 2

    def test_a_trainer_that_knew_of_the_reset_and_whose_arrival_was_lost_arrives_again(self, after):
        assert decision(after, 0, resets=1) is Decision.ARRIVE

    def test_no_trainer_counts_as_arrived_and_the_barrier_is_not_broken(self, after):
        assert (after.waiting, after.missing, after.broken) == ((), (0, 1, 2), False)

    def test_each_trainer_keeps_its_parity(self, after):
        state = come(after, 0, 1, 2)
        assert [decision(state, rank) for rank in range(3)] == [Decision.PASS] * 3

    def test_trainers_that_were_released_before_still_pass(self, half):
        state = reset(come(half, 2))
        assert [decision(state, rank) for rank in range(3)] == [Decision.PASS] * 3

    def test_twice_has_the_effect_of_once(self, half):
        state = reset(reset(half))
        assert decision(state, 0) is Decision.BROKEN
        assert decision(come(state, 0), 0) is Decision.WAIT

    def test_resigned_trainers_stay_resigned(self, half):
        assert reset(resign(half, 2, INCARNATION)).missing == (0, 1)

    def test_it_skips_two_generations(self, half, after):
        assert after.generation == half.generation + 2

    def test_the_action_and_the_incarnations_stay(self):
        state = reset(entered(2, has_action=True))
        assert (state.has_action, state.incarnations) == (True, (INCARNATION, INCARNATION))


class TestResign:
    def test_the_others_no_longer_wait_for_it(self, half):
        state = resign(half, 2, INCARNATION)
        assert [decision(state, rank) for rank in (0, 1)] == [Decision.PASS] * 2

    def test_a_waiting_trainer_may_resign_after_its_timeout(self, half):
        assert resign(half, 1, INCARNATION).waiting == (0,)

    def test_twice_has_the_effect_of_once(self, half):
        assert resign(resign(half, 2, INCARNATION), 2, INCARNATION) == resign(half, 2, INCARNATION)

    def test_a_resigned_trainer_is_neither_waiting_nor_missing(self, half):
        state = resign(half, 2, INCARNATION)
        assert (state.waiting, state.missing) == ((), (0, 1))

    @pytest.mark.parametrize("has_action", [False, True])
    def test_when_all_have_resigned_nothing_is_released(self, has_action):
        state = resign(resign(entered(2, has_action=has_action), 0, INCARNATION), 1, INCARNATION)
        assert (state.full, state.released) == (False, 0)
        assert acted(state) == state

    @pytest.mark.parametrize("incarnation", [INCARNATION, NEW])
    @pytest.mark.parametrize("parity", [0, 1])
    def test_it_cannot_return(self, half, parity, incarnation):
        state = enter(resign(half, 2, INCARNATION), 2, incarnation)
        assert arrive(state, 2, incarnation, parity) == state
        assert decision(state, 2, parity, incarnation=incarnation) is not Decision.PASS


class TestRestart:
    """A new incarnation knows nothing of the earlier one, and continues from the state."""

    def test_a_trainer_that_waited_continues_its_wait(self, half):
        state = enter(half, 1, NEW)
        parity = next_parity(state)
        assert arrive(state, 1, NEW, parity) == state
        assert decision(come(state, 2), 1, parity, incarnation=NEW) is Decision.PASS

    def test_a_trainer_that_had_not_arrived_arrives_in_the_present_generation(self, half):
        state = enter(half, 2, NEW)
        assert decision(arrive(state, 2, NEW, next_parity(state)), 0) is Decision.PASS

    def test_a_trainer_that_was_released_unnoticed_continues_in_the_next_generation(self, half):
        state = enter(come(half, 2), 1, NEW)
        parity = next_parity(state)
        state = arrive(state, 1, NEW, parity)
        assert decision(state, 1, parity, incarnation=NEW) is Decision.WAIT
        assert state.waiting == (1,)

    def test_a_trainer_released_between_its_restart_and_its_arrival_passes(self, half):
        state = enter(half, 1, NEW)
        parity = next_parity(state)
        state = arrive(come(state, 2), 1, NEW, parity)
        assert decision(state, 1, parity, incarnation=NEW) is Decision.PASS

    @pytest.mark.parametrize("rank", [0, 1, 2])
    def test_after_a_reset_a_restarted_trainer_arrives_in_the_new_generation(self, half, rank):
        state = enter(reset(half), rank, NEW)
        assert arrive(state, rank, NEW, next_parity(state)).waiting == (rank,)

    def test_a_reset_between_its_restart_and_its_arrival_changes_nothing(self, half):
        state = enter(half, 2, NEW)
        assert arrive(reset(state), 2, NEW, next_parity(state)).waiting == (2,)

    @pytest.mark.parametrize("rounds", [1, 2, 3])
    def test_all_trainers_may_restart_in_any_generation_and_pass(self, rounds):
        state = entered(3)
        for _ in range(rounds):
            state = come(state, 0, 1, 2)
        for rank in range(3):
            state = enter(state, rank, NEW)
        parity = next_parity(state)
        for rank in range(3):
            state = arrive(state, rank, NEW, parity)
        assert state.released == rounds + 1


class TestEarlierIncarnation:
    """It sends a late message, or its process is still alive."""

    @pytest.mark.parametrize("parity", [0, 1])
    def test_its_arrival_does_not_count(self, half, parity):
        state = enter(half, 2, NEW)
        assert arrive(state, 2, INCARNATION, parity) == state

    def test_it_does_not_resign(self, half):
        state = enter(half, 2, NEW)
        assert resign(state, 2, INCARNATION) == state

    def test_it_neither_begins_an_action_nor_releases(self):
        state = enter(come(entered(2, has_action=True), 0, 1), 0, NEW, has_action=True)
        assert begin_action(state, INCARNATION) == state
        acting = begin_action(state, NEW)
        assert release(acting, INCARNATION) == acting

    @pytest.mark.parametrize("change", [lambda state: state, abort, reset, lambda s: come(s, 2)])
    @pytest.mark.parametrize("parity", [0, 1])
    def test_it_learns_that_it_was_replaced_whatever_has_happened(self, half, change, parity):
        assert decision(change(enter(half, 1, NEW)), 1, parity) is Decision.REPLACED

    def test_a_new_incarnation_of_one_trainer_does_not_affect_the_others(self, half):
        state = enter(half, 2, NEW)
        assert decision(state, 0) is Decision.WAIT
        assert arrive(state, 2, NEW, 1).released == 1


class TestDescription:
    NAMES = ("chief:0", "worker:0", "worker:1")

    def test_it_says_when_each_missing_trainer_was_last_seen(self):
        state = entered(3)
        for _ in range(6):
            state = come(state, 0, 1, 2)
        state = come(state, 0)
        text = describe(state, self.NAMES, [0.0, 41.2, 7.9], 30.0)
        assert text == (
            "1 of 3 trainers after 30.0 s; missing worker:0, last seen in generation 6, 41 s ago; "
            "worker:1, last seen in generation 6, 8 s ago"
        )

    def test_it_names_a_trainer_that_was_never_seen(self, half):
        assert describe(half, self.NAMES, [1.0, 2.0, None], 30.0) == (
            "2 of 3 trainers after 30.0 s; missing worker:1, which has never arrived"
        )

    def test_after_a_reset_a_trainer_is_still_never_seen(self, half):
        text = describe(reset(half), self.NAMES, [1.0, 2.0, None], 30.0)
        assert "worker:1, which has never arrived" in text

    def test_it_leaves_out_resigned_trainers(self, half):
        text = describe(resign(come(half, 2), 0, INCARNATION), self.NAMES, [0.0, 0.0, 0.0], 30.0)
        assert text.startswith("0 of 2 trainers")
        assert "chief:0" not in text

    def test_it_says_that_the_action_is_running(self):
        state = come(entered(2, has_action=True), 0, 1)
        assert describe(state, self.NAMES, [0.0, 0.0], 30.0) == (
            "2 of 2 trainers after 30.0 s; all have arrived; chief:0 runs the action"
        )

    def test_it_does_not_mention_the_action_of_a_broken_barrier(self):
        state = abort(come(entered(2, has_action=True), 0, 1))
        text = describe(state, self.NAMES, [0.0, 0.0], 30.0)
        assert text == "2 of 2 trainers after 30.0 s; all have arrived"


def test_resigned_is_ahead_of_every_generation_and_fits_into_64_bits():
    assert 10**18 < RESIGNED < 2**63
