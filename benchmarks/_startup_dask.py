"""The dask peer of benchmarks.startup: each worker process imports TensorFlow once.

The program prints a line for each worker whose function has returned, and closes the cluster.
"""

import sys

from distributed import Client, LocalCluster, as_completed


def load() -> None:
    import tensorflow  # noqa: F401  # the measured import


def main() -> None:
    count = int(sys.argv[1])
    with (
        LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        workers = list(client.scheduler_info(n_workers=count)["workers"])
        futures = [client.submit(load, workers=[worker], pure=False) for worker in workers]
        for _ in as_completed(futures, raise_errors=True):
            print("ready", flush=True)


if __name__ == "__main__":
    main()
