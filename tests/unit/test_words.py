"""No text of the project uses a retired word; CONTRIBUTING.md says what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RETIRED = re.compile(
    r"\b(sighting|strangers?|mistaken|refusal|whoever|cured?|cures|visit(s|ed|ing|ors?)?"
    r"|judge[sd]?|judging|standstill|stands? still|stood still|standing still|gets? on|got on"
    r"|getting on|tells?|told|give(s|n)? (it |them |one )?back|gave back|lets? go of|beside"
    r"|at_once|life|lives|somebody|nobody|everybody|anybody|someone|anyone|everyone)\b",
    re.IGNORECASE,
)
# A user, and names of io and of C++.
NAMES = r"`nobody`|def tell\b|std::visit\b"
FOLDERS = (
    "tfdist",
    "docs",
    "tests",
    "scripts",
    "examples",
    "benchmarks",
    "docker",
    ".ci",
    ".github",
)
SUFFIXES = {"", ".py", ".pyi", ".md", ".sh", ".yaml", ".yml", ".toml", ".txt", ".h", ".cc"}
# History, and this list of the words. In CONTRIBUTING.md only the table of the words is exempt.
EXEMPT = {"CHANGELOG.md", "tests/unit/test_words.py", "LICENSE"}
TABLE = "\n## Retired words\n"


def texts(root: Path) -> Iterator[Path]:
    """Every text of the project: files on top, and all in its folders."""
    for path in [*root.iterdir(), *(p for name in FOLDERS for p in (root / name).rglob("*"))]:
        if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
            yield path


def retired_words(root: Path) -> list[str]:
    """Each retired word, with its place."""
    return [
        f"{path.relative_to(root)}:{number}: {match[0]}"
        for path in sorted(texts(root))
        if str(path.relative_to(root)) not in EXEMPT
        for number, line in enumerate(path.read_text("utf-8").split(TABLE)[0].splitlines(), start=1)
        for match in RETIRED.finditer(re.sub(NAMES, "", line))
    ]


def test_no_text_has_a_retired_word():
    assert retired_words(ROOT) == []


@pytest.mark.parametrize("text", ["Whoever waits", "the job stands still", "gives it back", "life"])
def test_a_retired_word_is_found(tmp_path, text):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.md").write_text(f"# Title\n{text}\n")
    (found,) = retired_words(tmp_path)
    assert found.startswith("docs/page.md:2: ")


def test_words_that_contain_one_are_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("lifetime, secure, besides, visitation\n")
    assert retired_words(tmp_path) == []


def test_only_the_table_of_the_words_may_have_them(tmp_path):
    (tmp_path / "CONTRIBUTING.md").write_text("# Life\n\n## Retired words\n\n| life | attempt |\n")
    assert retired_words(tmp_path) == ["CONTRIBUTING.md:1: Life"]
