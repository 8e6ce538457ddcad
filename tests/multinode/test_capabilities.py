"""`capabilities` gives a reason for each fault that this machine does not support."""

import os

from tfdist.testing import capabilities, link, network
from tfdist.testing.faults import Bandwidth, Delay, Loss, NetworkFault, Pause, TaskFault, Unplug


def subclasses(kind):
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


def test_this_machine_supports_every_fault():
    faults = subclasses(NetworkFault) | subclasses(TaskFault)
    concrete = {kind for kind in faults if not kind.__abstractmethods__}
    assert capabilities() == dict.fromkeys(concrete, "")


def test_without_root_only_faults_of_tasks_are_supported(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = capabilities()
    assert "root" in found[Unplug]
    assert "root" in found[Delay]
    assert found[Pause] == ""


def test_without_tap_devices_links_have_no_delay_and_loss(monkeypatch):
    for module in (link, network):
        monkeypatch.setattr(module, "TUN", "/nonexistent/tun")
    found = capabilities()
    assert "/nonexistent/tun" in found[Delay]
    assert found[Loss] == found[Delay]
    assert found[Unplug] == ""


def test_without_tbf_links_have_no_limit(monkeypatch, tmp_path):
    fake = tmp_path / "tc"
    fake.write_text("#!/bin/sh\necho 'Error: Specified qdisc kind is unknown.' >&2; exit 2\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = capabilities()
    assert "qdisc kind is unknown" in found[Bandwidth]
    assert found[Unplug] == ""
