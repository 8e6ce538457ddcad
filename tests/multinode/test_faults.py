"""Each fault does what it promises, to no other host, and only until its end."""

import errno
import sys

import pytest

from tests.multinode.conftest import HOSTS, Connection
from tfdist.errors import ClusterError, ConfigError
from tfdist.testing import faults

SILENT_SECS = 0.3
PAIRS = [(host, other) for host in HOSTS for other in HOSTS if host != other]


def reached(echo, timeout):
    """The pairs of hosts of which the first can connect to the second."""
    answers = echo.ask_all(PAIRS, timeout=timeout)
    return {pair for pair, answer in zip(PAIRS, answers, strict=True) if "trips" in answer}


@pytest.fixture(autouse=True)
def _all_hosts_are_reached_afterwards(echo):
    yield
    # A host repeats a failed address resolution after a second.
    assert reached(echo, timeout=10) == set(PAIRS)


@pytest.mark.parametrize(
    ("fault", "still"),
    [
        (faults.Unplug("a"), [("b", "c"), ("c", "b")]),
        (faults.Unplug("c"), [("a", "b"), ("b", "a")]),
        (faults.LinkDown("a"), [("b", "c"), ("c", "b")]),
        (faults.LinkDown("c"), [("a", "b"), ("b", "a")]),
        (faults.Cut("a", "b"), [("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")]),
        (faults.Cut("c", "a"), [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")]),
        (faults.OneWayCut("c", "a"), [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")]),
        (faults.Loss("c", 1.0), [("a", "b"), ("b", "a")]),
    ],
    ids=str,
)
def test_a_fault_separates_only_its_hosts(echo, fault, still):
    with fault.on(echo.network):
        assert reached(echo, SILENT_SECS) == set(still)


@pytest.mark.parametrize(
    "fault",
    [
        faults.Unplug("c"),
        faults.LinkDown("c"),
        faults.Cut("a", "c"),
        faults.OneWayCut("a", "c"),
        faults.OneWayCut("c", "a"),
        faults.Loss("c", 1.0),
    ],
    ids=str,
)
def test_a_connection_blocks_during_the_fault_and_then_continues(echo, fault):
    connection = Connection(echo, "a", "c")
    assert connection.answers(10)
    with fault.on(echo.network):
        assert not connection.answers(SILENT_SECS)
    assert connection.answers(10)


def test_a_new_connection_only_times_out_during_the_fault(echo):
    with faults.LinkDown("c").on(echo.network):
        pass  # so c knows no address any more
    with faults.Unplug("c").on(echo.network):
        answer = echo.ask("c", "b", timeout=3.5)
    assert answer["error"] == "TimeoutError"


@pytest.mark.parametrize("host", ["a", "c"])
def test_a_host_notices_a_link_that_is_down_and_not_an_unplugged_one(echo, host):
    with faults.LinkDown(host).on(echo.network):
        assert echo.ask(host, "b")["errno"] == errno.ENETUNREACH
        assert echo.ask("b", host)["error"] == "TimeoutError"
    with faults.Unplug(host).on(echo.network):
        assert echo.ask(host, "b")["error"] == "TimeoutError"
        assert echo.ask("b", host)["error"] == "TimeoutError"


def test_a_one_way_cut_passes_datagrams_in_the_other_direction(echo):
    assert echo.send("a", "b", 5) == echo.send("b", "a", 5) == 5
    with faults.OneWayCut("a", "b").on(echo.network):
        assert echo.send("a", "b", 5) == 0
        assert echo.send("b", "a", 5) == 5


def test_a_delay_applies_in_each_direction(echo):
    with faults.Delay("c", 0.05).on(echo.network):
        for pair in (("a", "c"), ("c", "a")):
            assert 0.1 <= min(echo.ask(*pair)["trips"]) < 0.15
        assert min(echo.ask("a", "b")["trips"]) < 0.05
    assert min(echo.ask("a", "c")["trips"]) < 0.05


def test_jitter_is_added_to_the_delay(echo):
    with faults.Delay("c", 0.01, jitter_secs=0.04).on(echo.network):
        trips = echo.ask("a", "c")["trips"]
    assert min(trips) >= 0.02
    assert max(trips) - min(trips) > 0.01
    assert sorted(trips)[3] < 0.12


def test_a_fraction_of_the_datagrams_is_lost(echo):
    with faults.Loss("c", 0.5).on(echo.network):
        # The questions around the datagrams use TCP, which retransmits.
        assert 40 <= echo.send("a", "c", 200) <= 160


@pytest.mark.parametrize("host", ["a", "c"])
def test_bandwidth_is_limited_in_each_direction(echo, host):
    size = 100_000
    with faults.Bandwidth(host, 200_000).on(echo.network):
        for pair in ((host, "b"), ("b", host)):
            assert 0.4 <= echo.ask(*pair, size=size)["secs"] < 2
    assert echo.ask(host, "b", size=size)["secs"] < 0.4


def test_a_write_to_a_full_disk_fails(echo):
    network = echo.network
    code = (
        "import sys\n"
        "try: open(sys.argv[1], 'wb', 0).write(b'x')\n"
        "except OSError as error: sys.exit(error.errno)"
    )

    def write():
        command = [sys.executable, "-IS", "-c", code, network.shared / "file"]
        return network.start("a", command).wait(10)

    with faults.DiskFull().on(network):
        assert write() == errno.ENOSPC
    assert write() == 0
    assert [path.name for path in network.shared_here.iterdir()] == ["file"]


def test_faults_overlap(echo):
    network = echo.network
    with faults.Delay("c", 0.03).on(network):
        with faults.Loss("c", 1.0).on(network), faults.Bandwidth("c", 1000).on(network):
            assert "error" in echo.ask("a", "c")
        assert 0.06 <= min(echo.ask("a", "c")["trips"]) < 0.1
    with faults.Cut("a", "b").on(network), faults.LinkDown("a").on(network):
        pass


def test_an_error_ends_the_fault_too(echo):
    with pytest.raises(ZeroDivisionError), faults.Unplug("a").on(echo.network):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (faults.Unplug("d"), "host: got 'd'; must be one of a, b, c"),
        (faults.Cut("a", "a"), "hosts: got"),
        (faults.Cut("a", "d"), "host: got 'd'"),
        (faults.Delay("a", 0.1), "host: got 'a'; this fault needs a host in `relayed`"),
        (faults.Delay("c", -0.1), "delay_secs: got -0.1"),
        (faults.Loss("c", 1.5), "loss: got 1.5"),
        (faults.Bandwidth("a", 0), "bytes_per_sec: got 0"),
    ],
    ids=str,
)
def test_an_impossible_fault_is_rejected_and_changes_nothing(echo, fault, message):
    with pytest.raises(ConfigError, match=message):
        fault.begin(echo.network)


def test_a_second_limit_on_one_link_is_an_error(echo):
    limit = faults.Bandwidth("a", 10_000_000)
    with limit.on(echo.network), pytest.raises(ClusterError, match="a: tc qdisc add"):
        limit.begin(echo.network)
