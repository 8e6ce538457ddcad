"""A value of a compose file that knows its file and key, so that an error can name them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from tfdist.errors import ConfigError

_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:us|ms|s|m|h))+")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# The forms that docker compose 2 and docker-compose 1 both know; `$$` is a dollar.
_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)"
    r"|(?P<plain>[A-Za-z_][A-Za-z0-9_]*)"
    r"|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<rule>:?[-?])(?P<rest>[^{}$]*))?\}"
    r"|(?P<wrong>))"
)


@dataclass(frozen=True)
class Origin:
    """What all values of a file have in common.

    Attributes:
        path: the path of the file.
        folder: relative paths start here: the folder of the project's first file.
        environ: the values of variables.
    """

    path: str
    folder: str
    environ: Mapping[str, str]


@dataclass(frozen=True)
class Entry:
    """A value as YAML has it, before its variables are replaced.

    Attributes:
        origin: its file.
        key: its place in the file: ``"services.ps-0.command"``; empty for the whole file.
        raw: the value.
    """

    origin: Origin
    key: str
    raw: object

    def reject(self, rule: str) -> NoReturn:
        """Raises ConfigError with the file, the key, the value, and what it should be."""
        path = self.origin.path
        field = f"{path}: {self.key}" if self.key else path
        raise ConfigError(field, self.raw, rule, missing=self.raw is None)

    def members(self, known: Collection[str] | None = None) -> dict[str, Entry]:
        """The members of a mapping by name, except `x-` keys; a key not in `known` is an error."""
        if not isinstance(self.raw, dict):
            self.reject("must be a mapping")
        found = {}
        for name, value in self.raw.items():
            entry = self._inner(f".{name}" if self.key else name, value)
            if known is None or name in known:
                found[name] = entry
            elif not name.startswith("x-"):
                entry.reject(f"is not supported here; supported are {', '.join(sorted(known))}")
        return found

    def items(self) -> list[Entry]:
        """The items of a list."""
        if not isinstance(self.raw, list):
            self.reject("must be a list")
        return [self._inner(f"[{index}]", value) for index, value in enumerate(self.raw)]

    def named(self) -> Iterator[tuple[str, Entry]]:
        """Names and values of a mapping or of a list of `NAME=VALUE`; the raw None if no value."""
        if isinstance(self.raw, dict):
            yield from self.members().items()
            return
        for item in self.items():
            name, equals, value = item.text().partition("=")
            # text() has replaced the variables; a dollar in their values is only a dollar.
            yield name, self._inner(f".{name}", value.replace("$", "$$") if equals else None)

    def text(self) -> str:
        """A string, or a number as it is written, with its variables replaced."""
        if isinstance(self.raw, bool) or not isinstance(self.raw, str | int | float):
            self.reject("must be a string; put quotes around it")
        try:
            return interpolated(str(self.raw), self.origin.environ)
        except ValueError as error:
            self.reject(str(error))

    def texts(self) -> tuple[str, ...]:
        """The items of a list of strings."""
        return tuple(item.text() for item in self.items())

    def words(self) -> tuple[str, ...]:
        """A list of strings, or one string split into words as by a shell."""
        if isinstance(self.raw, list):
            return self.texts()
        try:
            return tuple(shlex.split(self.text()))
        except ValueError as error:
            self.reject(str(error))

    def flag(self) -> bool:
        """True or false."""
        value = self.text() if isinstance(self.raw, str) else self.raw
        if value in ("true", "false"):
            return value == "true"
        if not isinstance(value, bool):
            self.reject("must be true or false")
        return value

    def whole_number(self) -> int:
        """A whole number, at least 0."""
        text = self.text()
        if not (text.isascii() and text.isdecimal()):
            self.reject("must be a whole number, at least 0")
        return int(text)

    def seconds(self) -> float:
        """A duration such as "1m30s", in seconds."""
        text = self.text()
        if _DURATION.fullmatch(text) is None:
            self.reject("must be a duration such as 5s or 1m30s")
        parts = re.findall(r"([0-9.]+)([a-z]+)", text)
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)

    def folder(self) -> str:
        """An absolute path."""
        path = self.text()
        if not path.startswith("/"):
            self.reject("must be an absolute path")
        return path

    def _inner(self, step: str, value: object) -> Entry:
        return Entry(self.origin, f"{self.key}{step}", value)


def interpolated(text: str, environ: Mapping[str, str]) -> str:
    """`text` with its variables replaced.

    The forms are ``$A``, ``${A}``, ``${A:-default}``, ``${A-default}``, ``${A:?message}`` and
    ``${A?message}``. After a colon an empty value counts as no value.

    Raises:
        ValueError: a variable has no value, or the form is another one.
    """

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if match["wrong"] is not None:
            raise ValueError("write $$ for a dollar, or ${NAME}, ${NAME:-default}, ${NAME:?why}")
        name, rule = match["plain"] or match["name"], match["rule"] or ""
        found = environ.get(name)
        if found is not None and (found or not rule.startswith(":")):
            return found
        if rule.endswith("-"):
            return match["rest"]
        # Without a rule docker compose warns and uses an empty string.
        raise ValueError(f"{name} is not set{': ' + match['rest'] if match['rest'] else ''}")

    return _VARIABLE.sub(value, text)
