"""Costs of messages for the tests of the simulation: none at all, and those of a real machine."""

import math

from tfdist.planner.message_costs import Cost, Line, MessageCosts
from tfdist.planner.split_job import Machines

NOTHING = Cost(Line(), Line(), Line())
FREE = MessageCosts(*[NOTHING] * 8, *[Line()] * 3)
FAST = Machines(bytes_per_sec=math.inf)
# Of the order of the measured costs.
DEAR = MessageCosts(
    run=Cost(Line(2e-4), Line(3e-4, 1e-4), Line(2e-4)),
    pull=Cost(Line(2e-5, 2e-10), Line(1e-4, 3e-10), Line()),
    push=Cost(Line(3e-4, 9e-10), Line(3e-4, 3e-10), Line()),
    lookup=Cost(Line(3e-4, 1e-7), Line(3e-4, 1e-7), Line()),
    scatter=Cost(Line(5e-4, 3e-7), Line(4e-4, 1e-7), Line()),
    commit=Cost(Line(8e-4, 5e-8), Line(1e-3), Line()),
    claim=Cost(Line(9e-4, 9e-8), Line(6e-4), Line(2e-4)),
    arrival=Cost(Line(5e-4, 3e-8), Line(2e-4), Line(2e-4)),
    commit_section=Line(6e-4, 5e-8),
    claim_section=Line(5e-4, 9e-8),
    arrival_section=Line(2e-4, 3e-8),
)
