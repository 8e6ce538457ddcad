"""The parameters of published models, exactly; the sources are in the tables."""

import csv
import re
from pathlib import Path

import pytest

from tfdist.errors import ConfigError
from tfdist.planner import (
    PRESET_SOURCES,
    PRESETS,
    Experts,
    Transformer,
    count_active_parameters,
    count_parameters,
    preset,
)

TABLES = Path(__file__).parent / "planner_tables"


def rows(name):
    """The rows of a table, with numbers as numbers."""
    with open(TABLES / name, encoding="utf-8") as file:
        return [{key: number(text) for key, text in row.items()} for row in csv.DictReader(file)]


def number(text):
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


OPEN = rows("open_models_params.csv")
A9 = rows("chinchilla_tableA9.csv")
MEGATRON = rows("megatron2021_table1.csv")
GPT3 = rows("gpt3_table_2_1.csv")
D1 = {row["model"]: row["params_M"] * 1e6 for row in rows("gpt3_table_D1.csv")}
NORMS = {"ln": "layer", "rms": "rms", "ln_nobias": "layer without bias"}


def preset_name(model):
    """The preset of a row of open_models_params.csv: "Llama-3.1-8B" is "llama3.1-8b"."""
    name = model.lower().replace(" ", "-")
    return re.sub(r"^(llama|gpt)-(\d(?:\.\d)?)-", r"\1\2-", name)


def shape(row):
    """The shape that a row of open_models_params.csv describes."""
    moe = Experts(row["E"], row["k"], row["ff_e"], row["shared"]) if row["E"] else None
    # The table has no columns for parallel blocks and relative positions.
    is_palm = row["model"].startswith("PaLM")
    is_gopher = row["model"].startswith(("Gopher", "Chinchilla"))
    return Transformer(
        *(row["L"], row["h"], row["heads"], row["V"], row["head_dim"], row["kv_heads"], row["ff"]),
        gated_mlp=bool(row["glu"]),
        bias="all" if row["bias"] else "none",
        norm=NORMS[row["norm"]],
        norms_per_layer=1 if is_palm else 2,
        positions=row["pos"],
        relative_positions=is_gopher,
        tied=bool(row["tied"]),
        parallel_block=is_palm,
        experts=moe,
    )


def evaluated(formula, values):
    """The value of a formula such as "L (2 h (q + k) + 1)"."""
    tokens = re.findall(r"[A-Za-z]'?|\d+|[-+()]", formula)
    assert "".join(tokens) == formula.replace(" ", "")
    terms = [str(values.get(token, token)) for token in tokens]
    product = re.sub(r"(?<=[\d)]) (?=[\d(])", "*", " ".join(terms))
    return eval(product, {"__builtins__": {}})


@pytest.mark.parametrize("row", OPEN, ids=lambda row: row["model"])
def test_a_published_shape_has_the_published_parameters(row):
    found = count_parameters(shape(row)).value
    if row["precision"] == "exact":
        assert found == row["published_total"]
    else:
        # Some papers round down: one unit of the last printed digit.
        digits = int(row["precision"].split()[0])
        unit = 10 ** (len(str(row["published_total"])) - digits)
        assert abs(found - row["published_total"]) < unit
    if row["published_active"]:
        assert count_active_parameters(shape(row)).value == row["published_active"]


def test_the_table_has_exact_totals():
    assert sum(row["precision"] == "exact" for row in OPEN) == 9


@pytest.mark.parametrize("row", OPEN, ids=lambda row: row["model"])
def test_a_preset_is_the_published_shape(row):
    assert count_parameters(preset(preset_name(row["model"]))) == count_parameters(shape(row))


@pytest.mark.parametrize("row", A9, ids=lambda row: f"{row['params_M']}M")
def test_the_models_of_chinchilla(row):
    sizes = row["n_layers"], row["d_model"], row["n_heads"], 32000, row["kv_size"], 0
    given = {"bias": "none", "norm": "rms", "relative_positions": True}
    model = Transformer(*sizes, row["ffw_size"], **given)
    assert count_parameters(model).value == pytest.approx(row["params_M"] * 1e6, rel=0.008)


def test_the_models_of_chinchilla_need_their_relative_positions():
    row = A9[-1]
    sizes = row["n_layers"], row["d_model"], row["n_heads"], 32000, row["kv_size"], 0
    without = count_parameters(Transformer(*sizes, row["ffw_size"], bias="none", norm="rms")).value
    assert without < 0.95 * row["params_M"] * 1e6


@pytest.mark.parametrize("row", GPT3, ids=lambda row: row["model"])
def test_gpt3_has_the_parameters_of_table_d1(row):
    model = preset(f"gpt3-{row['params_label'].lower()}")
    assert (model.layers, model.head_dim) == (row["n_layers"], row["d_head"])
    assert count_parameters(model).value == pytest.approx(D1[row["model"]], rel=0.0045)


def test_the_two_misprinted_shapes_of_gpt3_are_corrected():
    printed = {row["model"]: row for row in GPT3}
    wrong = {
        name
        for name, row in printed.items()
        for model in [preset(f"gpt3-{row['params_label'].lower()}")]
        if (model.hidden, model.heads) != (row["d_model"], row["n_heads"])
    }
    assert wrong == {"GPT-3 XL", "GPT-3 13B"}
    # As printed they do not have the parameters of table D.1.
    xl = Transformer(24, 2048, 24, 50257, head_dim=128, positions=2048)
    assert count_parameters(xl).value > 1.1 * D1["GPT-3 XL"]
    wide = Transformer(40, 5140, 40, 50257, head_dim=128, positions=2048)
    assert count_parameters(wide).value > 1.0045 * D1["GPT-3 13B"]


@pytest.mark.parametrize("row", MEGATRON, ids=lambda row: f"{row['params_B']}B")
def test_megatron_has_the_parameters_of_its_table_1(row):
    model = Transformer(row["layers"], row["hidden"], row["heads"], 51200, positions=2048)
    assert count_parameters(model).value == pytest.approx(row["params_B"] * 1e9, rel=0.03)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        # Millions: arXiv 2405.04434 and 2412.19437, abstracts; arXiv 2204.06745; arXiv 2211.05100.
        ("deepseek-v2", 236e9, 21e9),
        ("deepseek-v3", 671e9, 37e9),
        ("gpt-neox-20b", 20.6e9, None),
        ("bloom-176b", 176.2e9, None),
        ("mixtral-8x22b", 141e9, 39e9),
        ("qwen3-235b-a22b", 235e9, 22e9),
        ("llama3.1-405b", 405.85e9, None),
        ("palm-62b", 62.5e9, None),
    ],
)
def test_other_published_totals(name, total, active):
    model = preset(name)
    assert count_parameters(model).value == pytest.approx(total, rel=0.005)
    if active:
        assert count_active_parameters(model).value == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_each_formula_gives_its_value(name):
    for count in (count_parameters, count_active_parameters):
        quantity = count(preset(name))
        for part in quantity.parts:
            assert evaluated(part.formula, part.values) == part.value, part
        assert sum(part.value for part in quantity.parts) == quantity.value


def test_a_wrong_formula_is_found():
    assert evaluated("L (2 h (q + k) + f')", {"L": 2, "h": 3, "q": 4, "k": 5, "f'": 7}) == 122
    assert evaluated("(m - 1) f", {"m": 3, "f": 5}) == 10


def test_each_preset_has_a_source():
    assert PRESET_SOURCES.keys() == PRESETS.keys()
    assert all(
        re.search(r"arXiv \d{4}\.\d{5}|et al\.|and \w+ \d{4}", s) for s in PRESET_SOURCES.values()
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [("gpt3-175", "gpt3-175b"), ("GPT3-175B", "gpt3-175b"), ("deepseekv3", "deepseek-v3")],
)
def test_an_unknown_name_suggests_near_ones(name, near):
    with pytest.raises(ConfigError, match=f"did you mean .*{near}") as caught:
        preset(name)
    assert (caught.value.field, caught.value.value) == ("preset", name)


@pytest.mark.parametrize("name", ["xyzzy", "", 3, None])
def test_a_name_that_is_near_to_none_lists_all(name):
    with pytest.raises(ConfigError, match=r"gpt2-124m, .*, gpt-oss-120b"):
        preset(name)
