"""Reads the shape of a model from the `config.json` that Hugging Face stores with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfdist.errors import ConfigError, checked_names
from tfdist.planner.families import DEFAULTS, FAMILIES, Config, unknown_family
from tfdist.planner.transformer import Transformer

_NESTED = ("text_config", "language_config", "llm_config")
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


# Their `config.json` may leave `is_encoder_decoder` out, since their class sets it.
ENCODER_DECODERS = {
    *("t5", "mt5", "umt5", "longt5", "switch_transformers", "bart", "mbart", "pegasus", "marian"),
    *("m2m_100", "blenderbot", "led", "prophetnet", "whisper", "fsmt", "nllb-moe"),
}


@dataclass(frozen=True)
class ModelFile:
    """A model as a file describes it.

    Attributes:
        model: its shape.
        name: its type, or the name of the file.
        cautions: what the file says and the shape does not.
    """

    model: Transformer
    name: str
    cautions: tuple[str, ...] = ()


def from_config(config: Mapping[str, Any]) -> ModelFile:
    """The shape of the model of a Hugging Face `config.json`.

    Of a multimodal model it is the language model alone. A model type that is not known here is
    read by the names that most types use. `cautions` says so in both cases.

    Args:
        config: the parsed file.

    Raises:
        ConfigError: a field is missing or wrong, or the model is no Transformer of equal layers.
    """
    if not isinstance(config, Mapping):
        raise ConfigError("config", config, "must be a mapping of fields")
    c = _language_model(Config(config))
    kind = c.text("model_type").removesuffix("_text")
    c = Config(DEFAULTS.get(kind, {}) | dict(c.fields), c.path, c.cautions)
    rule = "must be a model without both an encoder and a decoder"
    if kind in ENCODER_DECODERS:
        raise ConfigError(f"{c.path}model_type", kind, rule)
    if c.flag("is_encoder_decoder"):
        raise ConfigError(f"{c.path}is_encoder_decoder", True, rule)
    if c.fields.get("layer_types") is not None:
        where = f"{c.path}layer_types"
        others = set(checked_names(where, c.fields["layer_types"])) - _ATTENTION_LAYERS
        if others:
            raise ConfigError(where, sorted(others), "must be layers of attention")
    family = FAMILIES.get(kind, unknown_family)
    sizes = {
        "layers": c.size("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        "hidden": c.size("hidden_size", "n_embd", "n_embed", "d_model", "dim"),
        "heads": c.size(
            *("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
        ),
        "vocabulary": c.size("vocab_size"),
        "kv_heads": c.size("num_key_value_heads", default=0),
        "head_dim": c.size("head_dim", default=0),
        "mlp": c.size("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", default=0),
    }
    model = Transformer(**(sizes | family(c)))
    return ModelFile(model, kind or "model without model_type", tuple(c.cautions))


def _language_model(c: Config) -> Config:
    """The fields of the language model alone."""
    kind = c.text("model_type")
    for name in _NESTED:
        if c.fields.get(name) is not None:
            inner = c.part(name)
            c.cautions.append(f"only {name} was read: the other parts of {kind} are not counted")
            fields = {"model_type": kind} | dict(inner.fields)
            if c.fields.get("tie_word_embeddings") is not None:  # the head is part of the whole
                fields["tie_word_embeddings"] = c.fields["tie_word_embeddings"]
            return Config(fields, inner.path, c.cautions)
    if c.fields.get("vision_config") is not None:
        c.cautions.append(f"the parts of {kind} for images are not counted")
    return c
