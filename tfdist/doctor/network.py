"""Whether the tasks of a cluster can reach one another, and who else can reach them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence

from tfdist.doctor.asking import Answer, State
from tfdist.doctor.finding import Finding
from tfdist.doctor.machine import is_loopback
from tfdist.task import parse_address

# Severity, what to say of the tasks, why it matters, what to do.
_OTHERS = {
    State.NO_NAME: (
        "network.name",
        "error",
        "no address for {}",
        "This machine cannot call the task at all.",
        "Look at the spelling, at the name server, at /etc/hosts. In Kubernetes and Compose a name "
        "may come only when its task is started.",
    ),
    State.UNREACHABLE: (
        "network.unreachable",
        "error",
        "no way to {}",
        "This machine cannot call the task at all.",
        "Look at the address and at the routes of this machine: `ip route get ADDRESS`.",
    ),
    State.TIMED_OUT: (
        "network.timed_out",
        "error",
        "nothing comes back from {}",
        "Somebody drops the packets. TensorFlow would wait here, and say nothing.",
        "Look at firewalls and network policies between the two, and whether that machine is up.",
    ),
    State.REFUSED: (
        "network.refused",
        "note",
        "nobody listens at {}",
        "The machine is there, the task is not: not started yet, ended, or on another port.",
        "Nothing to do if it is still to start. Else look at that task's output.",
    ),
    State.SILENT: (
        "network.silent",
        "error",
        "{} accepts a connection and then says nothing",
        "A TensorFlow server answers at once. This one is stopped or stuck, and whoever calls it "
        "hangs; or it is another program.",
        "Look at the process that has the port there: `ss -ltnp`, and `ps` for the state T.",
    ),
    State.FOREIGN: (
        "network.foreign",
        "error",
        "what listens at {} is no TensorFlow server",
        "Another program has the task's port, so the task cannot start there.",
        "Choose another port, or end that program: `ss -ltnp` there names it.",
    ),
    State.SERVES: (
        "network.serving",
        "note",
        "a server already answers at {}",
        "It may be of this job, or left over from an earlier one: TensorFlow does not tell them "
        "apart, and a left-over server still has the old variables.",
        "Nothing to do if you started it. Else end it before the job begins. With a "
        "TFDIST_CLUSTER_ID, the same for all tasks of a job, a ps shows of which job it is.",
    ),
    State.OWN_RUN: (
        "network.own_run",
        "note",
        "a ps of this run already answers at {}",
        "It shows the TFDIST_CLUSTER_ID that is set here.",
        "Nothing to do, unless you are about to start it: each run needs an id of its own.",
    ),
    State.OTHER_RUN: (
        "network.other_run",
        "error",
        "the ps of another run answers at {}",
        "It still has the variables of that run. Trainers refuse it by its TFDIST_CLUSTER_ID.",
        "End it, or choose other addresses. If it is of this run, set the same id for all tasks.",
    ),
}


def others(answers: Iterable[Answer], own: str | None) -> list[Finding]:
    """What happens to whoever calls the other tasks: one finding for each kind."""
    groups: dict[State, list[str]] = {}
    for answer in answers:
        # Nobody serves this task yet, and whether its port is free is a check of its own.
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
    """Whether this is the machine of this process's task, and its port is free."""
    answer = next((answer for answer in answers if answer.name == own), None)
    if answer is None or not answer.ips:
        return []
    if not any(is_loopback(ip) or ip in own_addresses for ip in answer.ips):
        return [
            Finding(
                "network.own_address",
                "warning",
                f"{own} is at {answer.address}, which is {', '.join(answer.ips)}; this machine has "
                f"{', '.join(ip for ip in own_addresses if not is_loopback(ip)) or 'no address'}",
                "The server starts here, and the others call it there. That is right only if "
                "something in between passes the calls on, such as a port of a container.",
                "Start the task on the machine that its address names, or mend the address.",
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
                f"{own} may not use port {port}",
                "Its server cannot start: the system keeps low ports for root.",
                "Choose a port of 1024 or more.",
            )
        ]
    if not taken:
        return []
    who = {
        State.SERVES: "by a server that speaks as TensorFlow's do: this task runs already, or one "
        "is left over from an earlier job",
        State.OWN_RUN: "by a ps of this run: this task runs already",
        State.OTHER_RUN: f"by the ps of another run: {answer.detail}",
        State.FOREIGN: f"by another program: {answer.detail}",
    }.get(answer.state, "by another program")
    return [
        Finding(
            "network.own_port",
            "error",
            f"port {port} of {own} is taken {who}",
            "Its server cannot start.",
            f"`ss -ltnp 'sport = :{port}'` names the process. End it, or choose another port.",
        )
    ]


def loopback(addresses: Mapping[str, str]) -> list[Finding]:
    """Tasks that every machine looks for on itself, in a cluster of more machines."""
    hosts = {name: parse_address(address).host for name, address in addresses.items()}
    here = [f"{name} ({addresses[name]})" for name, host in hosts.items() if is_loopback(host)]
    if len(here) in (0, len(hosts)):
        return []
    return [
        Finding(
            "network.loopback",
            "error",
            f"{', '.join(here)}: an address that means each machine itself, in a cluster with "
            "other hosts",
            "Tasks on other machines would look for it on their own, and wait.",
            "Write the name or the address by which the other machines know it.",
        )
    ]


def same_server(answers: Iterable[Answer]) -> list[Finding]:
    """Tasks with different names that lie at one port of one machine."""
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
                f"{other.name} ({other.address}) and {answer.name} ({answer.address}) are at one "
                f"port of one machine, {answer.ips[0]}"
            )
            findings.append(
                Finding(
                    "network.same_server",
                    "error",
                    what,
                    "Only one of the two can have it; calls to the other reach the wrong one.",
                    "Give each task an address of its own.",
                )
            )
    return findings


def exposure(own_addresses: Sequence[str]) -> list[Finding]:
    """Addresses by which others can reach the servers of this machine."""
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
            f"this machine can be reached at {', '.join(outside)}",
            "A TensorFlow server listens on every interface, also where its address says "
            "127.0.0.1, and executes whatever anyone who reaches it sends.",
            "Close the ports to others by a firewall; or run in a network namespace "
            "(`tfdist run --isolate`), an internal network of containers, or behind a Kubernetes "
            "NetworkPolicy.",
        )
    ]
