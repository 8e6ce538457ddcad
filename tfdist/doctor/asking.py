"""Asks at each address of a cluster, all at once: who is there?"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from tfdist.deadline import Deadline
from tfdist.task import parse_address

# What a client of HTTP/2, and so of gRPC, says first (RFC 9113, 3.4): a fixed text, then a SETTINGS
# frame, here an empty one. A server answers with a SETTINGS frame of its own.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HEADER_BYTES, _SETTING_BYTES, _SETTINGS = 9, 6, 4
_READ_BYTES = 64
_SHORTEST_SECS = 0.01  # a timeout of 0 would mean "do not block"
_REPORT_SECS = 0.5  # for threads that came to their end with the deadline

Resolve = Callable[[str], list[str]]


class State(Enum):
    """What happens to whoever calls an address."""

    NO_NAME = "its name does not resolve"
    UNREACHABLE = "there is no way to it"
    TIMED_OUT = "nothing comes back"
    REFUSED = "nobody listens"
    SILENT = "the connection is accepted, and then nothing comes"
    FOREIGN = "what listens does not speak HTTP/2"
    SERVES = "what listens speaks HTTP/2, as TensorFlow's servers do"
    OWN_RUN = "a ps of this run serves"
    OTHER_RUN = "the ps of another run serves"


@dataclass(frozen=True)
class Answer:
    """What came back from one address.

    Attributes:
        name: of the task.
        address: its "host:port".
        state: what happened.
        detail: the system's error, or what else is known of who listens.
        ips: what the host resolves to.
    """

    name: str
    address: str
    state: State
    detail: str = ""
    ips: tuple[str, ...] = ()


def ask(addresses: Mapping[str, str], resolve: Resolve, deadline: Deadline) -> list[Answer]:
    """One answer for each address, in their order; blocks until `deadline` at most.

    A thread that hangs in the resolver is left behind; it is a daemon, and ends with the process.
    """
    answers: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

    def run(name: str, address: str) -> None:
        try:
            answers.put(_ask_one(name, address, resolve, deadline))
        except Exception as error:  # raised below, in the thread that can handle it
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
        found.get(name) or Answer(name, address, State.NO_NAME, "no answer in time")
        for name, address in addresses.items()
    ]


def _ask_one(name: str, address: str, resolve: Resolve, deadline: Deadline) -> Answer:
    host, port = parse_address(address)
    try:
        ips = resolve(host)
    except (OSError, UnicodeError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        return Answer(name, address, State.NO_NAME, detail)
    state, detail = State.NO_NAME, "it has no address"
    for tried, ip in enumerate(ips):
        # A dead address must not use up the time of those behind it.
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
    heard = b""
    try:
        connection.sendall(_PREFACE)
        while len(heard) < _HEADER_BYTES:
            connection.settimeout(max(deadline.remaining, _SHORTEST_SECS))
            more = connection.recv(_READ_BYTES)
            if not more:
                break
            heard += more
    except TimeoutError:
        if not heard:
            return State.SILENT, ""
    except ConnectionError:
        pass  # it hung up, as one does who does not understand; `heard` tells the rest
    if is_settings(heard):
        return State.SERVES, ""
    if not heard:
        return State.FOREIGN, "it hangs up"
    return State.FOREIGN, f"it says {heard.splitlines()[0].decode('ascii', 'replace')!r}"


def is_settings(data: bytes) -> bool:
    """Whether `data` begins with a SETTINGS frame, as what an HTTP/2 server says must."""
    return (
        len(data) >= _HEADER_BYTES
        and int.from_bytes(data[:3], "big") % _SETTING_BYTES == 0
        and data[3] == _SETTINGS
        and data[5:_HEADER_BYTES] == bytes(4)
    )
