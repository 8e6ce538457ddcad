"""A value of a compose file that knows where it stands, for errors that say so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from tfdist.errors import ConfigError
from tfdist.testing.compose.variables import interpolated

_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:us|ms|s|m|h))+")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Origin:
    """What all values of a file share.

    Attributes:
        path: of the file.
        folder: that its relative paths start from: the first file's of the project.
        environ: for its variables.
    """

    path: str
    folder: str
    environ: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """A value, as YAML has it, with its variables still in it.

    Attributes:
        origin: its file.
        key: where in the file: ``"services.ps-0.command"``; empty for the whole of it.
        raw: the value.
    """

    origin: Origin
    key: str
    raw: object

    def refuse(self, rule: str) -> NoReturn:
        """Raises ConfigError: file, key and value, and what it should have been."""
        path = self.origin.path
        raise ConfigError(f"{path}: {self.key}" if self.key else path, self.raw, rule)

    def members(self, known: Collection[str] | None = None) -> dict[str, Entry]:
        """Those of a mapping by name, without the `x-` ones; `known` are all that it may have."""
        if not isinstance(self.raw, dict):
            self.refuse("a mapping")
        found = {}
        for name, value in self.raw.items():
            entry = self._inner(f".{name}" if self.key else name, value)
            if known is None or name in known:
                found[name] = entry
            elif not name.startswith("x-"):
                entry.refuse(f"not known here; known are {', '.join(sorted(known))}")
        return found

    def items(self) -> list[Entry]:
        """Those of a list."""
        if not isinstance(self.raw, list):
            self.refuse("a list")
        return [self._inner(f"[{index}]", value) for index, value in enumerate(self.raw)]

    def named(self) -> Iterator[tuple[str, Entry]]:
        """Name and value of a mapping, or of a list of `NAME=VALUE`; None where no value stands."""
        if isinstance(self.raw, dict):
            yield from self.members().items()
            return
        for item in self.items():
            name, equals, value = item.text().partition("=")
            # Its variables have their values already; a dollar among those is one.
            yield name, self._inner(f".{name}", value.replace("$", "$$") if equals else None)

    def text(self) -> str:
        """A text, or a number as it is written; with the values of its variables."""
        if isinstance(self.raw, bool) or not isinstance(self.raw, str | int | float):
            self.refuse("a text; put quotes around it")
        try:
            return interpolated(str(self.raw), self.origin.environ)
        except ValueError as error:
            self.refuse(str(error))

    def texts(self) -> tuple[str, ...]:
        """Those of a list of texts."""
        return tuple(item.text() for item in self.items())

    def words(self) -> tuple[str, ...]:
        """A list of texts, or a text cut into words as a shell would."""
        if isinstance(self.raw, list):
            return self.texts()
        try:
            return tuple(shlex.split(self.text()))
        except ValueError as error:
            self.refuse(str(error))

    def flag(self) -> bool:
        """True or false."""
        value = self.text() if isinstance(self.raw, str) else self.raw
        if value in ("true", "false"):
            return value == "true"
        if not isinstance(value, bool):
            self.refuse("true or false")
        return value

    def whole_number(self) -> int:
        """A whole number, at least 0."""
        text = self.text()
        if not (text.isascii() and text.isdecimal()):
            self.refuse("a whole number, at least 0")
        return int(text)

    def seconds(self) -> float:
        """A duration such as "1m30s", in seconds."""
        text = self.text()
        if _DURATION.fullmatch(text) is None:
            self.refuse("a duration such as 5s or 1m30s")
        parts = re.findall(r"([0-9.]+)([a-z]+)", text)
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)

    def folder(self) -> str:
        """An absolute path."""
        path = self.text()
        if not path.startswith("/"):
            self.refuse("an absolute path")
        return path

    def _inner(self, step: str, value: object) -> Entry:
        return Entry(self.origin, f"{self.key}{step}", value)
