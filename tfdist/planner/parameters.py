"""The number of parameters of a Transformer, exactly, by part.

Letters in the formulas: L layers, h hidden, V vocabulary, e width of the embedding, a heads, d
width of a head, q width of all queries, k width of all keys, f width of the MLP, m its matrices, E
experts.
"""

from __future__ import annotations

from collections.abc import Mapping

from tfdist.planner.quantity import Quantity
from tfdist.planner.transformer import NORMS, Experts, LatentAttention, Transformer

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
    h, e = model.hidden, model.embedding_width
    tables = {"V": model.vocabulary, "P": model.positions, "T": model.token_types}
    used = {letter: rows for letter, rows in tables.items() if rows}
    if e == h:
        rows = " + ".join(used)
        formula = f"({rows}) h" if len(used) > 1 else f"{rows} h"
        return Quantity("embedding", sum(used.values()) * h, UNIT, formula, {**used, "h": h})
    del used["V"]
    count = model.vocabulary * e + sum(used.values()) * h + 2 * h * e
    formula = " + ".join(["V e", *(f"{letter} h" for letter in used), "2 h e"])
    values = {**used, "V": model.vocabulary, "e": e, "h": h}
    return Quantity("embedding", count, UNIT, formula, values)


def attention(model: Transformer) -> Quantity:
    """The projections of all layers, with their biases and the norms of queries and keys."""
    if model.latent is not None:
        return _latent_attention(model, model.latent)
    a, h, q, k, d = model.heads, model.hidden, model.query_width, model.kv_width, model.head_dim
    terms = {"2 h (q + k)": 2 * h * (q + k)}
    if model.bias in ("all", "qkv"):
        terms["q + 2 k"] = q + 2 * k
    if model.bias in ("all", "output"):
        terms["h"] = h
    if model.relative_positions:
        terms["h q"] = h * q
    if model.qk_norm == "head":
        terms["2 d"] = 2 * d
    elif model.qk_norm == "all":
        terms["q + k"] = q + k
    if model.sinks:
        terms["a"] = a
    values = {"L": model.layers, "a": a, "h": h, "q": q, "k": k, "d": d}
    return _layers_of("attention", model.layers, terms, values)


def _latent_attention(model: Transformer, latent: LatentAttention) -> Quantity:
    h, a, r, s = model.hidden, model.heads, latent.query_rank, latent.kv_rank
    c, p, v = latent.content_dim, latent.position_dim, latent.value_dim
    if r:
        terms = {"r (h + 1 + a (c + p))": r * (h + 1 + a * (c + p))}  # 1 is the norm
    else:
        terms = {"h a (c + p)": h * a * (c + p)}
    terms["s (h + 1 + a (c + v))"] = s * (h + 1 + a * (c + v))
    terms["h p"] = h * p
    terms["a v h"] = a * v * h
    if model.bias == "all":
        terms["r + s + p + h"] = r + s + p + h
    values = {"L": model.layers, "h": h, "a": a, "r": r, "s": s, "c": c, "p": p, "v": v}
    source = "arXiv 2405.04434, section 2.1 and appendix B"
    return _layers_of("attention", model.layers, terms, values, source)


def _layers_of(
    name: str,
    layers: int,
    terms: Mapping[str, int],
    values: Mapping[str, float],
    source: str = "",
) -> Quantity:
    """The sum of these terms, in each of these layers."""
    formula = f"L ({' + '.join(terms)})"
    return Quantity(name, layers * sum(terms.values()), UNIT, formula, values, source)


def mlp(model: Transformer) -> Quantity:
    """The MLPs of all layers that have no experts, with their biases."""
    h, f, m = model.hidden, model.mlp, model.mlp_matrices
    layers = model.layers - model.expert_layers
    terms = {"m h f": m * h * f}
    if model.mlp_bias:
        terms["(m - 1) f + h"] = (m - 1) * f + h
    return _layers_of("mlp", layers, terms, {"L": layers, "h": h, "f": f, "m": m})


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
    f, shared = moe.mlp or model.mlp, shared_width(model, moe)
    used = moe.count if used is None else used
    terms = {"m h (E f + f')": m * h * (used * f + shared)}
    if moe.bias:
        terms["E ((m - 1) f + h)"] = used * ((m - 1) * f + h)
    values = {"L": layers, "h": h, "m": m, "E": used, "f": f, "f'": shared}
    routed = _layers_of("experts", layers, terms, values)
    terms = {"h E": h * moe.count}
    if moe.router_bias:
        terms["E"] = moe.count
    if moe.shared_gate:
        terms["h"] = h
    return [routed, _layers_of("router", layers, terms, {"L": layers, "h": h, "E": moe.count})]


def shared_width(model: Transformer, moe: Experts) -> int:
    """Width of the MLPs of all shared experts together."""
    return moe.shared_mlp or moe.shared * (moe.mlp or model.mlp)


def norms(model: Transformer) -> Quantity:
    """The norms of all layers, after the last layer, and after the embedding."""
    vectors = NORMS[model.norm]
    ends = model.final_norm + model.embedding_norm
    count = (model.layers * model.norms_per_layer + ends) * vectors * model.hidden
    values = {
        **{"L": model.layers, "n": model.norms_per_layer, "e": ends},
        **{"v": vectors, "h": model.hidden},
    }
    return Quantity("norms", count, UNIT, "(L n + e) v h", values)


def head(model: Transformer) -> Quantity:
    """The output head: its weights only if it does not share those of the embedding."""
    h, e, vocabulary, v = model.hidden, model.embedding_width, model.vocabulary, NORMS[model.norm]
    terms = {}
    if not model.tied:
        terms["V e"] = vocabulary * e
    if model.head_bias:
        terms["V"] = vocabulary
    if model.head_layer:
        terms["h (h + 1 + v)"] = h * (h + 1 + v)
    if model.pooler:
        terms["h (h + 1)"] = h * (h + 1)
    values = {"V": vocabulary, "e": e, "h": h, "v": v}
    return Quantity("head", sum(terms.values()), UNIT, " + ".join(terms) or "0", values)
