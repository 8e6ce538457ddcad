"""Who answers at the addresses of a cluster: real sockets of this machine, invented names."""

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
from tfdist.doctor.asking import Answer, State, ask, is_settings

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
    """A server that says `text` to everybody and hangs up once the other has spoken."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(text)
            self.request.recv(100)

    return socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)


def ask_one(address, timeout=LONG, resolve=resolve):
    (answer,) = ask({"ps:0": address}, resolve, Deadline(timeout))
    return answer


def checks(findings):
    return [finding.check.removeprefix("network.") for finding in findings]


def test_a_name_that_does_not_resolve():
    answer = ask_one("no-such-host.invalid:1")
    assert answer.state is State.NO_NAME
    (finding,) = network.others([answer], None)
    assert (finding.check, finding.severity) == ("network.name", "error")
    assert "ps:0 (no-such-host.invalid:1: Name or service not known)" in finding.what


def test_a_name_that_is_no_name():
    def encode(host):
        return host.encode("idna") and []

    assert ask_one("a..b:1", resolve=encode).state is State.NO_NAME


def test_a_resolver_that_never_answers_is_left_behind():
    never = threading.Event()

    def hang(host):
        never.wait()
        return []

    try:
        assert ask_one("slow:1", timeout=0.01, resolve=hang).detail == "no answer in time"
    finally:
        never.set()


def test_an_error_in_the_resolver_itself_is_not_taken_for_an_answer():
    def fail(host):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask_one("here:1", resolve=fail)


def test_a_port_where_nobody_listens():
    answer = ask_one(f"here:{portpicker.pick_unused_port()}")
    assert answer.state is State.REFUSED
    (finding,) = network.others([answer], None)
    assert (finding.check, finding.severity) == ("network.refused", "note")


def test_a_port_that_drops_what_comes():
    with socket.socket() as full:
        # A full queue of connections: Linux drops what more comes, as a firewall would.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            answer = ask_one(f"here:{port}", timeout=0.2)
    assert answer.state is State.TIMED_OUT
    (finding,) = network.others([answer], None)
    assert (finding.check, finding.severity) == ("network.timed_out", "error")


def test_an_address_without_a_way_to_it():
    # 255.255.255.255 is no address of a TCP server; the system says so at once.
    answer = ask_one("here:1", resolve=lambda host: ["255.255.255.255"])
    assert answer.state is State.UNREACHABLE
    assert checks(network.others([answer], None)) == ["unreachable"]


def test_a_dead_first_address_is_not_the_end():
    with serving(talker(SETTINGS)) as address:
        answer = ask_one(address, resolve=lambda host: ["255.255.255.255", "127.0.0.1"])
    assert answer.state is State.SERVES


def test_a_server_of_http2():
    with serving(talker(SETTINGS)) as address:
        answer = ask_one(address)
    assert answer.state is State.SERVES
    (finding,) = network.others([answer], None)
    assert (finding.check, finding.severity) == ("network.serving", "note")


def test_a_web_server_is_foreign():
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)) as address:
        answer = ask_one(address)
    assert answer.state is State.FOREIGN
    assert "HTML" in answer.detail
    (finding,) = network.others([answer], None)
    assert (finding.check, finding.severity) == ("network.foreign", "error")


@pytest.mark.parametrize(
    ("text", "detail"), [(b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0"), (b"", "it hangs up")]
)
def test_whoever_speaks_otherwise_is_foreign(text, detail):
    with serving(talker(text)) as address:
        answer = ask_one(address)
    assert answer.state is State.FOREIGN
    assert detail in answer.detail


def test_a_server_that_accepts_and_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = ask_one(f"here:{silent.getsockname()[1]}", timeout=0.2)
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
def test_a_settings_frame_is_known(data, right):
    assert is_settings(data) is right


def test_all_are_asked_at_once_and_answer_in_their_order():
    both = threading.Barrier(3)

    def meet(host):
        both.wait(LONG)  # passes only if all three are asked at the same time
        return resolve("no-such-host.invalid")

    names = ["ps:0", "worker:0", "worker:1"]
    answers = ask(dict.fromkeys(names, "x:1"), meet, Deadline(LONG))
    assert [answer.name for answer in answers] == names


def answer(name, address="h:1", state=State.REFUSED, ips=("10.0.0.1",), detail=""):
    return Answer(name, address, state, detail, ips)


def test_one_finding_names_all_tasks_of_a_kind():
    (finding,) = network.others([answer("ps:0"), answer("ps:1", "i:1")], None)
    assert "ps:0 (h:1), ps:1 (i:1)" in finding.what


def test_nobody_serves_the_own_task_yet():
    assert network.others([answer("ps:0")], "ps:0") == []
    assert checks(network.others([answer("ps:0", state=State.NO_NAME)], "ps:0")) == ["name"]


LOCAL = ["127.0.0.1", "10.0.0.1"]


def own(answers, name="ps:0", local=LOCAL, is_taken=lambda port: False):
    return network.own_task(answers, name, local, is_taken)


@pytest.mark.parametrize("ips", [("10.0.0.1",), ("10.9.9.9", "10.0.0.1"), ("127.0.1.1",)])
def test_the_own_address_is_of_this_machine(ips):
    assert own([answer("ps:0", ips=ips), answer("ps:1", ips=("10.9.9.9",))]) == []


def test_the_own_address_is_of_another_machine():
    (finding,) = own([answer("ps:0", ips=("10.9.9.9",))], is_taken=lambda port: 1 / 0)
    assert (finding.check, finding.severity) == ("network.own_address", "warning")
    assert "10.9.9.9; this machine has 10.0.0.1" in finding.what


def test_without_a_task_of_its_own_nothing_is_looked_at():
    assert own([answer("ps:0", ips=("10.9.9.9",))], name=None) == []


@pytest.mark.parametrize(
    ("state", "who"),
    [(State.SERVES, "runs already"), (State.FOREIGN, "it says"), (State.SILENT, "another")],
)
def test_the_own_port_is_taken(state, who):
    asked = []
    (finding,) = own(
        [answer("ps:0", "h:77", state, detail="it says SSH")],
        is_taken=lambda port: asked.append(port) or True,
    )
    assert (finding.check, finding.severity, asked) == ("network.own_port", "error", [77])
    assert who in finding.what


def test_the_own_port_is_denied():
    def deny(port):
        raise PermissionError

    assert checks(own([answer("ps:0")], is_taken=deny)) == ["port_denied"]


def test_a_port_that_a_launcher_holds_is_not_taken():
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
def test_loopback_beside_other_hosts(hosts, found):
    assert checks(network.loopback({f"ps:{i}": f"{h}:1" for i, h in enumerate(hosts)})) == found


def test_two_names_of_one_place():
    one, two = answer("ps:0", "h:1"), answer("ps:1", "H.:1", ips=("10.0.0.2", "10.0.0.1"))
    (finding,) = network.same_server([one, two])
    assert (finding.check, finding.severity) == ("network.same_server", "error")
    assert "ps:0 (h:1) and ps:1 (H.:1)" in finding.what
    assert network.same_server([one, answer("ps:1", "h:2")]) == []
    assert network.same_server([one, answer("ps:1", "i:1", ips=("10.0.0.2",))]) == []


def test_exposure():
    assert network.exposure(["127.0.0.1", "::1", "fe80::1"]) == []
    (finding,) = network.exposure(["127.0.0.1", "10.0.0.1", "fd00::1"])
    assert (finding.check, finding.severity) == ("network.exposure", "warning")
    assert "10.0.0.1, fd00::1" in finding.what
    assert "--isolate" in finding.fix
