"""The server is built before the first test, for which the deadline of a test is too short."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from tfdist.errors import ServerError
from tfdist.serving import build_server


def pytest_collection_finish(session: pytest.Session) -> None:
    if any(item.path.is_relative_to(Path(__file__).parent) for item in session.items):
        with suppress(ServerError):  # the tests that need it report the error
            build_server()
