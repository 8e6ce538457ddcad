"""Shapes from files: what transformers counts, the formats, and errors that name the field."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdist.errors import ConfigError
from tfdist.planner import (
    Experts,
    LatentAttention,
    Transformer,
    count_active_parameters,
    count_parameters,
    from_config,
    preset,
    read_model,
)
from tfdist.planner.families import FAMILIES

TABLE = Path(__file__).parent / "planner_tables/transformers_parameters.json"
COUNTED = json.loads(TABLE.read_text("utf-8"))["models"]
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "intermediate_size": 96,
}
OWN = {"layers": 2, "hidden": 64, "heads": 4, "vocabulary": 100}


def kind(row):
    return row["config"]["model_type"].removesuffix("_text")


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: f"{kind(row)}: {row['name']}")
def test_a_config_has_the_parameters_that_transformers_counts(row):
    read = from_config(row["config"])
    assert count_parameters(read.model).value == row["total"]
    assert count_active_parameters(read.model).value == row.get("active", row["total"])
    if row["preset"]:
        assert read.model == preset(row["preset"])


def test_the_table_has_each_family():
    assert {kind(row) for row in COUNTED} == FAMILIES.keys()


def test_every_size_of_a_config_matters():
    # A negative control: each size that transformers counted changes the count.
    row = next(row for row in COUNTED if row["name"] == "Llama-3.1-8B")
    sizes = ("num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size")
    for name in (*sizes, "num_key_value_heads"):
        other = from_config(row["config"] | {name: row["config"][name] * 2}).model
        assert count_parameters(other).value != row["total"]


def test_a_type_that_is_not_in_transformers():
    # InternLM2's own code comes with its weights. The total is that of the published weights.
    config = LLAMA | {
        **{"model_type": "internlm2", "num_hidden_layers": 32, "hidden_size": 4096, "bias": False},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336},
        **{"vocab_size": 92544, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    }
    read = from_config(config)
    assert count_parameters(read.model).value == 7_737_708_544
    assert read.name == "internlm2"
    assert "internlm2 is unknown" in read.cautions[0]


def test_a_known_type_has_no_cautions():
    assert from_config(LLAMA).cautions == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rms_norm_eps": 1e-6}, {"norm": "rms", "gated_mlp": True, "bias": "none"}),
        ({"hidden_act": "gelu"}, {"norm": "layer", "gated_mlp": False, "bias": "all"}),
        ({"hidden_act": "silu", "use_bias": False}, {"gated_mlp": True, "bias": "none"}),
        ({"max_position_embeddings": 512}, {"positions": 512}),
        ({"max_position_embeddings": 512, "rope_theta": 1e4}, {"positions": 0}),
        (
            {"n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
            {"experts": Experts(8, 2, dense_layers=1)},
        ),
        (
            {"kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4},
            {"latent": LatentAttention(8, 0, 4, 2, 4)},
        ),
    ],
)
def test_an_unknown_type_is_read_by_common_names(fields, expected):
    model = from_config(LLAMA | {"model_type": "new"} | fields).model
    assert {name: getattr(model, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "layer_types": ["sliding_attention"] * 2}, 4096),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 2}, 0),
        ({"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]}, None),
        ({"model_type": "gemma2"}, None),
        ({"model_type": "olmo3"}, None),
        ({"model_type": "qwen2"}, 0),
        ({"model_type": "qwen2", "use_sliding_window": True}, None),
        ({"model_type": "llama"}, 0),
    ],
)
def test_a_window_counts_if_all_layers_have_it(fields, window):
    given = {"sliding_window": 4096, "num_key_value_heads": 2, "head_dim": 16}
    read = from_config(LLAMA | given | fields)
    assert read.model.window == (window or 0)
    caution = ("sliding_window 4096 of some layers counts for none",)
    assert read.cautions == (caution if window is None else ())


@pytest.mark.parametrize("name", ["text_config", "language_config", "llm_config"])
def test_of_a_multimodal_model_the_language_model_is_read(name):
    read = from_config({"model_type": "new_vl", "vision_config": {}, name: LLAMA})
    assert read.model == from_config(LLAMA).model
    assert read.cautions == (f"only {name} was read: the other parts of new_vl are not counted",)
    with pytest.raises(ConfigError, match=rf"^{name}\.hidden_size: got 0; "):
        from_config({name: LLAMA | {"hidden_size": 0}})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"model_type": "jamba", "mamba_d_state": 16}, "mamba_d_state"),
        ({"model_type": "albert", "num_hidden_groups": 1}, "num_hidden_groups"),
        ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm"),
        ({"model_type": "electra", "embedding_size": 32}, "embedding_size"),
        ({"hidden_size": 64.5}, "hidden_size"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"attention_bias": "no"}, "attention_bias"),
        ({"num_attention_heads": 5}, "heads"),
        ({"text_config": [1]}, "text_config"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [7]}, "mlp_only_layers"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": 7}, "mlp_only_layers"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "decoder_sparse_step"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 1}, "n_routed_experts"),
        ({"model_type": "dbrx", "ffn_config": 3}, "ffn_config"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_field(fields, field):
    with pytest.raises(ConfigError) as caught:
        from_config(LLAMA | fields)
    assert caught.value.field == field


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just([1]))
NAMES = sorted({name for row in COUNTED for name in row["config"]} - {"model_type"})


@settings(max_examples=50)
@given(st.sampled_from(COUNTED), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_any_values_give_a_shape_or_a_config_error(row, fields):
    with suppress(ConfigError):  # every other error fails the test
        assert count_parameters(from_config(row["config"] | fields).model).value > 0


@pytest.fixture
def write(tmp_path):
    """Writes a file, and returns its path."""

    def write_file(name, text):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else json.dumps(text), "utf-8")
        return path

    return write_file


def test_the_own_format_in_yaml_and_in_json(write):
    text = yaml.safe_dump(OWN) + "bias: none\nexperts: {count: 8, active: 2}\n"
    expected = Transformer(2, 64, 4, 100, bias="none", experts=Experts(8, 2))
    assert read_model(write("m.yaml", text)).model == expected
    assert read_model(write("m.yml", text)).name == "m.yml"
    fields = OWN | {"bias": "none", "experts": {"count": 8, "active": 2}}
    assert read_model(write("m.json", fields)).model == expected
    latent = dict.fromkeys(("kv_rank", "query_rank", "content_dim", "position_dim", "value_dim"), 8)
    model = read_model(write("m.json", OWN | {"latent": latent})).model
    assert model.latent == LatentAttention(8, 8, 8, 8, 8)


def test_a_config_json_and_its_folder(write):
    path = write("config.json", LLAMA)
    assert read_model(path) == read_model(path.parent) == from_config(LLAMA)
    assert read_model(write("m.yaml", yaml.safe_dump(LLAMA))) == from_config(LLAMA)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (OWN | {"hiden": 3}, "hiden: got 3; must be a field of Transformer; did you mean hidden?"),
        (OWN | {"layers": 0}, "layers: got 0; must be a whole number from 1 to"),
        (OWN | {"heads": -1}, "heads: got -1; must be a whole number from 1 to"),
        (OWN | {"vocabulary": 10**12}, "vocabulary: got 1000000000000; must be a whole number"),
        (OWN | {"layers": float("nan")}, "layers: got nan; must be a whole number"),
        (OWN | {"gated_mlp": 1}, "gated_mlp: got 1; must be True or False"),
        (OWN | {"norm": "batch"}, "norm: got 'batch'; must be one of layer, "),
        (OWN | {"experts": 8}, "experts: got 8; must have fields"),
        (OWN | {"experts": {"count": 8}}, "experts.active: missing; must be given"),
        (OWN | {"experts": {"count": 8, "active": 9}}, "experts.active: got 9; must be a whole"),
        (OWN | {"experts": {"count": 8, "active": 2, "k": 1}}, "experts.k: got 1; must be a field"),
        (OWN | {"latent": {"kv_rank": 8}}, "latent.query_rank: missing; must be given"),
        ({"layers": 2, "hidden": 64, "heads": 4}, "vocabulary: missing; must be given"),
        (LLAMA | {"hidden_size": "64"}, "hidden_size: got '64'; must be a whole number"),
    ],
)
def test_an_error_names_the_file_and_the_field(write, fields, error):
    path = write("m.json", fields)
    with pytest.raises(ConfigError) as caught:
        read_model(path)
    assert str(caught.value).startswith(f"{path}: {error}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.json", "{"),
        ("m.json", "[" * 100_000),
        ("m.yaml", "layers: ["),
        ("m.yaml", "? [a, b]\n: 3"),
        ("m.yaml", "layers: 2024-99-99"),
        ("m.yaml", "!!python/object:os.system 3"),
        ("m.yaml", "\0"),
        ("m.yaml", "3"),
        ("m.json", "[3]"),
        ("m.json", "1" * 5000),
    ],
)
def test_a_file_that_is_no_model_is_an_error(write, name, text):
    path = write(name, text)
    with pytest.raises(ConfigError, match=str(path)):
        read_model(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.json", json.dumps(OWN)[:-1] + ', "layers": 3}'),
        ("m.yaml", yaml.safe_dump(OWN) + "layers: 3"),
    ],
)
def test_a_field_that_is_there_twice_is_an_error(write, name, text):
    with pytest.raises(ConfigError, match="layers is there twice"):
        read_model(write(name, text))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_model(path)
    with pytest.raises(ConfigError, match="must be the path of a file"):
        read_model(3)
    (tmp_path / "m.json").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_model(tmp_path / "m.json")


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_and_a_decoder_are_refused_by_their_type(kind):
    config = {"model_type": kind, "d_model": 512, "num_layers": 6, "num_heads": 8}
    with pytest.raises(ConfigError, match=r"model_type: got '.*'; must be a model without"):
        from_config(config)
