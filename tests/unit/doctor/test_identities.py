"""Of which run a ps is that answers, where `TFDIST_CLUSTER_ID` says of which run we are."""

import pytest

from tfdist.doctor import network
from tfdist.doctor.asking import Answer, State
from tfdist.doctor.identities import Shown, identified

CLUSTER = {"ps": ["h:1", "h:2"], "worker": ["h:3"]}


def answer(name="ps:0", state=State.SERVES):
    kind, _, index = name.partition(":")
    return Answer(name, CLUSTER[kind][int(index)], state, "", ("10.0.0.1",))


def look(answers, shown, identity="ours"):
    """The answers, and of whom was asked."""
    asked = []

    def read(cluster, names):
        assert cluster is CLUSTER
        asked.extend(names)
        return dict.fromkeys(names, shown)

    return identified(answers, CLUSTER, identity, read), asked


def others(answers):
    [finding] = network.others(answers, None)
    return finding


@pytest.mark.parametrize(
    ("shown", "check", "severity", "told"),
    [
        (Shown("ours"), "network.own_run", "note", "ps:0 (h:1)"),
        (Shown("old"), "network.other_run", "error", "(h:1: its id is 'old', ours is 'ours')"),
        (Shown(None), "network.serving", "note", "ps:0 (h:1: it shows no id)"),
        (Shown(None, "it is silent"), "network.serving", "note", "ps:0 (h:1: it is silent)"),
    ],
)
def test_a_ps_is_of_this_run_or_another_or_does_not_say(shown, check, severity, told):
    answers, asked = look([answer()], shown)
    finding = others(answers)
    assert (finding.check, finding.severity, asked) == (check, severity, ["ps:0"])
    assert told in finding.what


def test_only_a_ps_that_serves_is_asked():
    others = [answer("worker:0"), answer("ps:0", State.REFUSED), answer("ps:1", State.FOREIGN)]
    answers, asked = look([*others], Shown("old"))
    assert (answers, asked) == (others, [])


@pytest.mark.parametrize("identity", [None, ""])
def test_who_has_no_id_asks_nobody(identity):
    answers, asked = look([answer()], Shown("old"), identity)
    assert (answers, asked) == ([answer()], [])


@pytest.mark.parametrize(
    ("shown", "who"),
    [(Shown("old"), "by the ps of another run: its id is 'old'"), (Shown("ours"), "runs already")],
)
def test_the_own_port_is_taken_by_a_ps_of_some_run(shown, who):
    answers, _ = look([answer()], shown)
    [finding] = network.own_task(answers, "ps:0", ["10.0.0.1"], lambda port: True)
    assert finding.check == "network.own_port"
    assert who in finding.what
