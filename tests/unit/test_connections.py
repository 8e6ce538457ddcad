"""The TCP connections of a process, as the kernel reports them."""

import os
import socket
import threading
from contextlib import ExitStack

import pytest

from tfdist.diagnosis.kernel import LONG, Connection, _endpoint, connections_of, takers_of
from tfdist.diagnosis.sample import Sample, name_peers
from tfdist.diagnosis.stacks import Answer
from tfdist.testing import poll_until


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_both_ends_of_a_connection_are_seen(family, address):
    with (
        socket.create_server((address, 0), family=family) as server,
        socket.create_connection(server.getsockname()[:2]) as client,
        server.accept()[0],
    ):
        (host, near), (_, far) = client.getsockname()[:2], client.getpeername()[:2]
        name = f"[{host}]" if ":" in host else host
        found = connections_of(os.getpid())
        assert Connection(f"{name}:{near}", f"{name}:{far}", 0, 0) in found
        assert Connection(f"{name}:{far}", f"{name}:{near}", 0, 0) in found
    assert all(str(near) not in end.local for end in connections_of(os.getpid()))


@pytest.fixture
def connect():
    """Makes pairs of connected sockets; the second socket has a small receive buffer."""
    opened = []

    def connected():
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LONG // 4)
        server.bind(("127.0.0.1", 0))
        server.listen()
        client = socket.create_connection(server.getsockname())
        opened.extend((server, client, server.accept()[0]))
        client.setblocking(False)
        opened[-1].settimeout(20)
        return client, opened[-1]

    yield connected
    for one in opened:
        one.close()


def name_of(one):
    return "{}:{}".format(*one.getsockname())


def test_unacknowledged_bytes_are_counted(connect):
    client, server = connect()
    sent = client.send(b"x" * 8 * LONG)
    ends = {end.local: end for end in connections_of(os.getpid())}
    assert LONG < ends[name_of(client)].unacknowledged <= sent
    assert ends[name_of(server)].unacknowledged == 0


def test_a_peer_that_takes_a_long_message_slowly_is_a_taker_and_an_idle_one_is_not(connect):
    (to_reader, reader), (to_idle, _), (to_chatty, chatty) = connect(), connect(), connect()
    to_reader.send(b"x" * 8 * LONG)
    to_idle.send(b"x" * 8 * LONG)
    poll_until(lambda: not takers_of(os.getpid(), 0.1), "the receive buffers are full")
    over = threading.Event()

    def read():
        while not over.wait(0.02):
            reader.recv(LONG // 8)
            to_chatty.send(b"x" * 100)  # short messages do not count
            chatty.recv(100)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert takers_of(os.getpid(), 0.5) == {name_of(reader)}
    finally:
        over.set()
        thread.join()


def test_a_connection_that_the_other_end_does_not_answer_is_seen():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as clients:
        address = "{}:{}".format(*server.getsockname())
        for _ in range(3):  # more than the server's queue takes; it drops the requests of others
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())

        def asks_again():
            return any(end.remote == address and end.resent for end in connections_of(os.getpid()))

        poll_until(asks_again, "the kernel has sent a request again")


def test_a_process_that_is_gone_has_no_takers():
    assert takers_of(2**22 + 1, 0.0) == frozenset()


def test_connections_of_another_process_are_not_seen():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert client.getsockname()[1] not in {
            int(end.local.rpartition(":")[2]) for end in connections_of(os.getppid())
        }


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0100007F:08AE", "127.0.0.1:2222"),
        ("0000000000000000FFFF00000200000A:0050", "10.0.0.2:80"),
        ("00000000000000000000000001000000:0050", "[::1]:80"),
    ],
)
def test_an_address_is_parsed_as_the_kernel_writes_it(text, address):
    assert _endpoint(text) == address


def test_a_process_that_is_gone_has_no_connections():
    assert connections_of(2**22 + 1) == ()


def test_a_sampled_peer_is_named_once():
    def end(port, other, resent):
        return Connection(f"10.0.0.1:{port}", other, 0, resent)

    worker = Sample(
        Answer("answered"),
        connections=(
            end(1, "10.0.0.2:2222", 3),
            end(2, "10.0.0.2:2223", 2),
            end(3, "10.0.0.9:80", 2),
            end(4, "10.0.0.3:80", 1),  # sent again once, which is normal
        ),
        takers=frozenset(("10.0.0.2:2223", "10.0.0.9:80")),
    )
    ps = Sample(
        Answer("answered"),
        connections=(
            Connection("10.0.0.2:2222", "10.0.0.1:1", 0, 0),
            Connection("10.0.0.2:2223", "10.0.0.1:2", 0, 0),
        ),
    )
    samples = {"worker:0": worker, "ps:0": ps}
    tasks = name_peers([one.evidence(name=name) for name, one in samples.items()], samples)
    assert [task.unanswered for task in tasks] == [("ps:0", "10.0.0.9:80"), ()]
    assert [task.sends_to for task in tasks] == [("ps:0", "10.0.0.9:80"), ()]
