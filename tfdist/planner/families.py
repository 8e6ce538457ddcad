"""The families of models that Hugging Face's `config.json` describes.

Each family has its own names of fields, defaults of fields that are left out, and biases and norms
that no field mentions. A test compares the counts with those of the library transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfdist.errors import ConfigError, checked_flag, checked_integer
from tfdist.planner.transformer import LARGEST, Experts, LatentAttention

# Fields of unknown types whose layers are no attention with an MLP, or not all equal.
_OTHER_LAYERS = (
    *("mamba", "ssm", "rwkv", "linear_", "lru_", "conv_", "block_configs", "num_hidden_groups"),
    *("cross_attention_layers", "hidden_size_per_layer_input"),
)
# Values of fields that published files leave out.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ernie4_5": {"head_dim": 128},
    "gemma": {"head_dim": 256},
    "gemma2": {"head_dim": 256},
    "gemma3": {
        **{"vocab_size": 262208, "num_attention_heads": 8},
        **{"num_key_value_heads": 4, "head_dim": 256},
    },
    "gpt_oss": {"head_dim": 64},
    "llama4": {"head_dim": 128, "intermediate_size_mlp": 16384},
    "mistral": {"num_key_value_heads": 8},
    "mixtral": {"num_key_value_heads": 8},
    "qwen3": {"head_dim": 128},
    "seed_oss": {"head_dim": 128},
    "starcoder2": {"num_key_value_heads": 2},
}
_NUM_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")


@dataclass(frozen=True)
class Config:
    """The fields of a `config.json`. Null counts as left out.

    Attributes:
        fields: the parsed file, or a mapping in it.
        path: of this mapping in the file, such as "text_config.".
        cautions: what the file says and the shape does not; the families add to it.
    """

    fields: Mapping[str, Any]
    path: str = ""
    cautions: list[str] = field(default_factory=list)

    def size(self, *names: str, default: int | None = None, least: int | None = None) -> int:
        """The first of these fields that is there: at least 1 if it has no default."""
        least = least if least is not None else int(default is None)
        for name in names:
            if self.fields.get(name) is not None:
                return checked_integer(self.path + name, self.fields[name], least, LARGEST)
        if default is None:
            raise ConfigError(self.path + names[0], None, "must be given", missing=True)
        return default

    def flag(self, name: str, default: bool = False) -> bool:
        """A field that is true or false."""
        value = self.fields.get(name)
        return default if value is None else checked_flag(self.path + name, value)

    def text(self, *names: str) -> str:
        """The first of these fields that is a text; "" if none is."""
        values = (self.fields.get(name) for name in names)
        return next((value for value in values if isinstance(value, str)), "")

    def part(self, name: str) -> Config:
        """A mapping inside of this one; empty if it is left out."""
        inner = self.fields.get(name)
        if inner is not None and not isinstance(inner, Mapping):
            raise ConfigError(self.path + name, inner, "must be a mapping")
        return Config(inner or {}, f"{self.path}{name}.", self.cautions)


def _all_if(condition: bool) -> str:
    return "all" if condition else "none"


def _qkv_if(condition: bool) -> str:
    return "qkv" if condition else "none"


def _head_if(condition: bool) -> str:
    return "head" if condition else "none"


def _window(c: Config, *, all_layers: bool = True) -> int:
    """The window of all layers; 0 if some layers attend to all tokens.

    Args:
        c: the fields.
        all_layers: whether all layers have the window if the file does not list the layers.
    """
    window, kinds = c.size("sliding_window", default=0), set(c.fields.get("layer_types") or ())
    if not window or kinds == {"full_attention"}:
        return 0
    if len(kinds) > 1 or not (kinds or all_layers):
        c.cautions.append(f"{c.path}sliding_window {window} of some layers counts for none")
        return 0
    return window


def _gpt2(c: Config) -> dict[str, Any]:
    positions = c.size("n_positions", "max_position_embeddings", default=1024)
    return {"positions": positions, "tied": c.flag("tie_word_embeddings", True)}


def _gpt_bigcode(c: Config) -> dict[str, Any]:
    return {**_gpt2(c), "kv_heads": int(c.flag("multi_query", True))}


def _gpt_neo(c: Config) -> dict[str, Any]:
    positions = c.size("max_position_embeddings", default=2048)
    c.cautions.append("the window of every second layer counts for none")
    biases = {"bias": "output", "mlp_bias": True}
    return {**biases, "positions": positions, "tied": c.flag("tie_word_embeddings", True)}


def _gpt_neox(c: Config) -> dict[str, Any]:
    return {
        "bias": _all_if(c.flag("attention_bias", True)),
        "mlp_bias": True,
        "tied": c.flag("tie_word_embeddings"),
        "parallel_block": c.flag("use_parallel_residual", True),
    }


def _gptj(c: Config) -> dict[str, Any]:
    biases = {"bias": "none", "mlp_bias": True, "head_bias": True}
    block = {"norms_per_layer": 1, "parallel_block": True}
    return {**biases, **block, "tied": c.flag("tie_word_embeddings")}


def _opt(c: Config) -> dict[str, Any]:
    before = c.flag("do_layer_norm_before", True)
    affine = c.flag("layer_norm_elementwise_affine", True)
    return {
        "bias": _all_if(c.flag("enable_bias", True)),
        "norm": "layer" if affine else "layer without parameters",
        "final_norm": before and not c.flag("_remove_final_layer_norm"),
        "embedding_width": c.size("word_embed_proj_dim", default=0),
        "positions": c.size("max_position_embeddings", default=2048) + 2,
        "tied": c.flag("tie_word_embeddings", True),
    }


def _bloom(c: Config) -> dict[str, Any]:
    return {"mlp": 0, "embedding_norm": True, "tied": c.flag("tie_word_embeddings", True)}


def _falcon(c: Config) -> dict[str, Any]:
    is_new, parallel = c.flag("new_decoder_architecture"), c.flag("parallel_attn", True)
    if is_new:
        kv_heads = c.size("num_kv_heads", "n_head_kv", default=0)
    else:
        kv_heads = int(c.flag("multi_query", True))
    return {
        "kv_heads": kv_heads,
        "mlp": c.size("ffn_hidden_size", default=0),
        "bias": _all_if(c.flag("bias")),
        "norms_per_layer": c.size("num_ln_in_parallel_attn", default=1 + is_new) if parallel else 2,
        "tied": c.flag("tie_word_embeddings", True),
        "parallel_block": parallel,
    }


def _mpt(c: Config) -> dict[str, Any]:
    tied = c.flag("tie_word_embeddings", True)
    return {"mlp": 0, "bias": "none", "norm": "layer without bias", "tied": tied}


def _phi(c: Config) -> dict[str, Any]:
    if c.flag("qk_layernorm"):
        raise ConfigError(f"{c.path}qk_layernorm", True, "must be false: it cannot be read")
    block = {"norms_per_layer": 1, "parallel_block": True}
    return {**block, "head_bias": True, "tied": c.flag("tie_word_embeddings")}


def _starcoder2(c: Config) -> dict[str, Any]:
    return {
        "kv_heads": c.size("num_key_value_heads", default=2),
        "bias": _all_if(c.flag("use_bias", True)),
        "tied": c.flag("tie_word_embeddings", True),
        "window": _window(c),
    }


def _nemotron(c: Config) -> dict[str, Any]:
    return _llama(c) | {"gated_mlp": False, "norm": "layer"}


def _llama(c: Config, *, tied: bool = False, **more: Any) -> dict[str, Any]:
    """RMSNorm, a gated MLP, and biases only if the fields want them."""
    return {
        "gated_mlp": True,
        "bias": _all_if(c.flag("attention_bias")),
        "mlp_bias": c.flag("mlp_bias"),
        "norm": "rms",
        "tied": c.flag("tie_word_embeddings", tied),
        **more,
    }


def _mistral(c: Config) -> dict[str, Any]:
    return _llama(c, window=_window(c))


def _qwen(c: Config, **more: Any) -> dict[str, Any]:
    window = _window(c, all_layers=False) if c.flag("use_sliding_window") else 0
    return _llama(c, window=window) | more


def _qwen3(c: Config) -> dict[str, Any]:
    return _qwen(c, qk_norm="head")


def _gemma(c: Config, **more: Any) -> dict[str, Any]:
    return _llama(c, tied=True, **more)


def _gemma2(c: Config, **more: Any) -> dict[str, Any]:
    return _gemma(c, norms_per_layer=4, window=_window(c, all_layers=False), **more)


def _stablelm(c: Config) -> dict[str, Any]:
    parallel = c.flag("use_parallel_residual")
    return _llama(c) | {
        "bias": _qkv_if(c.flag("use_qkv_bias")),
        "norm": "layer",
        "norms_per_layer": 1 if parallel else 2,
        "parallel_block": parallel,
        "qk_norm": "all" if c.flag("qk_layernorm") else "none",
    }


def _seed_oss(c: Config) -> dict[str, Any]:
    qkv, output = c.flag("attention_bias", True), c.flag("attention_out_bias")
    biases = {(True, True): "all", (True, False): "qkv", (False, True): "output"}
    return _llama(c) | {"bias": biases.get((qkv, output), "none")}


def _cohere(c: Config) -> dict[str, Any]:
    block = {"norm": "layer without bias", "norms_per_layer": 1, "parallel_block": True}
    return _llama(c, tied=True) | block | {"qk_norm": "all" if c.flag("use_qk_norm") else "none"}


def _olmo2(c: Config) -> dict[str, Any]:
    return _llama(c, qk_norm="all", window=_window(c, all_layers=False))


def _deepseek(c: Config) -> dict[str, Any]:
    return _llama(c, experts=_experts(c), **_latent(c))


def _latent(c: Config) -> dict[str, Any]:
    latent = LatentAttention(
        kv_rank=c.size("kv_lora_rank"),
        query_rank=c.size("q_lora_rank", default=0),
        content_dim=c.size("qk_nope_head_dim"),
        position_dim=c.size("qk_rope_head_dim", default=0),
        value_dim=c.size("v_head_dim"),
    )
    return {"latent": latent, "head_dim": latent.content_dim + latent.position_dim, "kv_heads": 0}


def _experts(c: Config, **more: Any) -> Experts:
    """The experts. DeepSeek's bias of the router counts as a buffer: no gradient trains it."""
    given = {
        "count": c.size(*_NUM_EXPERTS),
        "active": c.size("num_experts_per_tok", "moe_k", "moe_top_k"),
        "mlp": c.size("moe_intermediate_size", default=0),
        "shared": c.size("n_shared_experts", "num_shared_experts", default=0),
        "dense_layers": c.size("first_k_dense_replace", default=0),
    }
    return Experts(**(given | more))


def _dense_layers(c: Config, step: str) -> int:
    """The layers without experts, if every step-th has some and `mlp_only_layers` has none."""
    layers, every = c.size("num_hidden_layers"), c.size(step, default=1, least=1)
    only = c.fields.get("mlp_only_layers") or ()
    if not isinstance(only, (list, tuple)):
        raise ConfigError(f"{c.path}mlp_only_layers", only, "must be a list of layers")
    numbers = {checked_integer(f"{c.path}mlp_only_layers", n, 0, layers - 1) for n in only}
    return layers - layers // every + sum((n + 1) % every == 0 for n in numbers)


def _qwen_moe(c: Config) -> dict[str, Any]:
    dense = _dense_layers(c, "decoder_sparse_step")
    shared = c.size("shared_expert_intermediate_size", default=0)
    moe = _experts(c, dense_layers=dense, shared_mlp=shared, shared_gate=shared > 0)
    return {"experts": moe}


def _llama4(c: Config) -> dict[str, Any]:
    sparse = c.fields.get("moe_layers")
    dense = _dense_layers(c, "interleave_moe_layer_step")
    if isinstance(sparse, (list, tuple)):
        dense = c.size("num_hidden_layers") - len(sparse)
    moe = _experts(c, mlp=c.size("intermediate_size"), shared=1, dense_layers=dense)
    return _llama(c, mlp=c.size("intermediate_size_mlp"), experts=moe)


def _gpt_oss(c: Config) -> dict[str, Any]:
    moe = _experts(c, bias=True, router_bias=True)
    given = {"bias": _all_if(c.flag("attention_bias", True)), "sinks": True, "experts": moe}
    return _llama(c, window=_window(c, all_layers=False)) | given


def _dbrx(c: Config) -> dict[str, Any]:
    attention, mlp = c.part("attn_config"), c.part("ffn_config")
    return _llama(c) | {
        "kv_heads": attention.size("kv_n_heads", default=1),
        "mlp": mlp.size("ffn_hidden_size"),
        "norm": "layer without bias",
        "experts": _experts(mlp),
    }


def _bert(c: Config, *, pooler: bool = True, **more: Any) -> dict[str, Any]:
    """The masked language model, or without its head if the architecture is the bare model."""
    names = c.fields.get("architectures") or ["ForMaskedLM"]
    architecture = str(names[0] if isinstance(names, (list, tuple)) else names)
    bare = architecture.endswith("Model")
    if not bare and not architecture.endswith("ForMaskedLM"):
        c.cautions.append(f"{architecture} counts with the head of a masked language model")
    if c.size("embedding_size", default=0) not in (0, c.size("hidden_size", "dim")):
        rule = "must be hidden_size: an embedding of another width cannot be read"
        raise ConfigError(f"{c.path}embedding_size", c.fields["embedding_size"], rule)
    return {
        "final_norm": False,
        "embedding_norm": True,
        "positions": c.size("max_position_embeddings", default=512),
        "token_types": c.size("type_vocab_size", default=2),
        "pooler": pooler and bare,
        "head_layer": not bare,
        "head_bias": not bare,
        **more,
    }


def unknown_family(c: Config) -> dict[str, Any]:
    """What the names of the fields suggest."""
    kind = c.text("model_type") or "without model_type"
    for name, value in c.fields.items():
        if value and str(name).startswith(_OTHER_LAYERS):
            rule = f"cannot be read: the layers of a model of type {kind} have parts of their own"
            raise ConfigError(f"{c.path}{name}", value, rule)
    c.cautions.append(
        f"the model type {kind} is unknown: read by common names of fields, so compare the "
        "parameters with the published number"
    )
    rms = any(name in c.fields for name in ("rms_norm_eps", "rms_norm_epsilon"))
    computed = rms or any(str(name).startswith(("rope", "rotary", "alibi")) for name in c.fields)
    names = ("max_position_embeddings", "n_positions")
    activation = c.text("hidden_act", "hidden_activation", "activation_function")
    found = _llama(c, tied=not rms) | {
        "gated_mlp": rms or activation in ("silu", "swish", "swiglu", "geglu"),
        "norm": "rms" if rms else "layer",
        "positions": 0 if computed else c.size(*names, default=0),
    }
    if "attention_bias" not in c.fields:
        found["bias"] = _all_if(c.flag("bias", c.flag("use_bias", not rms)))
        found["mlp_bias"] = c.flag("mlp_bias", found["bias"] == "all")
    if c.size(*_NUM_EXPERTS, default=0):
        found["experts"] = _experts(c)
    return found | _latent(c) if c.size("kv_lora_rank", default=0) else found


FAMILIES: dict[str, Callable[[Config], dict[str, Any]]] = {
    "arcee": lambda c: _llama(c, gated_mlp=False),
    "bert": _bert,
    "bloom": _bloom,
    "camembert": _bert,
    "codegen": _gptj,
    "cohere": _cohere,
    "cohere2": lambda c: _cohere(c) | {"qk_norm": "none", "window": _window(c, all_layers=False)},
    "dbrx": _dbrx,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "distilbert": lambda c: _bert(c, pooler=False, token_types=0),
    "electra": lambda c: _bert(c, pooler=False),
    "ernie4_5": lambda c: (
        _llama(c, tied=True) | {"bias": _all_if(c.flag("use_bias")), "mlp_bias": c.flag("use_bias")}
    ),
    "exaone4": lambda c: _llama(c, qk_norm="head", window=_window(c, all_layers=False)),
    "falcon": _falcon,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": lambda c: _gemma2(c, qk_norm="head"),
    "glm": lambda c: _llama(c) | {"bias": _qkv_if(c.flag("attention_bias", True))},
    "glm4": lambda c: (
        _llama(c, norms_per_layer=4) | {"bias": _qkv_if(c.flag("attention_bias", True))}
    ),
    "glm4_moe": lambda c: (
        _llama(c, experts=_experts(c), qk_norm=_head_if(c.flag("use_qk_norm")))
        | {"bias": _qkv_if(c.flag("attention_bias"))}
    ),
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt_bigcode,
    "gpt_neo": _gpt_neo,
    "gpt_neox": _gpt_neox,
    "gpt_oss": _gpt_oss,
    "gptj": _gptj,
    "granite": _llama,
    "granitemoe": lambda c: _llama(c, experts=_experts(c)),
    "llama": _llama,
    "llama4": _llama4,
    "mistral": _mistral,
    "mixtral": lambda c: _mistral(c) | {"experts": _experts(c)},
    "mpt": _mpt,
    "nemotron": _nemotron,
    "olmo": lambda c: _llama(c, norm="layer without parameters"),
    "olmo2": _olmo2,
    "olmo3": _olmo2,
    "olmoe": lambda c: _llama(c, qk_norm="all", experts=_experts(c)),
    "opt": _opt,
    "phi": _phi,
    "phi3": lambda c: _llama(c, window=_window(c)),
    "phimoe": lambda c: _llama(
        c, norm="layer", head_bias=c.flag("lm_head_bias"), experts=_experts(c)
    ),
    "qwen2": lambda c: _qwen(c, bias="qkv"),
    "qwen2_5_vl": lambda c: _qwen(c, bias="qkv"),
    "qwen2_moe": lambda c: _qwen(c, bias=_qkv_if(c.flag("qkv_bias", True))) | _qwen_moe(c),
    "qwen2_vl": lambda c: _qwen(c, bias="qkv"),
    "qwen3": _qwen3,
    "qwen3_moe": lambda c: _qwen3(c) | _qwen_moe(c),
    "qwen3_vl": _qwen3,
    "qwen3_vl_moe": lambda c: _qwen3(c) | _qwen_moe(c),
    "roberta": _bert,
    "seed_oss": _seed_oss,
    "smollm3": lambda c: _llama(c, tied=True),
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
    "xglm": lambda c: {"tied": c.flag("tie_word_embeddings", True)},
    "xlm-roberta": _bert,
}
