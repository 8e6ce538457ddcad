"""The floating-point operations (FLOPs) of a forward pass and of training, operation by operation.

Only matrix products count, and a multiply-add counts as 2, as in the papers and in the counters of
the frameworks. Softmax, norms, activation functions and the optimizer multiply no matrices.

Letters in the formulas: L layers, T tokens, O of them that pass through the head, n keys that a
token attends to on average, h hidden, q width of all queries, k width of all keys, a heads, f width
of an MLP, f' width of the shared experts, m matrices of an MLP, E experts, e experts that a token
uses, R rows of relative positions, V vocabulary. With latent attention: r and s are the ranks of
queries and of keys and values; c, p and v are the content, position and value part of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tfdist.errors import ConfigError, checked_flag, checked_integer, checked_number
from tfdist.planner.quantity import Quantity
from tfdist.planner.training import Training
from tfdist.planner.transformer import LARGEST, LatentAttention, Transformer

UNIT = "FLOPs"
FLASH_ATTENTION = "arXiv 2205.14135, section 3.1"
# What attention computes for each pair of a query and a key, apart from the softmax.
PAIRWISE = ("scores", "relative scores", "weighted values")


@dataclass(frozen=True)
class Work:
    """What passes through a model.

    Attributes:
        tokens: through the layers.
        pairs: of a query and a key that it attends to.
        outputs: tokens that also pass through the head.
        positions: rows of relative positions that each layer projects.
    """

    tokens: Fraction
    pairs: Fraction
    outputs: Fraction
    positions: Fraction = Fraction(0)

    @classmethod
    def of_batch(cls, model: Transformer, batch: int, sequence: int, *, causal: bool) -> Work:
        """One batch. All its sequences share the rows of relative positions."""
        tokens = Fraction(batch * sequence)
        pairs = Fraction(batch * attended(sequence, model.window, causal=causal))
        return cls(tokens, pairs, tokens, Fraction(sequence))


def forward_flops(
    model: Transformer, batch: int, sequence: int, *, causal: bool = False, absorbed: bool = False
) -> Quantity:
    """FLOPs of a forward pass; the parts are attention, mlp, experts, router and head.

    Args:
        model: the shape.
        batch: sequences.
        sequence: tokens of each.
        causal: False counts the whole matrix of scores, as papers do and as a dense product
            computes it. True counts only the scores that a causal mask leaves, s (s + 1) / 2 of a
            sequence, as FlashAttention nearly computes it.
        absorbed: for latent attention. False expands the compressed vectors to keys and values, as
            in training. True multiplies the queries and the output with these matrices instead, so
            that attention reads the compressed vectors, as in generation.

    Raises:
        ConfigError: an argument is wrong.
    """
    checked_instance("model", model, Transformer)
    batch = checked_integer("batch", batch, 1, LARGEST)
    sequence = checked_integer("sequence", sequence, 1, LARGEST)
    causal = checked_flag("causal", causal)
    if checked_flag("absorbed", absorbed) and model.latent is None:
        raise ConfigError("absorbed", absorbed, "must be False for a model without latent")
    work = Work.of_batch(model, batch, sequence, causal=causal)
    return Quantity.sum_of("forward", UNIT, operations(model, work, absorbed=absorbed))


def training_flops(
    model: Transformer,
    training: Training,
    tokens: float | None = None,
    *,
    causal: bool = False,
) -> Quantity:
    """FLOPs of training; the parts are forward, backward and recomputation.

    Args:
        model: the shape.
        training: its sequence, micro-batch, recomputation and flash_attention count here.
        tokens: to train on; None for one step.
        causal: as in `forward_flops`.

    Raises:
        ConfigError: an argument is wrong.
    """
    checked_instance("model", model, Transformer)
    checked_instance("training", training, Training)
    trained = checked_tokens(training.tokens if tokens is None else tokens)
    causal = checked_flag("causal", causal)
    per_sequence = attended(training.sequence, model.window, causal=causal)
    pairs = trained * per_sequence / training.sequence
    work = Work(trained, pairs, trained, trained / training.micro_batch)
    forward = operations(model, work)
    attention = next(part for part in forward if part.name == "attention")
    pairwise = [part for part in attention.parts if part.name in PAIRWISE]
    recomputed = {
        "none": [],
        "selective": pairwise,
        "full": [part for part in forward if part.name != "head"],
    }[training.recomputation]
    if training.flash_attention:
        recomputed = [*recomputed, *(_again(part) for part in pairwise if "scores" in part.name)]
    return with_backward(forward, recomputed)


def with_backward(forward: Sequence[Quantity], recomputed: Sequence[Quantity]) -> Quantity:
    """FLOPs of training from those of its forward pass.

    A product of inputs and weights has two gradients, and each of them is a product of the same
    size. Relative positions are constants: their projection has a gradient of its weights alone.

    Args:
        forward: its parts.
        recomputed: those that the backward pass computes once more.
    """
    once = Quantity.sum_of("forward", UNIT, forward)
    constants = sum(part.part("relative positions") for part in forward)
    formula, values = "2 F", {"F": once.value}
    if constants:
        formula, values = "2 F - P", {**values, "P": constants}
    backward = Quantity("backward", 2 * once.value - constants, UNIT, formula, values)
    again = Quantity.sum_of("recomputation", UNIT, recomputed)
    return Quantity.sum_of("training", UNIT, [once, backward, again])


def _again(part: Quantity) -> Quantity:
    name = f"{part.name} in the backward pass of FlashAttention"
    return Quantity(name, part.value, UNIT, part.formula, part.values, FLASH_ATTENTION)


def attended(sequence: int, window: int, *, causal: bool) -> int:
    """Pairs of a query and a key in one sequence; a window of 0 has no limit."""
    window = min(window or sequence, sequence)
    if not causal:
        return sequence * window
    return window * (window + 1) // 2 + (sequence - window) * window


def operations(
    model: Transformer, work: Work, *, absorbed: bool = False, classes: int | None = None
) -> list[Quantity]:
    """FLOPs of a forward pass by operation.

    Args:
        model: the shape.
        work: what passes through it.
        absorbed: as in `forward_flops`.
        classes: outputs of the head; None for the vocabulary.
    """
    letters = {
        **{"L": model.layers, "T": work.tokens, "n": work.pairs / work.tokens},
        **{"h": model.hidden, "q": model.query_width, "k": model.kv_width, "a": model.heads},
        **{"f": model.mlp, "m": model.mlp_matrices, "R": work.positions, "O": work.outputs},
        "V": model.vocabulary if classes is None else classes,
    }
    if model.latent is None:
        parts = _attention(model, letters)
    else:
        parts = _latent_attention(model.latent, letters, absorbed=absorbed)
    found = [Quantity.sum_of("attention", UNIT, parts)]
    dense = {**letters, "L": model.layers - model.expert_layers}
    found.append(product("mlp", "2 L T m h f", dense))
    found += _experts(model, letters)
    through_head = "2 T h V" if work.outputs == work.tokens else "2 O h V"
    return [*found, product("head", through_head, letters)]


def _attention(model: Transformer, letters: Mapping[str, Any]) -> list[Quantity]:
    terms = [
        product("query projection", "2 L T h q", letters),
        product("key and value projections", "4 L T h k", letters),
        product("scores", "2 L T n q", letters),
        product("weighted values", "2 L T n q", letters),
        product("output projection", "2 L T q h", letters),
    ]
    if model.relative_positions:
        source = "arXiv 1901.02860, section 3.3"
        terms.append(product("relative positions", "2 L R h q", letters, source))
        terms.append(product("relative scores", "2 L T n q", letters, source))
    return terms


def _latent_attention(
    latent: LatentAttention, letters: Mapping[str, Any], *, absorbed: bool
) -> list[Quantity]:
    letters = {
        **letters,
        **{"r": latent.query_rank, "s": latent.kv_rank, "c": latent.content_dim},
        **{"p": latent.position_dim, "v": latent.value_dim},
    }
    queries = "2 L T h a c + 2 L T h a p"
    if latent.query_rank:
        queries = "2 L T h r + 2 L T r a c + 2 L T r a p"
    compressed = "2 L T h s + 2 L T h p"
    # Both forms multiply each token with the same two matrices, of s a c and s a v numbers.
    formulas = (
        {
            "query projection": f"{queries} + 2 L T a c s",
            "key and value projections": compressed,
            "scores": "2 L T n a s + 2 L T n a p",
            "weighted values": "2 L T n a s",
            "output projection": "2 L T a s v + 2 L T a v h",
        }
        if absorbed
        else {
            "query projection": queries,
            "key and value projections": f"{compressed} + 2 L T s a c + 2 L T s a v",
            "scores": "2 L T n a c + 2 L T n a p",
            "weighted values": "2 L T n a v",
            "output projection": "2 L T a v h",
        }
    )
    source = "arXiv 2405.04434, section 2.1"
    return [product(name, formula, letters, source) for name, formula in formulas.items()]


def _experts(model: Transformer, letters: Mapping[str, Any]) -> list[Quantity]:
    moe = model.experts
    if moe is None:
        return []
    width = moe.mlp or model.mlp
    letters = {
        **letters,
        **{"L": model.expert_layers, "E": moe.count, "e": moe.active},
        **{"f": width, "f'": moe.shared_mlp or moe.shared * width},
    }
    used = "2 L T m h e f + 2 L T m h f'" if letters["f'"] else "2 L T m h e f"
    router = "2 L T h E + 2 L T h" if moe.shared_gate else "2 L T h E"
    return [product("experts", used, letters), product("router", router, letters)]


def product(
    name: str, formula: str, letters: Mapping[str, Any], source: str = "", unit: str = UNIT
) -> Quantity:
    """The value of a formula that is a product of letters and whole numbers, or a sum of such.

    So the formula that a reader sees is the one that was computed.
    """
    terms = [term.split() for term in formula.split(" + ")]
    used = {word: letters[word] for term in terms for word in term if not word.isdigit()}
    value = sum(math.prod(used[w] if w in used else int(w) for w in term) for term in terms)
    shown = {word: _number(letter) for word, letter in used.items()}
    return Quantity(name, _number(value), unit, formula, shown, source)


def _number(value: Any) -> float:
    """An int where the value is whole, so that sums of FLOPs stay exact."""
    fraction = Fraction(value)
    return fraction.numerator if fraction.denominator == 1 else float(fraction)


def checked_tokens(tokens: Any) -> Fraction:
    """A number of tokens.

    Raises:
        ConfigError: it is none.
    """
    rule = "must be a positive number of tokens"
    return Fraction(checked_number("tokens", tokens, lambda n: 0 < n < 1e30, rule))


def checked_instance(field: str, value: Any, kind: type) -> None:
    """Checks the type of a parameter.

    Raises:
        ConfigError: the value has another type.
    """
    if not isinstance(value, kind):
        raise ConfigError(field, value, f"must be a {kind.__name__}")
