import pytest

from tfdist.ps.retry import retry_duplicate_request

MISTAKEN = "From /job:ps/replica:0/task:0:\nThe same RunGraph (Worker) request was received twice."


class Server:
    def __init__(self, *messages):
        self.messages, self.runs = list(messages), 0

    def run(self, number):
        self.runs += 1
        if self.messages:
            raise ValueError(self.messages.pop(0))
        return number


def test_a_run_that_was_mistaken_for_another_is_sent_until_it_is_taken():
    server = Server(MISTAKEN, MISTAKEN)
    assert retry_duplicate_request(server.run, 7) == 7
    assert server.runs == 3


def test_a_server_that_mistakes_every_run_is_given_up():
    server = Server(*[MISTAKEN] * 1000)
    with pytest.raises(ValueError, match="received twice"):
        retry_duplicate_request(server.run, 7)
    assert server.runs < 100


def test_any_other_failure_is_passed_on_at_once():
    server = Server("Session handle is not found")
    with pytest.raises(ValueError, match="not found"):
        retry_duplicate_request(server.run, 7)
    assert server.runs == 1
