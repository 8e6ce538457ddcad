"""Many clusters that start at the same moment on one machine never share a port."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("no_leaks")

CLUSTERS = 10  # of each program
# Waits for a line of input, starts clusters, and prints the results of each.
PROGRAM = """
import sys, tfdist
from concurrent.futures import ThreadPoolExecutor
from tests.cluster import jobs
from tfdist.cluster.fork_server import start_fork_server

def meet(_):
    with tfdist.local_cluster(1, 1, backend="processes") as cluster:
        return cluster.run(jobs.meet, timeout=200)

start_fork_server()
number = int(sys.argv[1])
print("ready", flush=True)
input()
with ThreadPoolExecutor(number) as pool:
    for met in pool.map(meet, range(number)):
        print(met)
"""


def test_many_clusters_start_at_the_same_moment(times):
    number = 2 if times == 1 else 5
    command = [sys.executable, "-c", PROGRAM, str(CLUSTERS)]
    pipe = subprocess.PIPE
    programs = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(number)
    ]
    try:
        assert {program.stdout.readline() for program in programs} == {"ready\n"}
        for program in programs:
            program.stdin.write("go\n")
            program.stdin.flush()
        met = [line for each in programs for line in each.communicate(timeout=240)[0].splitlines()]
    finally:
        for program in programs:
            program.kill()
            program.wait()
    assert met == ["[(0, 2)]"] * number * CLUSTERS
