"""The doctor recognizes a real TensorFlow server."""

from tfdist.doctor.examination import examine


def test_a_tensorflow_server_is_recognized(make_cluster):
    cluster = make_cluster(num_ps=1, num_workers=1, backend="threads")

    def look(task):
        return {finding.check: finding.what for finding in examine({"TF_CONFIG": task.to_env()})}

    (found,) = cluster.run(look, timeout=60)
    assert "ps:0" in found["network.serving"]
    assert "network.foreign" not in found
