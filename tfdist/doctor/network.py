"""Whether the tasks of a cluster can reach one another, and which other machines can reach them."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from tfdist.deadline import Deadline
from tfdist.doctor.finding import Finding
from tfdist.doctor.identities import Identity, ReadIdentities
from tfdist.task import ClusterSpec, parse_address

# The first bytes of an HTTP/2 client, and so of gRPC (RFC 9113, 3.4): a fixed text, then a SETTINGS
# frame, here an empty one. A server answers with its own SETTINGS frame.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HEADER_BYTES, _SETTING_BYTES, _SETTINGS = 9, 6, 4
_READ_BYTES = 64
_SHORTEST_SECS = 0.01  # a timeout of 0 would mean "do not block"
_REPORT_SECS = 0.5  # for threads that end at the deadline


class State(Enum):
    """What a client of an address sees."""

    NO_NAME = auto()  # the host name does not resolve
    UNREACHABLE = auto()
    TIMED_OUT = auto()  # no response to a connection attempt
    REFUSED = auto()  # nothing listens
    SILENT = auto()  # the connection is accepted, and nothing is sent
    FOREIGN = auto()  # the server does not speak HTTP/2
    SERVES = auto()  # the server speaks HTTP/2, as TensorFlow's servers do
    OWN_RUN = auto()  # a ps with our id
    OTHER_RUN = auto()  # a ps with another id


# Check, severity, what was found at the tasks, why it matters, what to do.
_OTHERS = {
    State.NO_NAME: (
        "network.name",
        "error",
        "no IP address for {}",
        "This machine cannot connect to the task.",
        "Check the spelling, the name server and /etc/hosts. In Kubernetes and Compose a name may "
        "resolve only once its task has started.",
    ),
    State.UNREACHABLE: (
        "network.unreachable",
        "error",
        "no route to {}",
        "This machine cannot connect to the task.",
        "Check the address, and the routes of this machine: `ip route get ADDRESS`.",
    ),
    State.TIMED_OUT: (
        "network.timed_out",
        "error",
        "no response from {}",
        "Something drops the packets, or the machine is down. TensorFlow would wait, and print "
        "nothing.",
        "Check firewalls and network policies between the two machines, and whether that machine "
        "is up.",
    ),
    State.REFUSED: (
        "network.refused",
        "note",
        "nothing listens at {}",
        "The machine is up. The task has not started yet, has ended, or uses another port.",
        "Nothing to do if the task is still to start. Otherwise read its output.",
    ),
    State.SILENT: (
        "network.silent",
        "error",
        "{} accepts a connection and does not answer",
        "A TensorFlow server answers immediately. This one is stopped or stuck, so its clients "
        "hang; or it is another program.",
        "Inspect the process that has the port: `ss -ltnp`, and `ps` for the state T (stopped).",
    ),
    State.FOREIGN: (
        "network.foreign",
        "error",
        "another program listens at {}",
        "It does not speak HTTP/2, so it is no TensorFlow server, and the task cannot use its "
        "port.",
        "Choose another port, or end that program: `ss -ltnp` on its machine names it.",
    ),
    State.SERVES: (
        "network.serving",
        "note",
        "a server already listens at {}",
        "It may belong to this job, or to an earlier one and still have the old variables. "
        "TensorFlow does not distinguish the two.",
        "Nothing to do if you started it. Otherwise end it before the job starts. With a "
        "TFDIST_CLUSTER_ID, the same for all tasks of a job, a ps reports which job it belongs to.",
    ),
    State.OWN_RUN: (
        "network.own_run",
        "note",
        "a ps of this run already serves at {}",
        "Its TFDIST_CLUSTER_ID is the one that is set here.",
        "Nothing to do, unless you are about to start this ps: each run needs an id of its own.",
    ),
    State.OTHER_RUN: (
        "network.other_run",
        "error",
        "a ps of another run serves at {}",
        "It still has the variables of that run. Trainers reject it because of its "
        "TFDIST_CLUSTER_ID.",
        "End it, or choose other addresses. If it belongs to this run, set one id for all tasks.",
    ),
}


@dataclass(frozen=True)
class Answer:
    """The result of connecting to one address.

    Attributes:
        name: the name of the task.
        address: its "host:port".
        state: what happened.
        detail: the system's error, or what else is known about the server.
        ips: the IP addresses of the host.
    """

    name: str
    address: str
    state: State
    detail: str = ""
    ips: tuple[str, ...] = ()


def probe(
    addresses: Mapping[str, str], resolve: Callable[[str], list[str]], deadline: Deadline
) -> list[Answer]:
    """Connects to all addresses in parallel and returns the answers in their order.

    Blocks until `deadline` at most. A thread that hangs in the resolver is abandoned: it is a
    daemon and ends with the process.
    """
    answers: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

    def run(name: str, address: str) -> None:
        try:
            answers.put(_probe_one(name, address, resolve, deadline))
        except Exception as error:  # raised below, in the caller's thread
            answers.put(error)

    for task in addresses.items():
        threading.Thread(target=run, args=task, name=f"doctor {task[0]}", daemon=True).start()
    found: dict[str, Answer] = {}
    while len(found) < len(addresses):
        try:
            answer = answers.get(timeout=deadline.remaining + _REPORT_SECS)
        except queue.Empty:
            break
        if isinstance(answer, Exception):
            raise answer
        found[answer.name] = answer
    return [
        found.get(name) or Answer(name, address, State.NO_NAME, "no answer from the resolver")
        for name, address in addresses.items()
    ]


def _probe_one(
    name: str, address: str, resolve: Callable[[str], list[str]], deadline: Deadline
) -> Answer:
    host, port = parse_address(address)
    try:
        ips = resolve(host)
    except (OSError, UnicodeError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        return Answer(name, address, State.NO_NAME, detail)
    state, detail = State.NO_NAME, "it has no address"
    for tried, ip in enumerate(ips):
        # A dead address must not use up the time of the addresses after it.
        share = max(deadline.remaining / (len(ips) - tried), _SHORTEST_SECS)
        try:
            with socket.create_connection((ip, port), share) as connection:
                state, detail = _greet(connection, deadline)
            break
        except ConnectionRefusedError:
            state, detail = State.REFUSED, ""
        except TimeoutError:
            state, detail = State.TIMED_OUT, ""
        except OSError as error:
            state, detail = State.UNREACHABLE, error.strerror or str(error)
    return Answer(name, address, state, detail, tuple(ips))


def _greet(connection: socket.socket, deadline: Deadline) -> tuple[State, str]:
    received = b""
    try:
        connection.sendall(_PREFACE)
        while len(received) < _HEADER_BYTES:
            connection.settimeout(max(deadline.remaining, _SHORTEST_SECS))
            more = connection.recv(_READ_BYTES)
            if not more:
                break
            received += more
    except TimeoutError:
        if not received:
            return State.SILENT, ""
    except ConnectionError:
        pass  # another protocol may close the connection; `received` decides
    if is_settings(received):
        return State.SERVES, ""
    if not received:
        return State.FOREIGN, "it closes the connection"
    return State.FOREIGN, f"it sends {received.splitlines()[0].decode('ascii', 'replace')!r}"


def is_settings(data: bytes) -> bool:
    """Whether `data` begins with a SETTINGS frame, the first that an HTTP/2 server must send."""
    return (
        len(data) >= _HEADER_BYTES
        and int.from_bytes(data[:3], "big") % _SETTING_BYTES == 0
        and data[3] == _SETTINGS
        and data[5:_HEADER_BYTES] == bytes(4)
    )


def identified(
    answers: Sequence[Answer],
    cluster: ClusterSpec,
    identity: str | None,
    read: ReadIdentities,
) -> list[Answer]:
    """The answers, with the run of each ps that serves; unchanged without an `identity`.

    Args:
        answers: the answers of all tasks.
        cluster: the addresses by type.
        identity: the id of our run.
        read: asks the ps.
    """
    names = [
        answer.name
        for answer in answers
        if answer.state is State.SERVES and answer.name.startswith("ps:")
    ]
    if not identity or not names:
        return list(answers)
    found = read(cluster, names)
    return [
        _identified(answer, found[answer.name], identity) if answer.name in found else answer
        for answer in answers
    ]


def _identified(answer: Answer, found: Identity, own: str) -> Answer:
    if found.value is None:
        return replace(answer, detail=found.failure or "it has no TFDIST_CLUSTER_ID")
    if found.value == own:
        return replace(answer, state=State.OWN_RUN)
    return replace(answer, state=State.OTHER_RUN, detail=f"its id is {found.value!r}, not {own!r}")


def others(answers: Iterable[Answer], own: str | None) -> list[Finding]:
    """What clients of the other tasks see: one finding for each kind."""
    groups: dict[State, list[str]] = {}
    for answer in answers:
        # This process's own task does not serve yet; `own_task` checks its port.
        if answer.name != own or answer.state in (State.NO_NAME, State.UNREACHABLE):
            detail = f": {answer.detail}" if answer.detail else ""
            groups.setdefault(answer.state, []).append(f"{answer.name} ({answer.address}{detail})")
    return [
        Finding(check, severity, what.format(", ".join(groups[state])), why, fix)
        for state, (check, severity, what, why, fix) in _OTHERS.items()
        if state in groups
    ]


def own_task(
    answers: Iterable[Answer],
    own: str | None,
    own_addresses: Sequence[str],
    is_taken: Callable[[int], bool],
) -> list[Finding]:
    """Whether the address of this process's task is on this machine, and its port is free."""
    answer = next((answer for answer in answers if answer.name == own), None)
    if answer is None or not answer.ips:
        return []
    if not any(is_loopback(ip) or ip in own_addresses for ip in answer.ips):
        outside = [ip for ip in own_addresses if not is_loopback(ip)]
        return [
            Finding(
                "network.own_address",
                "warning",
                f"the address of {own} is {answer.address} ({', '.join(answer.ips)}), and this "
                f"machine has {', '.join(outside) or 'none'}",
                "The server starts on this machine, and the other tasks connect to that address. "
                "This works only if something forwards the connections, such as a published port.",
                "Start the task on the machine of its address, or correct the address.",
            )
        ]
    port = parse_address(answer.address).port
    try:
        taken = is_taken(port)
    except PermissionError:
        return [
            Finding(
                "network.port_denied",
                "error",
                f"{own} may not listen on port {port}",
                "Its server cannot start: low ports are reserved for root.",
                "Choose a port of 1024 or more.",
            )
        ]
    if not taken:
        return []
    by = {
        State.SERVES: "by a server like TensorFlow's: this task is already running, or a server of "
        "an earlier job is",
        State.OWN_RUN: "by a ps of this run: this task is already running",
        State.OTHER_RUN: f"by a ps of another run: {answer.detail}",
        State.FOREIGN: f"by another program: {answer.detail}",
    }.get(answer.state, "by another program")
    return [
        Finding(
            "network.own_port",
            "error",
            f"port {port} of {own} is in use {by}",
            "The server of this task cannot start.",
            f"`ss -ltnp 'sport = :{port}'` names the process. End it, or choose another port.",
        )
    ]


def loopback(addresses: Mapping[str, str]) -> list[Finding]:
    """Loopback addresses in a cluster that has other hosts too."""
    hosts = {name: parse_address(address).host for name, address in addresses.items()}
    here = [f"{name} ({addresses[name]})" for name, host in hosts.items() if is_loopback(host)]
    if len(here) in (0, len(hosts)):
        return []
    return [
        Finding(
            "network.loopback",
            "error",
            f"a loopback address in a cluster with other hosts: {', '.join(here)}",
            "Tasks on other machines would connect to their own machine instead, and wait.",
            "Use the name or address by which the other machines reach it.",
        )
    ]


def is_loopback(host: str) -> bool:
    """Whether a name or an address means "this machine" on every machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def same_server(answers: Iterable[Answer]) -> list[Finding]:
    """Tasks whose addresses are spelled differently and mean the same port of one machine."""
    owners: dict[tuple[str, int], Answer] = {}
    findings = []
    for answer in answers:
        port = parse_address(answer.address).port
        places = [(ip, port) for ip in answer.ips]
        other = next((owners[place] for place in places if place in owners), None)
        for place in places:
            owners.setdefault(place, answer)
        if other is not None:
            what = (
                f"{other.name} ({other.address}) and {answer.name} ({answer.address}) have the "
                f"same port of one machine, {answer.ips[0]}"
            )
            findings.append(
                Finding(
                    "network.same_server",
                    "error",
                    what,
                    "Only one of the two can listen there, so some connections reach the wrong "
                    "task.",
                    "Give each task an address of its own.",
                )
            )
    return findings


def exposure(own_addresses: Sequence[str]) -> list[Finding]:
    """The addresses at which other machines reach the servers of this machine."""
    outside = [
        address
        for address in own_addresses
        if not (ip := ipaddress.ip_address(address)).is_loopback and not ip.is_link_local
    ]
    if not outside:
        return []
    return [
        Finding(
            "network.exposure",
            "warning",
            f"other machines can reach this one at {', '.join(outside)}",
            "A TensorFlow server listens on every interface, even if its address is 127.0.0.1, and "
            "runs any graph that it receives.",
            "Block the ports with a firewall, or run in a network namespace (`tfdist run "
            "--isolate`), in an internal container network, or behind a Kubernetes NetworkPolicy.",
        )
    ]
