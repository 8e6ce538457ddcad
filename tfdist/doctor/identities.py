"""Of which run a ps is that answers, where `TFDIST_CLUSTER_ID` says of which run we are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tfdist.cluster.helper_process import ask_helper_process
from tfdist.doctor.asking import Answer, State
from tfdist.errors import ClusterError
from tfdist.task import ClusterSpec


@dataclass(frozen=True)
class Shown:
    """What a ps shows of itself.

    Attributes:
        identity: its id; None if it shows none.
        failure: why it is not known whether it shows one.
    """

    identity: str | None
    failure: str | None = None


# Called with the cluster and the names of the ps that are meant.
ReadIdentities = Callable[[ClusterSpec, Sequence[str]], Mapping[str, Shown]]


def read_identities(cluster: ClusterSpec, names: Sequence[str]) -> Mapping[str, Shown]:
    """What they show; blocks while a process beside this one imports TensorFlow and asks."""
    wanted = {"cluster": cluster, "names": names}
    try:
        answer = ask_helper_process("tfdist.doctor.read_identities", wanted)
    except ClusterError as error:
        return dict.fromkeys(names, Shown(None, str(error)))
    return {name: Shown(**shown) for name, shown in answer.items()}


def identified(
    answers: Sequence[Answer],
    cluster: ClusterSpec,
    identity: str | None,
    read: ReadIdentities,
) -> list[Answer]:
    """The answers, now also with the run of each ps that serves; without an `identity` as before.

    Args:
        answers: of all tasks.
        cluster: addresses by type.
        identity: of our run.
        read: asks the ps.
    """
    names = [
        answer.name
        for answer in answers
        if answer.state is State.SERVES and answer.name.startswith("ps:")
    ]
    if not identity or not names:
        return list(answers)
    shown = read(cluster, names)
    return [
        _identified(answer, shown[answer.name], identity) if answer.name in shown else answer
        for answer in answers
    ]


def _identified(answer: Answer, shown: Shown, identity: str) -> Answer:
    if shown.identity is None:
        return replace(answer, detail=shown.failure or "it shows no id")
    if shown.identity == identity:
        return replace(answer, state=State.OWN_RUN)
    detail = f"its id is {shown.identity!r}, ours is {identity!r}"
    return replace(answer, state=State.OTHER_RUN, detail=detail)
