"""The number of parameters of a Transformer, exactly, by part.

Letters in the formulas: L layers, h hidden, V vocabulary, q width of all queries, k width of all
keys, d width of a head, f width of the MLP, m its matrices, E experts.
"""

from __future__ import annotations

from tfdist.planner.quantity import Quantity
from tfdist.planner.transformer import LatentAttention, Transformer

UNIT = "parameters"


def count_parameters(model: Transformer) -> Quantity:
    """All parameters; the parts are embedding, attention, mlp, experts, router, norms and head."""
    return _sum(model, used_experts=None)


def count_active_parameters(model: Transformer) -> Quantity:
    """The parameters that one token uses: of the experts only those it is sent to.

    The embedding counts as a whole, as in the published figures of MoE models.
    """
    experts = model.experts
    return _sum(model, used_experts=None if experts is None else experts.active)


def _sum(model: Transformer, used_experts: int | None) -> Quantity:
    name = "parameters" if used_experts is None else "active parameters"
    parts = [embedding(model), attention(model), mlp(model)]
    parts += [*experts(model, used_experts), norms(model), head(model)]
    return Quantity.sum_of(name, UNIT, parts)


def embedding(model: Transformer) -> Quantity:
    """The tables of tokens, of learned positions and of token types."""
    formula, values = "V h", {"V": model.vocabulary, "h": model.hidden}
    rows = model.vocabulary + model.positions + model.token_types
    if model.positions:
        formula, values = "(V + P) h", values | {"P": model.positions}
    if model.token_types:
        formula, values = formula.replace(")", " + T)"), values | {"T": model.token_types}
    return Quantity("embedding", rows * model.hidden, UNIT, formula, values)


def attention(model: Transformer) -> Quantity:
    """The projections of all layers, with their biases."""
    if model.latent is not None:
        return _latent_attention(model, model.latent)
    h, q, k = model.hidden, model.query_width, model.kv_width
    count, formula = 2 * h * (q + k), "2 h (q + k)"
    if model.bias != "none":
        count, formula = count + q + 2 * k, formula + " + q + 2 k"
    if model.bias == "all":
        count, formula = count + h, formula + " + h"
    if model.relative_positions:
        count, formula = count + h * q, formula + " + h q"
    values = {"L": model.layers, "h": h, "q": q, "k": k}
    if model.qk_norm == "head":
        count, formula = count + 2 * model.head_dim, formula + " + 2 d"
        values["d"] = model.head_dim
    elif model.qk_norm == "all":
        count, formula = count + q + k, formula + " + q + k"
    return Quantity("attention", model.layers * count, UNIT, f"L ({formula})", values)


def _latent_attention(model: Transformer, latent: LatentAttention) -> Quantity:
    h, a = model.hidden, model.heads
    key_dim = latent.content_dim + latent.position_dim
    if latent.query_rank:
        queries = latent.query_rank * (h + 1 + a * key_dim)  # 1 is the norm
        formula = "r (h + 1 + a (c + p))"
    else:
        queries, formula = h * a * key_dim, "h a (c + p)"
    both = latent.content_dim + latent.value_dim
    cached = latent.kv_rank * (h + 1 + a * both) + h * latent.position_dim
    count = queries + cached + a * latent.value_dim * h
    values = {
        **{"L": model.layers, "h": h, "a": a, "r": latent.query_rank, "s": latent.kv_rank},
        **{"c": latent.content_dim, "p": latent.position_dim, "v": latent.value_dim},
    }
    formula = f"L ({formula} + s (h + 1 + a (c + v)) + h p + a v h)"
    source = "arXiv 2405.04434, section 2.1 and appendix B"
    return Quantity("attention", model.layers * count, UNIT, formula, values, source)


def mlp(model: Transformer) -> Quantity:
    """The MLPs of all layers that have no experts, with their biases."""
    h, f, m = model.hidden, model.mlp, model.mlp_matrices
    layers = model.layers - model.expert_layers
    count, formula = m * h * f, "m h f"
    if model.mlp_bias:
        count, formula = count + (m - 1) * f + h, formula + " + (m - 1) f + h"
    values = {"L": layers, "h": h, "f": f, "m": m}
    return Quantity("mlp", layers * count, UNIT, f"L ({formula})", values)


def experts(model: Transformer, used: int | None = None) -> list[Quantity]:
    """The experts of all layers and their routers.

    Args:
        model: the shape.
        used: how many of a layer's experts to count; None for all.
    """
    moe = model.experts
    if moe is None:
        return []
    layers, h, m = model.expert_layers, model.hidden, model.mlp_matrices
    width = moe.mlp or model.mlp
    shared = moe.shared_mlp or moe.shared * width
    used = moe.count if used is None else used
    values = {"L": layers, "h": h, "m": m, "E": used, "f": width, "f'": shared}
    count = layers * m * h * (used * width + shared)
    routed = Quantity("experts", count, UNIT, "L m h (E f + f')", values)
    router, formula = h * moe.count, "h E"
    if moe.router_bias:
        router, formula = router + moe.count, formula + " + E"
    if moe.shared_gate:
        router, formula = router + h, formula + " + h"
    values = {"L": layers, "h": h, "E": moe.count}
    return [routed, Quantity("router", layers * router, UNIT, f"L ({formula})", values)]


def norms(model: Transformer) -> Quantity:
    """The norms of all layers, after the last layer, and after the embedding."""
    vectors = 2 if model.norm == "layer" else 1
    ends = model.final_norm + model.embedding_norm
    count = (model.layers * model.norms_per_layer + ends) * vectors * model.hidden
    values = {
        **{"L": model.layers, "n": model.norms_per_layer, "e": ends},
        **{"v": vectors, "h": model.hidden},
    }
    return Quantity("norms", count, UNIT, "(L n + e) v h", values)


def head(model: Transformer) -> Quantity:
    """The output head: no parameters if it shares those of the embedding, except a bias."""
    count = 0 if model.tied else model.vocabulary * model.hidden
    formula = "0" if model.tied else "V h"
    if model.head_bias:
        count, formula = count + model.vocabulary, "V" if model.tied else "V h + V"
    values = {"V": model.vocabulary, "h": model.hidden}
    return Quantity("head", count, UNIT, formula, values)
