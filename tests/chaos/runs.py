"""Random runs of a state machine at a barrier on a real ps."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tfdist.barrier.connection import Connection


def run(machine, *, examples, steps, shrink_secs):
    """What fails is printed as Python, after it was made shorter for a while."""
    phases = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
    with pytest.MonkeyPatch.context() as patch:
        # By default 300 s, after which the deadline of the test is over and nothing is printed.
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
    """To barrier `name` of a cluster, as its trainer of that rank."""
    address, names = tasks[0].cluster_spec["ps"][0], tasks[0].trainers
    return Connection(
        address, name, names, rank, has_action=has_action, previous_incarnation=previous_incarnation
    )
