"""The doctor connects to the addresses of a cluster: real sockets, invented names."""

import http.server
import socket
import socketserver
import threading
from contextlib import contextmanager

import portpicker
import pytest

from tfdist.cluster.ports import HeldPorts, is_taken
from tfdist.deadline import Deadline
from tfdist.doctor import network
from tfdist.doctor.network import Answer, State, is_settings, probe

SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + bytes(6)
LONG = 30.0


def resolve(host):
    if host == "no-such-host.invalid":
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return ["127.0.0.1"]


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"here:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def talker(text):
    """A server that sends `text` to every client and closes once the client has sent something."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(text)
            self.request.recv(100)

    return socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)


def probe_one(address, timeout=LONG, resolve=resolve):
    (answer,) = probe({"ps:0": address}, resolve, Deadline(timeout))
    return answer


def checks(findings):
    return [finding.check.removeprefix("network.") for finding in findings]


def test_a_name_without_an_address_is_an_error():
    answer = probe_one("no-such-host.invalid:1")
    assert answer.state is State.NO_NAME
    (finding,) = network.others([answer], None)
    assert (finding.check, finding.severity) == ("network.name", "error")
    assert "ps:0 (no-such-host.invalid:1: Name or service not known)" in finding.what


def test_an_impossible_name_has_no_address():
    def encode(host):
        return host.encode("idna") and []

    assert probe_one("a..b:1", resolve=encode).state is State.NO_NAME


def test_the_doctor_does_not_wait_for_a_hanging_resolver():
    never = threading.Event()

    def hang(host):
        never.wait()
        return []

    try:
        assert (
            probe_one("slow:1", timeout=0.01, resolve=hang).detail == "no answer from the resolver"
        )
    finally:
        never.set()


def test_an_unexpected_error_of_the_resolver_is_raised():
    def fail(host):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        probe_one("here:1", resolve=fail)


def test_a_port_without_a_server_is_a_note():
    answer = probe_one(f"here:{portpicker.pick_unused_port()}")
    assert answer.state is State.REFUSED
    (finding,) = network.others([answer], None)
    assert (finding.check, finding.severity) == ("network.refused", "note")


def test_a_port_that_drops_packets_is_an_error():
    with socket.socket() as full:
        # A full queue of connections: Linux drops further ones, as a firewall would.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            answer = probe_one(f"here:{port}", timeout=0.2)
    assert answer.state is State.TIMED_OUT
    (finding,) = network.others([answer], None)
    assert (finding.check, finding.severity) == ("network.timed_out", "error")


def test_an_address_without_a_route_is_an_error():
    # The system rejects TCP connections to 255.255.255.255 immediately.
    answer = probe_one("here:1", resolve=lambda host: ["255.255.255.255"])
    assert answer.state is State.UNREACHABLE
    assert checks(network.others([answer], None)) == ["unreachable"]


def test_a_dead_first_address_does_not_hide_the_second():
    with serving(talker(SETTINGS)) as address:
        answer = probe_one(address, resolve=lambda host: ["255.255.255.255", "127.0.0.1"])
    assert answer.state is State.SERVES


def test_a_server_that_speaks_http2_is_a_note():
    with serving(talker(SETTINGS)) as address:
        answer = probe_one(address)
    assert answer.state is State.SERVES
    (finding,) = network.others([answer], None)
    assert (finding.check, finding.severity) == ("network.serving", "note")


def test_a_web_server_is_foreign():
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)) as address:
        answer = probe_one(address)
    assert answer.state is State.FOREIGN
    assert "HTML" in answer.detail
    (finding,) = network.others([answer], None)
    assert (finding.check, finding.severity) == ("network.foreign", "error")


@pytest.mark.parametrize(
    ("text", "detail"), [(b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0"), (b"", "it closes the connection")]
)
def test_a_server_of_another_protocol_is_foreign(text, detail):
    with serving(talker(text)) as address:
        answer = probe_one(address)
    assert answer.state is State.FOREIGN
    assert detail in answer.detail


def test_a_server_that_accepts_and_sends_nothing_is_silent():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = probe_one(f"here:{silent.getsockname()[1]}", timeout=0.2)
    assert answer.state is State.SILENT
    assert checks(network.others([answer], None)) == ["silent"]


@pytest.mark.parametrize(
    ("data", "right"),
    [
        (SETTINGS, True),
        (bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), True),
        (SETTINGS[:8], False),
        (b"", False),
        (bytes([0, 0, 5, 4, 0, 0, 0, 0, 0]), False),
        (bytes([0, 0, 12, 7, 0, 0, 0, 0, 0]), False),
        (bytes([0, 0, 6, 4, 0, 0, 0, 0, 1]), False),
        (b"HTTP/1.1 400 Bad Request", False),
    ],
)
def test_a_settings_frame_is_recognized(data, right):
    assert is_settings(data) is right


def test_all_addresses_are_probed_in_parallel_and_answers_keep_their_order():
    both = threading.Barrier(3)

    def meet(host):
        both.wait(LONG)  # passes only if all three are probed at the same time
        return resolve("no-such-host.invalid")

    names = ["ps:0", "worker:0", "worker:1"]
    answers = probe(dict.fromkeys(names, "x:1"), meet, Deadline(LONG))
    assert [answer.name for answer in answers] == names


def answer(name, address="h:1", state=State.REFUSED, ips=("10.0.0.1",), detail=""):
    return Answer(name, address, state, detail, ips)


def test_one_finding_names_all_tasks_of_a_kind():
    (finding,) = network.others([answer("ps:0"), answer("ps:1", "i:1")], None)
    assert "ps:0 (h:1), ps:1 (i:1)" in finding.what


def test_this_task_need_not_serve_yet():
    assert network.others([answer("ps:0")], "ps:0") == []
    assert checks(network.others([answer("ps:0", state=State.NO_NAME)], "ps:0")) == ["name"]


LOCAL = ["127.0.0.1", "10.0.0.1"]


def own(answers, name="ps:0", local=LOCAL, is_taken=lambda port: False):
    return network.own_task(answers, name, local, is_taken)


@pytest.mark.parametrize("ips", [("10.0.0.1",), ("10.9.9.9", "10.0.0.1"), ("127.0.1.1",)])
def test_this_task_has_an_address_of_this_machine(ips):
    assert own([answer("ps:0", ips=ips), answer("ps:1", ips=("10.9.9.9",))]) == []


def test_an_address_of_another_machine_is_a_warning():
    (finding,) = own([answer("ps:0", ips=("10.9.9.9",))], is_taken=lambda port: 1 / 0)
    assert (finding.check, finding.severity) == ("network.own_address", "warning")
    assert "h:1 (10.9.9.9), and this machine has 10.0.0.1" in finding.what


def test_without_a_task_of_its_own_the_doctor_checks_no_port():
    assert own([answer("ps:0", ips=("10.9.9.9",))], name=None) == []


@pytest.mark.parametrize(
    ("state", "by"),
    [(State.SERVES, "already running"), (State.FOREIGN, "it sends"), (State.SILENT, "another")],
)
def test_the_port_of_this_task_is_in_use(state, by):
    asked = []
    (finding,) = own(
        [answer("ps:0", "h:77", state, detail="it sends SSH")],
        is_taken=lambda port: asked.append(port) or True,
    )
    assert (finding.check, finding.severity, asked) == ("network.own_port", "error", [77])
    assert by in finding.what


def test_a_port_for_root_is_an_error():
    def deny(port):
        raise PermissionError

    assert checks(own([answer("ps:0")], is_taken=deny)) == ["port_denied"]


def test_a_port_that_a_launcher_holds_is_free():
    with HeldPorts(1) as held:
        address = f"127.0.0.1:{held.ports[0]}"
        assert own([answer("ps:0", address)], is_taken=is_taken) == []
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", held.ports[0]))
            other.listen()
            assert checks(own([answer("ps:0", address)], is_taken=is_taken)) == ["own_port"]


@pytest.mark.parametrize(
    ("hosts", "found"),
    [
        (["a", "b"], []),
        (["localhost", "127.0.0.1", "[::1]"], []),
        (["a", "localhost"], ["loopback"]),
        (["a", "127.0.1.1"], ["loopback"]),
        (["a", "[::1]"], ["loopback"]),
    ],
)
def test_a_loopback_address_with_other_hosts_is_an_error(hosts, found):
    assert checks(network.loopback({f"ps:{i}": f"{h}:1" for i, h in enumerate(hosts)})) == found


def test_two_names_of_one_port_are_an_error():
    one, two = answer("ps:0", "h:1"), answer("ps:1", "H.:1", ips=("10.0.0.2", "10.0.0.1"))
    (finding,) = network.same_server([one, two])
    assert (finding.check, finding.severity) == ("network.same_server", "error")
    assert "ps:0 (h:1) and ps:1 (H.:1)" in finding.what
    assert network.same_server([one, answer("ps:1", "h:2")]) == []
    assert network.same_server([one, answer("ps:1", "i:1", ips=("10.0.0.2",))]) == []


def test_addresses_other_than_loopback_and_link_local_are_exposed():
    assert network.exposure(["127.0.0.1", "::1", "fe80::1"]) == []
    (finding,) = network.exposure(["127.0.0.1", "10.0.0.1", "fd00::1"])
    assert (finding.check, finding.severity) == ("network.exposure", "warning")
    assert "10.0.0.1, fd00::1" in finding.what
    assert "--isolate" in finding.fix
