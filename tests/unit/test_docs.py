"""The documentation holds together: links, code blocks, and a mention of every command."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tfdist.cli import build_parser

ROOT = Path(__file__).parents[2]
FRONT = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
# Options that argparse and absl add to each parser.
GIVEN = {"--help", "--helpfull", "--helpshort"}


def pages(root: Path) -> list[Path]:
    """Every page; the front pages must exist."""
    return [root / name for name in FRONT] + sorted((root / "docs").rglob("*.md"))


def docs_text(root: Path) -> dict[str, str]:
    """The pages of docs/ by their paths in it."""
    paths = sorted((root / "docs").rglob("*.md"))
    return {str(path.relative_to(root / "docs")): path.read_text("utf-8") for path in paths}


def tokens(path: Path) -> Iterator[Token]:
    """All Markdown tokens of a page, also those inside paragraphs and headings."""
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text("utf-8")):
        yield token
        yield from token.children or ()


def links(path: Path) -> Iterator[str]:
    """What a page links to or shows, in Markdown and in HTML."""
    for token in tokens(path):
        if token.type in ("link_open", "image"):
            yield str(token.attrGet("href") or token.attrGet("src"))
        elif token.type.startswith("html_"):
            yield from re.findall(r'\b(?:href|src|srcset)="([^"]+)"', token.content)


def anchors(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them from its headings and ids."""
    found: set[str] = set()
    heading = False
    for token in tokens(path):
        if token.type.startswith("html_"):
            found |= set(re.findall(r'\b(?:id|name)="([^"]+)"', token.content))
        elif token.type == "inline" and heading:
            text = "".join(c.content for c in token.children or () if c.type != "html_inline")
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            again = (f"{slug}-{n}" for n in range(1, len(found) + 2))
            found.add(slug if slug not in found else next(s for s in again if s not in found))
        heading = token.type == "heading_open"
    return found


def broken_links(root: Path) -> list[str]:
    """Each relative link without a file, and each anchor without a heading."""
    found = []
    for page in pages(root):
        for link in links(page):
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page.resolve()
            inside = target.is_relative_to(root.resolve()) and target.exists()
            if not inside:
                found.append(f"{page.relative_to(root)}: {link}: no such file")
            elif url.fragment and target.suffix == ".md" and url.fragment not in anchors(target):
                found.append(f"{page.relative_to(root)}: {link}: no such heading")
    return found


def broken_code(root: Path) -> list[str]:
    """Each fenced python block that does not parse."""
    found = []
    for page in pages(root):
        for token in tokens(page):
            if token.type == "fence" and token.info.split()[:1] == ["python"]:
                try:
                    ast.parse(token.content)
                except SyntaxError as error:
                    line = (token.map or [0])[0] + 1 + (error.lineno or 0)
                    found.append(f"{page.relative_to(root)}:{line}: {error.msg}")
    return found


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each subcommand below `parser`, nested ones too, by the words that call it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield name, below
                yield from ((f"{name} {inner}", p) for inner, p in commands(below))


def long_options(parser: argparse.ArgumentParser) -> list[str]:
    """The long options that a command shows in its own help."""
    return [
        next(option for option in action.option_strings if option.startswith("--"))
        for action in parser._actions
        if action.help != argparse.SUPPRESS and GIVEN.isdisjoint(action.option_strings)
        if any(option.startswith("--") for option in action.option_strings)
    ]


def has_word(text: str, word: str) -> bool:
    """Whether `text` has `word` on its own: --out is not in --outputs."""
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


def unmentioned_commands(root: Path, parser: argparse.ArgumentParser) -> list[str]:
    """Each command that no page of docs/ names, and each option that no page naming it has."""
    found = []
    for name, command in commands(parser):
        here = [text for text in docs_text(root).values() if has_word(text, f"tfdist {name}")]
        if not here:
            found.append(f"tfdist {name}")
        for option in long_options(command):
            if not any(has_word(text, option) for text in here):
                found.append(f"tfdist {name} {option}")
    return found


def test_every_link_leads_somewhere():
    assert broken_links(ROOT) == []


def test_every_python_block_parses():
    assert broken_code(ROOT) == []


def test_every_command_and_option_is_documented():
    assert list(commands(build_parser())), "no command found: is the parser read correctly?"
    assert unmentioned_commands(ROOT, build_parser()) == []


def test_no_text_promises_an_index():
    # tfdist is on no package index: it is installed from a checkout or a wheel.
    promise = re.compile(r"pip install\s+[\"'`]*tfdist(?![\w-])")
    texts = [*pages(ROOT), *(ROOT / "tfdist").rglob("*.py"), *(ROOT / "scripts").iterdir()]
    assert [str(path) for path in texts if promise.search(path.read_text("utf-8"))] == []


@pytest.fixture
def site(tmp_path):
    """A small tree of pages without a fault."""
    (tmp_path / "docs").mkdir()
    for name in FRONT:
        (tmp_path / name).write_text("# Title\n")
    (tmp_path / "docs/run.md").write_text(
        "# `tfdist run`: a job\n\n## Twice\n\n## Twice\n\n<a id='x'></a><a id=\"y\"></a>\n"
        "`--ps N` and `--outputs`; `Barrier`\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "[a](docs/run.md) [b](docs/run.md#tfdist-run-a-job) [c](#title) [d](docs/run.md#twice-1)",
        "[a](docs/run.md#y) [b](https://example.org/gone) ![c](LICENSE)",
        "`[a](gone.md)`\n\n```sh\n[a](gone.md)\n```",
        "```python\nx = 1\n```\n```text\nx =\n```",
    ],
)
def test_a_sound_page_is_left_alone(site, text):
    (site / "LICENSE").touch()
    (site / "README.md").write_text(f"# Title\n{text}\n")
    assert broken_links(site) + broken_code(site) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](docs/gone.md)", "README.md: docs/gone.md: no such file"),
        ("[a][r]\n\n[r]: gone.md", "README.md: gone.md: no such file"),
        ("![a](gone.svg)", "README.md: gone.svg: no such file"),
        ('<img src="gone.svg">', "README.md: gone.svg: no such file"),
        ("[a](..)", "README.md: ..: no such file"),
        ("[a](#gone)", "README.md: #gone: no such heading"),
        ("[a](docs/run.md#thrice)", "README.md: docs/run.md#thrice: no such heading"),
        ("| a |\n|---|\n| [a](gone.md) |", "README.md: gone.md: no such file"),
        ("\n```python\nx =\n```", "README.md:4: invalid syntax"),
    ],
)
def test_a_broken_page_is_found(site, text, problem):
    (site / "README.md").write_text(f"# Title\n{text}\n")
    assert broken_links(site) + broken_code(site) == [problem]


def test_an_undocumented_option_is_found(site):
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    run = commands.add_parser("run")
    run.add_argument("--ps")
    run.add_argument("--out", "-o")
    run.add_argument("--secret", help=argparse.SUPPRESS)
    # An option on another command's page documents nothing.
    commands.add_parser("doctor").add_argument("--ps")
    assert unmentioned_commands(site, parser) == [
        "tfdist run --out",
        "tfdist doctor",
        "tfdist doctor --ps",
    ]
