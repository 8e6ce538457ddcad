"""A ClusterCoordinator finds its workers in both back ends, also in a second cluster."""

import subprocess
import sys

from tests.cluster import jobs

TWICE = """
import tfdist
from tests.cluster import jobs
for _ in range(2):
    with tfdist.local_cluster(2, 6, backend="threads", coordinator=True) as cluster:
        print(cluster.run(jobs.coordinate, timeout=60))
"""


def test_workers_can_be_processes(make_cluster):
    cluster = make_cluster(2, 2, backend="processes", coordinator=True)
    assert cluster.run(jobs.coordinate, timeout=60) == [("chief:0", 10.0)]


def test_workers_can_be_more_threads_than_cores():
    # In its own process, since a coordinator connects the process's eager context to its cluster.
    ended = subprocess.run(
        [sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.stdout == "[('chief:0', 10.0)]\n" * 2, ended.stderr[-2000:]
