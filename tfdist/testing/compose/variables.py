"""`${NAME}` in a compose file."""

from __future__ import annotations

import re
from collections.abc import Mapping

# What both docker compose 2 and docker-compose 1 know; `$$` is a dollar.
_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)"
    r"|(?P<plain>[A-Za-z_][A-Za-z0-9_]*)"
    r"|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<rule>:?[-?])(?P<rest>[^{}$]*))?\}"
    r"|(?P<wrong>))"
)


def interpolated(text: str, environ: Mapping[str, str]) -> str:
    """`text` with the values of its variables.

    It knows ``$A``, ``${A}``, ``${A:-default}``, ``${A-default}``, ``${A:?message}`` and
    ``${A?message}``; with the colon an empty value counts as none.

    Raises:
        ValueError: a variable without a value, or another form.
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
        # docker compose takes an empty text where there is no rule, with a warning.
        raise ValueError(f"{name} is not set{': ' + match['rest'] if match['rest'] else ''}")

    return _VARIABLE.sub(value, text)
