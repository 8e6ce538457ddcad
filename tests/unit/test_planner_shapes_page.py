"""The page on parameters prints what it says, and its numbers are those of the library."""

import json
import re
from pathlib import Path

import pytest

from tfdist.planner import Transformer, count_parameters, preset
from tfdist.planner.families import FAMILIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/planner/parameters.md").read_text("utf-8")
TABLE = ROOT / "tests/unit/planner_tables/transformers_parameters.json"
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("code", "output"), BLOCKS)
def test_a_block_prints_what_the_page_says(code, output, tmp_path, monkeypatch, capsys):
    (own,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "model.yaml").write_text(own, "utf-8")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out == output


def test_the_page_has_blocks():
    assert len(BLOCKS) == 3


def test_gpt3_by_hand():
    section = PAGE.partition("## GPT-3 175B by hand")[2].partition("## Variants")[0]
    rows = re.findall(r"\| (\w+) \| ([^|a-z]+) \| ([\d,]+) \|", section)
    parts = {part.name: part.value for part in count_parameters(preset("gpt3-175b")).parts}
    assert [name.lower() for name, _, _ in rows] == ["embedding", "attention", "mlp", "norms"]
    for name, calculation, value in rows:
        by_hand = eval(
            calculation.replace("\N{MULTIPLICATION SIGN}", "*").replace("²", "**2"),
            {"__builtins__": {}},
        )
        assert by_hand == int(value.replace(",", "")) == parts[name.lower()]
    assert f"**{count_parameters(preset('gpt3-175b')).value:,}**" in section
    assert f"{12 * 96 * 12288**2:,}" in section


def test_the_misprints_of_gpt3_and_the_rule_of_thumb():
    printed = count_parameters(Transformer(24, 2048, 24, 50257, head_dim=128, positions=2048)).value
    corrected = count_parameters(preset("gpt3-1.3b")).value
    assert f"would have {printed / 1e6:,.0f} million" in PAGE
    assert f"With 16 heads it has {corrected / 1e6:,.0f}" in PAGE
    for name, share in {"gpt2-124m": "32 %", "mixtral-8x7b": "86 %"}.items():
        model = preset(name)
        error = 1 - 12 * model.layers * model.hidden**2 / count_parameters(model).value
        assert f"{error * 100:.0f} %" == share
        assert share in PAGE.partition("##")[0]


def test_the_page_lists_the_families_and_counts_the_comparisons():
    listed = PAGE.partition("The types that are read exactly:\n")[2].partition(".\n")[0]
    assert re.split(r",\s+", listed) == sorted(FAMILIES)
    models = json.loads(TABLE.read_text("utf-8"))["models"]
    assert f"compares {len(models)} configurations of {len(FAMILIES)} model types" in PAGE
