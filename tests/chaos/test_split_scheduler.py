"""A coordinator reads splits: every record is read, also if workers are killed or stopped."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow as tf

import tfdist
from tests.chaos import scheduler_jobs
from tfdist.splits import scheduler as coordinator
from tfdist.testing import poll_until

RECORDS = [400, 240, 1, 1359]
TOTAL = sum(RECORDS)


@pytest.fixture
def files(tmp_path):
    edges = [0, *itertools.accumulate(RECORDS)]
    for part, (start, stop) in enumerate(itertools.pairwise(edges)):
        with tf.io.TFRecordWriter(str(tmp_path / f"part-{part}")) as writer:
            for number in range(start, stop):
                writer.write(b"%d" % number)
    return str(tmp_path)


def run(cluster, function, **arguments):
    [result] = cluster.run(functools.partial(function, **arguments), timeout=100)
    return result


def wrong_reads(reads, report):
    """Records that were read more or less often than the report allows."""
    again = [0] * len(reads)
    for start, stop in report.possible_duplicates:
        for record in range(start, stop):
            again[record] += 1
    pairs = enumerate(zip(reads, again, strict=True))
    return [(record, *pair) for record, pair in pairs if not 1 <= pair[0] <= 1 + pair[1]]


def test_each_record_is_read_exactly_once_in_each_of_two_epochs(make_cluster, files):
    cluster = make_cluster(2, 2, backend="processes", coordinator=True)
    epochs = run(cluster, scheduler_jobs.two_epochs, files=files)
    for number, (report, reads) in enumerate(epochs, 1):
        assert reads == [number] * TOTAL
        assert report == tfdist.splits.SplitReport(number, ((0, TOTAL),), (), (), True)


def disturbed(cluster, function, files, folder, disturb):
    """Runs `function`, and calls `disturb` once its epoch has begun."""
    with ThreadPoolExecutor() as pool:
        result = pool.submit(run, cluster, function, files=files, folder=str(folder))
        poll_until((folder / "begun").exists, "the epoch has begun", timeout=60)
        disturb()
        return result.result()


def test_the_split_of_a_killed_worker_continues_at_its_committed_offset(
    make_cluster, files, tmp_path
):
    cluster = make_cluster(2, 2, backend="processes", coordinator=True)
    report, reads = disturbed(
        cluster,
        scheduler_jobs.while_disturbed,
        files,
        tmp_path,
        lambda: (cluster.kill("worker:1"), cluster.restart("worker:1")),
    )
    assert wrong_reads(reads, report) == []
    assert (report.committed, report.dead_letters, report.done) == (((0, TOTAL),), (), True)


def test_a_stopped_worker_is_an_error_that_names_the_unread_records(make_cluster, files, tmp_path):
    cluster = make_cluster(2, 2, backend="processes", coordinator=True)

    def stop_and_wake():
        cluster.pause("worker:1")
        poll_until((tmp_path / "stalled").exists, "the epoch has stalled", timeout=60)
        cluster.resume("worker:1")

    error, report, reads = disturbed(
        cluster, scheduler_jobs.stalled, files, tmp_path, stop_and_wake
    )
    assert "no commit for 2" in str(error)
    assert error.missing
    assert report.committed == ((0, TOTAL),)
    assert wrong_reads([number - (report.epoch - 1) for number in reads], report) == []


def test_unreadable_input_is_an_error_and_all_other_records_are_read(make_cluster, files):
    cluster = make_cluster(2, 2, backend="processes", coordinator=True)
    *failed, (report, end), (next_report, reads) = run(
        cluster, scheduler_jobs.over_bad_input, files=files
    )
    for _, error in failed:
        assert "truncated record" in error
    assert end == ""
    rest = ((635, 640),)  # the batch of the truncated record
    assert (report.dead_letters, report.done) == (rest, True)
    assert report.committed == ((0, 635), (640, TOTAL))
    assert (next_report.epoch, next_report.committed) == (2, ((0, TOTAL),))
    assert set(reads[635:640]) == {1}
    assert min(reads[:635] + reads[640:]) == 2


def test_a_checkpoint_has_the_model_and_the_committed_offsets(make_cluster, files, tmp_path):
    path = str(tmp_path / "model")
    cluster = make_cluster(2, 2, backend="processes", coordinator=True)
    saved, report, reads = run(cluster, scheduler_jobs.saved, files=files, path=path)
    assert 0 in reads
    assert not report.done
    report, reads = run(cluster, scheduler_jobs.restored, files=files, path=saved)
    assert wrong_reads(reads, report) == []
    assert (report.epoch, report.done) == (1, True)


def test_a_restarted_worker_of_a_seeded_script_is_a_new_owner():
    owners = []
    for _ in range(2):
        tf.random.set_seed(1)
        owners.append(int(tf.function(coordinator.new_owner)()))
    assert owners[0] != owners[1]
