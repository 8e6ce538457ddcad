"""With `TFDIST_CLUSTER_ID` set, the doctor reports which run a ps belongs to."""

import pytest

from tfdist.doctor import network
from tfdist.doctor.identities import Identity
from tfdist.doctor.network import Answer, State, identified

CLUSTER = {"ps": ["h:1", "h:2"], "worker": ["h:3"]}


def answer(name="ps:0", state=State.SERVES):
    kind, _, index = name.partition(":")
    return Answer(name, CLUSTER[kind][int(index)], state, "", ("10.0.0.1",))


def identify(answers, found, identity="ours"):
    """The answers with identities, and the names of the ps that were asked."""
    asked = []

    def read(cluster, names):
        assert cluster is CLUSTER
        asked.extend(names)
        return dict.fromkeys(names, found)

    return identified(answers, CLUSTER, identity, read), asked


def others(answers):
    [finding] = network.others(answers, None)
    return finding


@pytest.mark.parametrize(
    ("found", "check", "severity", "text"),
    [
        (Identity("ours"), "network.own_run", "note", "ps:0 (h:1)"),
        (Identity("old"), "network.other_run", "error", "(h:1: its id is 'old', not 'ours')"),
        (Identity(None), "network.serving", "note", "ps:0 (h:1: it has no TFDIST_CLUSTER_ID)"),
        (Identity(None, "it is silent"), "network.serving", "note", "ps:0 (h:1: it is silent)"),
    ],
)
def test_a_ps_belongs_to_this_run_to_another_or_to_an_unknown_one(found, check, severity, text):
    answers, asked = identify([answer()], found)
    finding = others(answers)
    assert (finding.check, finding.severity, asked) == (check, severity, ["ps:0"])
    assert text in finding.what


def test_only_a_ps_that_serves_is_asked():
    others = [answer("worker:0"), answer("ps:0", State.REFUSED), answer("ps:1", State.FOREIGN)]
    answers, asked = identify([*others], Identity("old"))
    assert (answers, asked) == (others, [])


@pytest.mark.parametrize("identity", [None, ""])
def test_without_an_id_no_ps_is_asked(identity):
    answers, asked = identify([answer()], Identity("old"), identity)
    assert (answers, asked) == ([answer()], [])


@pytest.mark.parametrize(
    ("found", "by"),
    [
        (Identity("old"), "by a ps of another run: its id is 'old'"),
        (Identity("ours"), "already running"),
    ],
)
def test_a_ps_of_any_run_may_have_the_port_of_this_task(found, by):
    answers, _ = identify([answer()], found)
    [finding] = network.own_task(answers, "ps:0", ["10.0.0.1"], lambda port: True)
    assert finding.check == "network.own_port"
    assert by in finding.what
