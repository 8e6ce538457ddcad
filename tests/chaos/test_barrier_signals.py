"""What a signal handler raises during a wait."""

import subprocess
import sys

INTERRUPTED = """
import os, signal, sys, threading, tfdist

def save_and_exit(number, frame):
    sys.exit(-7)

signal.signal(signal.SIGTERM, save_and_exit)
with tfdist.local_cluster(1, 2) as cluster:
    barrier = tfdist.Barrier(cluster.trainers[0], "end")
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        try:
            barrier.wait(20)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        except SystemExit as error:
            print("exit code", error.code, flush=True)
    other = threading.Thread(target=tfdist.Barrier(cluster.trainers[1], "end").wait)
    other.start()
    print("passed", barrier.wait(20), flush=True)
    other.join()
os._exit(0)
"""


def test_what_a_signal_handler_raises_ends_a_wait_and_the_barrier_can_be_used_again():
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        check=False,
        capture_output=True,
        text=True,
        timeout=80,
    )
    lines = ended.stdout.splitlines()
    assert lines == ["interrupted", "interrupted", "exit code -7", "passed 0"], ended.stderr
