"""What a machine cannot do is told with the reason, and what it can it does."""

import os

from tfdist.testing import capabilities, link, network
from tfdist.testing.faults import Bandwidth, Delay, Loss, NetworkFault, Pause, TaskFault, Unplug


def subclasses(kind):
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


def test_each_fault_is_told_and_this_machine_can_have_it():
    faults = subclasses(NetworkFault) | subclasses(TaskFault)
    concrete = {kind for kind in faults if not kind.__abstractmethods__}
    assert capabilities() == dict.fromkeys(concrete, "")


def test_without_root_there_are_no_networks(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = capabilities()
    assert "root" in found[Unplug]
    assert "root" in found[Delay]
    assert found[Pause] == ""


def test_without_tap_devices_there_are_no_relays(monkeypatch):
    for module in (link, network):
        monkeypatch.setattr(module, "TUN", "/nonexistent/tun")
    found = capabilities()
    assert "/nonexistent/tun" in found[Delay]
    assert found[Loss] == found[Delay]
    assert found[Unplug] == ""


def test_without_tbf_there_is_no_bandwidth(monkeypatch, tmp_path):
    fake = tmp_path / "tc"
    fake.write_text("#!/bin/sh\necho 'Error: Specified qdisc kind is unknown.' >&2; exit 2\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = capabilities()
    assert "qdisc kind is unknown" in found[Bandwidth]
    assert found[Unplug] == ""
