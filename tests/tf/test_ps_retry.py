"""A run that TensorFlow refuses as a duplicate request is sent again."""

import pytest

from tfdist.ps.session import retry_duplicate_request

DUPLICATE = "From /job:ps/replica:0/task:0:\nThe same RunGraph (Worker) request was received twice."


class Server:
    def __init__(self, *messages):
        self.messages, self.runs = list(messages), 0

    def run(self, number):
        self.runs += 1
        if self.messages:
            raise ValueError(self.messages.pop(0))
        return number


def test_a_run_refused_as_a_duplicate_is_sent_again():
    server = Server(DUPLICATE, DUPLICATE)
    assert retry_duplicate_request(server.run, 7) == 7
    assert server.runs == 3


def test_a_server_that_refuses_every_run_gets_a_limited_number_of_calls():
    server = Server(*[DUPLICATE] * 1000)
    with pytest.raises(ValueError, match="received twice"):
        retry_duplicate_request(server.run, 7)
    assert server.runs < 100


def test_any_other_error_is_raised_immediately():
    server = Server("Session handle is not found")
    with pytest.raises(ValueError, match="not found"):
        retry_duplicate_request(server.run, 7)
    assert server.runs == 1
