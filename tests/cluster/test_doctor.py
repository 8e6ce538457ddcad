"""The doctor before real TensorFlow servers."""

from tfdist.doctor import examine


def test_a_server_of_tensorflow_is_known(make_cluster):
    cluster = make_cluster(num_ps=1, num_workers=1, backend="threads")

    def look(task):
        return {finding.check: finding.what for finding in examine({"TF_CONFIG": task.to_env()})}

    (found,) = cluster.run(look, timeout=60)
    assert "ps:0" in found["network.serving"]
    assert "network.foreign" not in found
