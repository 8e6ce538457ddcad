"""The doctor reads which run a ps belongs to, in a helper process that imports TensorFlow."""

import re
import socket

import pytest

from tfdist.cluster.identity import ID_VARIABLE
from tfdist.doctor.examination import examine
from tfdist.doctor.identities import Identity, read

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize(
    ("identity", "check"), [("ours", "network.own_run"), ("theirs", "network.other_run")]
)
def test_a_ps_of_another_run_is_distinguished_from_ours(make_cluster, monkeypatch, identity, check):
    monkeypatch.setenv(ID_VARIABLE, identity)  # for the ps, a thread of this process
    cluster = make_cluster(num_ps=1, num_workers=1, backend="threads")

    def look(task):
        environ = {"TF_CONFIG": task.to_env(), ID_VARIABLE: "ours"}
        return {finding.check: finding.what for finding in examine(environ)}

    (found,) = cluster.run(look, timeout=120)
    assert "ps:0" in found[check]
    assert "network.serving" not in found


def test_an_unknown_identity_has_a_reason(make_cluster):
    cluster = make_cluster(num_ps=1, num_workers=1, backend="threads")

    def look(task):
        ps, worker = task.cluster_spec["ps"][0], task.address
        with socket.socket() as held:  # bound, but it does not listen
            held.bind(("127.0.0.1", 0))
            dead = f"127.0.0.1:{held.getsockname()[1]}"
            cluster = {"ps": [ps, f"localhost:{ps.rpartition(':')[2]}", dead], "worker": [worker]}
            return [read(cluster, name) for name in ("ps:0", "ps:1", "ps:2")]

    ((none, other, unreachable),) = cluster.run(look, timeout=120)
    assert none == Identity(None)
    assert other == Identity(None, "it serves as another task")
    assert unreachable.value is None
    assert re.fullmatch(r"reading its id failed with \w+Error", unreachable.failure)
