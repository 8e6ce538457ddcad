"""The doctor asks a ps of which run it is; each time a process beside it imports TensorFlow."""

import re
import socket

import pytest

from tfdist.cluster.identity import ID_VARIABLE
from tfdist.doctor import examine
from tfdist.doctor.read_identities import read

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize(
    ("identity", "check"), [("ours", "network.own_run"), ("theirs", "network.other_run")]
)
def test_the_ps_of_another_run_is_told_from_ours(make_cluster, monkeypatch, identity, check):
    monkeypatch.setenv(ID_VARIABLE, identity)  # of the ps, which is a thread of this process
    cluster = make_cluster(num_ps=1, num_workers=1, backend="threads")

    def look(task):
        environ = {"TF_CONFIG": task.to_env(), ID_VARIABLE: "ours"}
        return {finding.check: finding.what for finding in examine(environ)}

    (found,) = cluster.run(look, timeout=120)
    assert "ps:0" in found[check]
    assert "network.serving" not in found


def test_what_shows_no_id_is_told_why(make_cluster):
    cluster = make_cluster(num_ps=1, num_workers=1, backend="threads")

    def look(task):
        ps, worker = task.cluster_spec["ps"][0], task.address
        with socket.socket() as held:  # taken, but nobody listens
            held.bind(("127.0.0.1", 0))
            nobody = f"127.0.0.1:{held.getsockname()[1]}"
            cluster = {"ps": [ps, f"localhost:{ps.rpartition(':')[2]}", nobody], "worker": [worker]}
            return read({"cluster": cluster, "names": ["ps:0", "ps:1", "ps:2"]})

    (shown,) = cluster.run(look, timeout=120)
    assert shown["ps:0"] == {"identity": None, "failure": None}
    assert shown["ps:1"] == {"identity": None, "failure": "it serves as another task"}
    assert shown["ps:2"]["identity"] is None
    assert re.fullmatch(r"asked for its id it gives \w+Error", shown["ps:2"]["failure"])
