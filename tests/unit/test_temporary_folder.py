"""The folder of a run without --log-dir."""

import os
import threading

from tfdist.runs.live import temporary_folder


def test_the_folder_is_deleted_although_a_thread_still_writes_into_it():
    for _ in range(50):
        with temporary_folder() as folder:
            tasks = os.path.join(folder, "attempt-1", "worker-0")
            os.makedirs(tasks)
            has_begun = threading.Event()

            def write(tasks=tasks, has_begun=has_begun):
                number = 0
                while os.path.isdir(tasks):
                    try:
                        open(os.path.join(tasks, str(number)), "w").close()
                    except FileNotFoundError:
                        return
                    has_begun.set()
                    number += 1

            writer = threading.Thread(target=write)
            writer.start()
            assert has_begun.wait(10)
        writer.join(10)
        assert not writer.is_alive()
        assert not os.path.exists(folder)
