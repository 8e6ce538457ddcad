"""A running server, as a process of this program."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tfdist.deadline import Deadline
from tfdist.errors import ConfigError, ServerError, checked_secs
from tfdist.serving.build import build_server

_STOP_SECS = 40.0  # the server itself gives requests 31 s
_SHOWN_LINES = 20


def environment() -> dict[str, str]:
    """The environment of a server: TensorFlow logs nothing unless the user wants it to."""
    return {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}


class ModelServer:
    """A server of models on this machine; a context manager that stops it.

    ::

        with tfdist.serving.ModelServer("models/ratings") as server:
            urllib.request.urlopen(f"{server.url}/v1/models/ratings")

    The server also stops when this process ends, however it ends.

    Attributes:
        url: where it serves, such as `http://127.0.0.1:8501`.
        process: the process; its standard error is `errors()`.
    """

    def __init__(
        self, *models: str | os.PathLike[str], options: Sequence[str] = (), timeout: float = 60.0
    ) -> None:
        """Builds the server if necessary, starts it, and waits until it serves.

        Args:
            models: folders of models; NAME=FOLDER names one.
            options: options of `tfdist-server`, such as `["--max-batch-rows", "64"]`. By default
                the port is a free one.
            timeout: seconds that the start may take, without the build.

        Raises:
            ConfigError: there is no model, or a wrong timeout.
            ServerError: the server cannot be built, has ended with an error, or is late.
        """
        if not models:
            raise ConfigError("models", None, "must be at least one folder", missing=True)
        secs = checked_secs("timeout", timeout)
        program = build_server()
        deadline = Deadline(secs)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 # __exit__ closes it
        self.process = subprocess.Popen(
            [
                *(program, "--port", "0", "--json", "--stop-with-stdin"),
                *options,
                "--",
                *(os.fspath(model) for model in models),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            text=True,
        )
        try:
            self.url: str = self._announced(deadline)["url"]
        except BaseException:
            self.process.kill()
            self._close()
            raise

    def _announced(self, deadline: Deadline) -> Any:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], deadline.remaining)
        if not ready:
            raise ServerError("the server does not serve in time", self.errors())
        line = self.process.stdout.readline()  # written as a whole
        if not line:
            self.process.wait(_STOP_SECS)
            raise ServerError("the server has not started", self.errors())
        return json.loads(line)

    def errors(self) -> str:
        """The last lines of its standard error."""
        self._errors.seek(0)
        return "\n".join(self._errors.read().splitlines()[-_SHOWN_LINES:])

    def stop(self) -> int:
        """Lets requests that have come be answered, ends the server, and returns its exit code.

        It blocks for a second if connections are open, and as long as requests run, at most 31 s.
        """
        self.process.terminate()
        try:
            return self.process.wait(_STOP_SECS)
        except subprocess.TimeoutExpired as late:
            self.process.kill()
            raise ServerError(f"not stopped after {late.timeout:.0f} s", self.errors()) from late
        finally:
            self._close()

    def _close(self) -> None:
        self.process.wait(_STOP_SECS)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.stop()
        self._errors.close()
