"""Random runs of a state machine at a barrier on a real ps."""

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tfdist.barrier.connection import Connection


def run(machine, *, examples, steps, shrink):
    """What fails is printed as Python, with a line that repeats it."""
    phases = [Phase.explicit, Phase.reuse, Phase.generate, *[Phase.shrink] * shrink]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=phases,
            derandomize=False,  # other runs each time, also where CI is set
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],  # a graph takes 0.1 to 0.3 s to build
        ),
    )


def connect(tasks, name, rank, *, held=False, previous_life=None):
    """To barrier `name` of a cluster, as its trainer of that rank."""
    address, names = tasks[0].cluster_spec["ps"][0], tasks[0].trainers
    return Connection(address, name, names, rank, held=held, previous_life=previous_life)
