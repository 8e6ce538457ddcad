"""A session straight to one ps says whether the ps is gone or silent, and closes either way."""

import socket

import pytest
import tensorflow as tf

from tfdist.cluster import mailbox
from tfdist.deadline import Deadline
from tfdist.ps.session import PS_DEVICE, DirectSession
from tfdist.task import Task


def session_with(address):
    with tf.Graph().as_default() as graph, tf.compat.v1.device(PS_DEVICE):
        seven = tf.constant(7)
    return DirectSession(address, graph, timeout=0.3), seven


def test_a_lost_ps_raises_unavailable_although_tensorflow_keeps_trying():
    with socket.socket() as bound:  # nothing listens on it
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        session, seven = session_with(address)
        with session, pytest.raises(tf.errors.UnavailableError, match=f"listens at {address}"):
            session.run(seven)


def test_a_silent_ps_exceeds_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as server:
        session, seven = session_with(f"127.0.0.1:{server.getsockname()[1]}")
        with session, pytest.raises(tf.errors.DeadlineExceededError):
            session.run(seven)


def test_a_message_to_a_lost_ps_fails_long_before_its_timeout(monkeypatch):
    monkeypatch.setattr("tfdist.cluster.mailbox._RECHECK_SECS", 0.3)
    with socket.socket() as bound:  # nothing listens on it
        bound.bind(("127.0.0.1", 0))
        ps = Task("ps", 0, {"ps": [f"127.0.0.1:{bound.getsockname()[1]}"], "worker": ["h:1"]})
        deadline = Deadline(60)
        with pytest.raises(tf.errors.UnavailableError, match="nothing listens"):
            mailbox.send(ps, mailbox.DONE, 0, timeout=60)
        assert deadline.elapsed < 30
