"""The shape of a Transformer: what its parameters, its memory and its arithmetic depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tfdist.errors import ConfigError, checked_choice, checked_flag, checked_integer

# Vectors of `hidden` parameters that one norm has.
NORMS = {"layer": 2, "layer without bias": 1, "rms": 1, "layer without parameters": 0}
BIASES = ("all", "qkv", "output", "none")
QK_NORMS = ("none", "head", "all")
LARGEST = 10**9  # of every field; more is a mistake of units


@dataclass(frozen=True)
class Experts:
    """The experts of a mixture-of-experts model (MoE).

    Attributes:
        count: experts of a layer.
        active: how many of them a token uses.
        mlp: width of an expert's MLP; 0 for that of the model.
        shared: experts that every token uses, in addition to `active`.
        shared_mlp: width of all shared experts together; 0 for `shared` times `mlp`.
        dense_layers: layers that have one MLP instead of experts: the first ones of DeepSeek.
        bias: whether the experts have biases (gpt-oss).
        router_bias: whether the router has a bias for each expert.
        shared_gate: whether a gate of its own scales the shared experts.
    """

    count: int
    active: int
    mlp: int = 0
    shared: int = 0
    shared_mlp: int = 0
    dense_layers: int = 0
    bias: bool = False
    router_bias: bool = False
    shared_gate: bool = False

    def __post_init__(self) -> None:
        checked_integer("experts.count", self.count, 1, LARGEST)
        checked_integer("experts.active", self.active, 1, self.count)
        for name in ("mlp", "shared", "shared_mlp", "dense_layers"):
            checked_integer(f"experts.{name}", getattr(self, name), 0, LARGEST)
        for name in ("bias", "router_bias", "shared_gate"):
            checked_flag(f"experts.{name}", getattr(self, name))


@dataclass(frozen=True)
class LatentAttention:
    """DeepSeek's attention, which caches one compressed vector for all heads (arXiv 2405.04434).

    Attributes:
        kv_rank: length of the compressed keys and values.
        query_rank: length of the compressed queries; 0 if they are not compressed.
        content_dim: part of a head's keys and queries without positions.
        position_dim: part of them with rotary positions; its key is shared by all heads.
        value_dim: of a head's values.
    """

    kv_rank: int
    query_rank: int
    content_dim: int
    position_dim: int
    value_dim: int

    def __post_init__(self) -> None:
        for each in fields(self):
            least = 0 if each.name in ("query_rank", "position_dim") else 1
            checked_integer(f"latent.{each.name}", getattr(self, each.name), least, LARGEST)


@dataclass(frozen=True)
class Transformer:
    """A decoder, or an encoder, of equal layers.

    Attributes:
        layers: number of layers.
        hidden: width of the residual stream.
        heads: attention heads.
        vocabulary: rows of the embedding, with padding if there is any.
        head_dim: of one head; 0 for `hidden / heads`.
        kv_heads: heads of keys and values: `heads` for multi-head attention, 1 for multi-query
            attention, a number between for grouped-query attention; 0 for `heads`.
        mlp: width of the MLP; 0 for `4 hidden`.
        gated_mlp: whether the MLP has a gate, so three matrices: SwiGLU, GeGLU.
        bias: which projections of attention have biases: "all", "qkv", "output" or "none".
        mlp_bias: whether the MLP has biases; None for whether `bias` is "all".
        norm: one of NORMS; "layer" has a scale and a bias, "rms" a scale.
        norms_per_layer: 1 for a parallel block of PaLM, 4 for a norm before and after each block.
        qk_norm: "none"; "head" for a norm of queries and keys over a head, "all" over all heads.
        final_norm: whether there is a norm after the last layer.
        embedding_norm: whether there is one after the embedding (BLOOM).
        embedding_width: width of the embedding of the tokens; 0 for `hidden`. If it is another, two
            matrices project it to `hidden` and back (OPT-350M).
        positions: rows of a table of learned positions; 0 for rotary, ALiBi or computed ones.
        token_types: rows of a table of token types (BERT).
        relative_positions: whether each layer projects relative positions (Gopher, Chinchilla).
        tied: whether the output head shares the weights of the embedding.
        head_bias: whether the output head has a bias.
        head_layer: whether a linear layer and a norm precede the output head (BERT).
        pooler: whether a linear layer reads the first token (BERT's classifier).
        sinks: whether each head has a logit that no token belongs to (gpt-oss).
        parallel_block: whether attention and MLP read the same input (PaLM, GPT-J).
        window: tokens that one token attends to; 0 for all.
        experts: None for a dense model.
        latent: None for ordinary attention.
    """

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    head_dim: int = 0
    kv_heads: int = 0
    mlp: int = 0
    gated_mlp: bool = False
    bias: str = "all"
    mlp_bias: bool | None = None
    norm: str = "layer"
    norms_per_layer: int = 2
    qk_norm: str = "none"
    final_norm: bool = True
    embedding_norm: bool = False
    embedding_width: int = 0
    positions: int = 0
    token_types: int = 0
    relative_positions: bool = False
    tied: bool = True
    head_bias: bool = False
    head_layer: bool = False
    pooler: bool = False
    sinks: bool = False
    parallel_block: bool = False
    window: int = 0
    experts: Experts | None = None
    latent: LatentAttention | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "vocabulary"):
            checked_integer(name, getattr(self, name), 1, LARGEST)
        optional = ("head_dim", "kv_heads", "mlp", "embedding_width")
        for name in (*optional, "positions", "token_types", "window"):
            checked_integer(name, getattr(self, name), 0, LARGEST)
        checked_integer("norms_per_layer", self.norms_per_layer, 0, 8)
        for each in fields(self):
            if each.type == "bool":
                checked_flag(each.name, getattr(self, each.name))
        checked_choice("bias", self.bias, BIASES)
        checked_choice("norm", self.norm, tuple(NORMS))
        checked_choice("qk_norm", self.qk_norm, QK_NORMS)
        if not self.head_dim and self.hidden % self.heads:
            rule = f"must divide hidden ({self.hidden}), or head_dim must be given"
            raise ConfigError("heads", self.heads, rule)
        if self.heads % (self.kv_heads or self.heads):
            raise ConfigError("kv_heads", self.kv_heads, f"must divide heads ({self.heads})")
        _checked_part("experts", self.experts, Experts)
        _checked_part("latent", self.latent, LatentAttention)
        if self.experts is not None and self.experts.dense_layers > self.layers:
            rule = f"must be at most layers ({self.layers})"
            raise ConfigError("experts.dense_layers", self.experts.dense_layers, rule)
        # What was left out follows from the rest. A frozen dataclass is set like this.
        if self.mlp_bias is None:
            object.__setattr__(self, "mlp_bias", self.bias == "all")
        checked_flag("mlp_bias", self.mlp_bias)
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden // self.heads)
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "mlp", self.mlp or 4 * self.hidden)
        object.__setattr__(self, "embedding_width", self.embedding_width or self.hidden)

    @property
    def query_width(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of the keys of all heads; the values have the same."""
        return self.kv_heads * self.head_dim

    @property
    def expert_layers(self) -> int:
        """Number of layers with experts."""
        return 0 if self.experts is None else self.layers - self.experts.dense_layers

    @property
    def mlp_matrices(self) -> int:
        """Matrices of an MLP."""
        return 3 if self.gated_mlp else 2


def _checked_part(field: str, value: Any, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise ConfigError(field, value, f"must be {kind.__name__}, or None")
