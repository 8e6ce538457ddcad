"""Runs Hypothesis state machines against a barrier on a real ps."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tfdist.barrier.connection import Connection


def run(machine, *, examples, steps, shrink_secs):
    """Runs the machine; prints a failing run as Python, after shrinking it for `shrink_secs`."""
    phases = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
    with pytest.MonkeyPatch.context() as patch:
        # The default of 300 s exceeds the deadline of the test, so nothing would be printed.
        patch.setattr("hypothesis.internal.conjecture.engine.MAX_SHRINKING_SECONDS", shrink_secs)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                phases=phases if shrink_secs else phases[:-1],
                derandomize=False,  # other runs each time, also where CI is set
                print_blob=True,
                report_multiple_bugs=False,
                suppress_health_check=[HealthCheck.too_slow],  # a graph takes 0.1 to 0.3 s
            ),
        )


def connect(tasks, name, rank, *, has_action=False, previous_incarnation=None):
    """A connection to barrier `name`, as the trainer of that rank."""
    address, names = tasks[0].cluster_spec["ps"][0], tasks[0].trainers
    return Connection(
        address, name, names, rank, has_action=has_action, previous_incarnation=previous_incarnation
    )
