"""What a signal handler raises during a wait."""

import subprocess
import sys

INTERRUPTED = """
import os, signal, sys, threading, tfdist

class Preempted(BaseException):
    pass

raised = []

def save_and_exit(number, frame):
    raised.append(SystemExit({"saved": number}) if number == signal.SIGTERM else Preempted(number))
    raise raised[-1]

signal.signal(signal.SIGTERM, save_and_exit)
signal.signal(signal.SIGUSR2, save_and_exit)
with tfdist.local_cluster(1, 2) as cluster:
    barrier = tfdist.Barrier(cluster.trainers[0], "end")
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        try:
            barrier.wait(20)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        except BaseException as error:
            print(type(error).__name__, error is raised[-1], flush=True)
    print("kept", signal.getsignal(signal.SIGUSR2) is save_and_exit, flush=True)
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
    assert ended.stdout.splitlines() == [
        "interrupted",
        "interrupted",
        "SystemExit True",
        "Preempted True",
        "kept True",
        "passed 0",
    ], ended.stderr
