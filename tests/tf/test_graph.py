"""The pieces of a training loop refuse a cluster that has no ps."""

import pytest

import tfdist
from tfdist.train import device_setter, replica_graph, session

TASK = tfdist.Task("worker", 0, {"worker": ["localhost:1", "localhost:2"]})


@pytest.mark.parametrize(
    "use",
    [
        lambda: device_setter(TASK),
        lambda: replica_graph(TASK).__enter__(),
        lambda: session(TASK, "grpc://localhost:1").__enter__(),
    ],
    ids=["device_setter", "replica_graph", "session"],
)
def test_a_cluster_without_a_ps_is_refused(use):
    with pytest.raises(tfdist.ConfigError, match=r"tfdist\.train needs at least one ps"):
        use()
