"""The rules of the barrier, case by case; test_arrivals_exhaustive.py takes all interleavings."""

import pytest

from tfdist.arrivals import (
    RESIGNED,
    Arrivals,
    Decision,
    abort,
    arrive,
    decide,
    describe_missing,
    next_parity,
    release,
    reset,
    resign,
)


def crossed(state: Arrivals, rounds: int) -> Arrivals:
    """The state after everybody went through `rounds` generations."""
    for _ in range(rounds):
        parity = state.generation & 1
        for rank in range(len(state.arrived)):
            state = arrive(state, rank, parity)
        state = release(state)
    return state


@pytest.fixture
def half():
    """Three trainers; 0 and 1 have arrived in generation 1."""
    return arrive(arrive(Arrivals.start(3), 0, 1), 1, 1)


def test_at_the_start_generation_1_is_waited_for_and_all_are_missing():
    state = Arrivals.start(3)
    assert (state.generation, state.waiting, state.missing) == (1, (), (0, 1, 2))
    assert (state.full, state.broken, state.held, state.deserted) == (False,) * 4


def test_whoever_arrives_waits_until_the_last_has_come(half):
    assert (half.waiting, half.missing) == ((0, 1), (2,))
    assert [decide(half, rank, 1) for rank in (0, 1)] == [Decision.WAIT] * 2


def test_the_last_to_arrive_releases_all(half):
    state = arrive(half, 2, 1)
    assert [decide(state, rank, 1) for rank in range(3)] == [Decision.PASS] * 3
    assert (state.generation, state.waiting, state.missing) == (2, (), (0, 1, 2))


def test_arriving_again_counts_once(half):
    assert arrive(half, 1, 1) == half


def test_a_fast_trainer_waits_in_the_next_generation_for_one_that_has_not_looked_yet(half):
    state = arrive(arrive(half, 2, 1), 0, 0)
    assert decide(state, 0, 0) is Decision.WAIT
    assert decide(state, 1, 1) is Decision.PASS
    assert (state.waiting, state.missing) == ((0,), (1, 2))


def test_generations_go_on_for_ever():
    state = crossed(Arrivals.start(3), 1001)
    assert (state.released, state.arrived) == (1001, (1001,) * 3)


def test_a_barrier_of_one_never_waits():
    state = arrive(Arrivals.start(1), 0, 1)
    assert decide(state, 0, 1) is Decision.PASS


class TestAction:
    @pytest.fixture
    def full(self):
        state = Arrivals.start(2, held=True)
        return arrive(arrive(state, 0, 1), 1, 1)

    def test_the_chief_does_not_act_before_all_have_come(self):
        state = arrive(Arrivals.start(2, held=True), 0, 1)
        assert decide(state, 0, 1) is Decision.WAIT

    def test_the_chief_acts_while_the_others_wait(self, full):
        assert full.full
        assert [decide(full, rank, 1) for rank in (0, 1)] == [Decision.ACT, Decision.WAIT]

    def test_all_pass_once_the_chief_releases_them(self, full):
        state = release(full)
        assert [decide(state, rank, 1) for rank in (0, 1)] == [Decision.PASS] * 2

    def test_releasing_twice_releases_one_generation(self, full):
        assert release(release(full)) == release(full)

    def test_nobody_is_released_before_all_have_come(self):
        state = arrive(Arrivals.start(2, held=True), 0, 1)
        assert release(state) == state

    def test_what_was_broken_meanwhile_is_not_released(self, full):
        state = release(abort(full))
        assert [decide(state, rank, 1) for rank in (0, 1)] == [Decision.BROKEN] * 2

    def test_what_was_reset_meanwhile_is_not_released(self, full):
        state = release(reset(full))
        assert [decide(state, rank, 1) for rank in (0, 1)] == [Decision.BROKEN] * 2

    def test_the_last_to_resign_leaves_the_release_to_the_chief(self):
        state = resign(arrive(Arrivals.start(2, held=True), 0, 1), 1)
        assert decide(state, 0, 1) is Decision.ACT


class TestAbort:
    def test_those_that_wait_get_an_error(self, half):
        assert [decide(abort(half), rank, 1) for rank in (0, 1)] == [Decision.BROKEN] * 2

    def test_whoever_comes_later_gets_one_too_and_does_not_count(self, half):
        state = arrive(abort(half), 2, 1)
        assert decide(state, 2, 1) is Decision.BROKEN
        assert state == abort(half)

    def test_those_that_were_released_before_still_pass(self, half):
        state = abort(arrive(half, 2, 1))
        assert [decide(state, rank, 1) for rank in range(3)] == [Decision.PASS] * 3

    def test_resigning_releases_nobody_from_a_broken_barrier(self, half):
        assert decide(resign(abort(half), 2), 0, 1) is Decision.BROKEN


class TestReset:
    @pytest.fixture(params=[False, True], ids=["whole", "broken"])
    def after(self, half, request):
        return reset(abort(half) if request.param else half)

    def test_those_that_waited_get_an_error(self, after):
        assert [decide(after, rank, 1) for rank in (0, 1)] == [Decision.BROKEN] * 2

    def test_nobody_counts_as_arrived_and_nothing_is_broken(self, after):
        assert (after.waiting, after.missing, after.broken) == ((), (0, 1, 2), False)

    def test_each_goes_on_with_the_parity_it_has(self, after):
        for rank in range(3):
            after = arrive(after, rank, 1)
        assert [decide(after, rank, 1) for rank in range(3)] == [Decision.PASS] * 3

    def test_those_that_were_released_before_still_pass(self, half):
        state = reset(arrive(half, 2, 1))
        assert [decide(state, rank, 1) for rank in range(3)] == [Decision.PASS] * 3

    def test_twice_is_as_good_as_once(self, half):
        state = reset(reset(half))
        assert decide(state, 0, 1) is Decision.BROKEN
        assert decide(arrive(state, 0, 1), 0, 1) is Decision.WAIT

    def test_those_that_have_resigned_stay_away(self, half):
        assert reset(resign(half, 2)).missing == (0, 1)

    def test_an_action_stays(self):
        assert reset(Arrivals.start(2, held=True)).held


class TestResign:
    def test_the_others_no_longer_wait_for_it(self, half):
        state = resign(half, 2)
        assert [decide(state, rank, 1) for rank in (0, 1)] == [Decision.PASS] * 2

    def test_one_that_waits_may_resign_after_its_timeout(self, half):
        assert resign(half, 1).waiting == (0,)

    def test_twice_is_as_good_as_once(self, half):
        assert resign(resign(half, 2), 2) == resign(half, 2)

    def test_it_is_neither_waited_for_nor_waits(self, half):
        state = resign(half, 2)
        assert (state.waiting, state.missing) == ((), (0, 1))

    def test_when_all_have_resigned_nothing_is_released(self):
        state = resign(resign(Arrivals.start(2), 0), 1)
        assert (state.deserted, state.full, state.released) == (True, False, 0)
        assert release(state) == state

    @pytest.mark.parametrize("parity", [0, 1])
    def test_it_cannot_come_back(self, half, parity):
        state = resign(half, 2)
        assert arrive(state, 2, parity) == state
        assert decide(state, 2, parity) is not Decision.PASS


class TestRestart:
    """What a trainer that has lost its memory goes on with."""

    def test_one_that_waited_takes_up_its_wait(self, half):
        parity = next_parity(half, 1)
        assert arrive(half, 1, parity) == half
        assert decide(arrive(half, 2, 1), 1, parity) is Decision.PASS

    def test_one_that_had_not_come_arrives_in_the_present_generation(self, half):
        state = arrive(half, 2, next_parity(half, 2))
        assert decide(state, 0, 1) is Decision.PASS

    def test_one_that_was_released_before_it_looked_goes_on_in_the_next(self, half):
        state = arrive(half, 2, 1)
        parity = next_parity(state, 1)
        assert decide(arrive(state, 1, parity), 1, parity) is Decision.WAIT
        assert arrive(state, 1, parity).waiting == (1,)

    def test_released_between_its_restart_and_its_arrival_it_passes(self, half):
        parity = next_parity(half, 1)
        state = arrive(arrive(half, 2, 1), 1, parity)
        assert decide(state, 1, parity) is Decision.PASS

    @pytest.mark.parametrize("rank", [0, 1, 2])
    def test_after_a_reset_it_arrives_in_the_new_generation(self, half, rank):
        state = reset(half)
        assert arrive(state, rank, next_parity(state, rank)).waiting == (rank,)

    def test_a_reset_between_its_restart_and_its_arrival_changes_nothing(self, half):
        parity = next_parity(half, 2)
        assert arrive(reset(half), 2, parity).waiting == (2,)

    def test_a_late_message_of_its_killed_predecessor_does_not_count(self):
        state = crossed(Arrivals.start(2), 1)
        waiting = arrive(state, 0, next_parity(state, 0))
        assert arrive(waiting, 0, 1) == waiting  # was sent in generation 1

    @pytest.mark.parametrize("rounds", [1, 2, 3])
    def test_at_any_generation_all_may_start_afresh_and_cross(self, rounds):
        state = crossed(Arrivals.start(3), rounds)
        parities = [next_parity(state, rank) for rank in range(3)]
        for rank in range(3):
            state = arrive(state, rank, parities[rank])
        assert state.released == rounds + 1


class TestDescription:
    NAMES = ("chief:0", "worker:0", "worker:1")

    def test_tells_when_each_missing_one_was_last_seen(self):
        state = arrive(crossed(Arrivals.start(3), 6), 0, 1)
        text = describe_missing(state, self.NAMES, [0.0, 41.2, 7.9])
        assert text == (
            "missing worker:0, last seen in generation 6, 41 s ago; "
            "worker:1, last seen in generation 6, 8 s ago"
        )

    def test_tells_who_was_never_seen(self, half):
        assert describe_missing(half, self.NAMES, [1.0, 2.0, 0.0]) == (
            "missing worker:1, never seen"
        )

    def test_one_that_was_never_seen_is_not_made_up_by_a_reset(self, half):
        text = describe_missing(reset(half), self.NAMES, [1.0, 2.0, 1.7e9])
        assert "worker:1, never seen" in text

    def test_leaves_out_who_has_resigned(self, half):
        text = describe_missing(resign(arrive(half, 2, 1), 0), self.NAMES, [0.0, 0.0, 0.0])
        assert "chief:0" not in text

    def test_tells_that_the_action_is_running(self):
        state = arrive(arrive(Arrivals.start(2, held=True), 0, 1), 1, 1)
        assert describe_missing(state, self.NAMES, [0.0, 0.0]) == (
            "all have arrived; chief:0 runs the action"
        )

    def test_tells_nothing_of_an_action_that_a_broken_barrier_will_not_run(self):
        state = abort(arrive(arrive(Arrivals.start(2, held=True), 0, 1), 1, 1))
        assert describe_missing(state, self.NAMES, [0.0, 0.0]) == "all have arrived"


def test_resigned_is_ahead_of_every_generation_and_fits_into_64_bits():
    assert 10**18 < RESIGNED < 2**63
