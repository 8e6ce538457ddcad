"""Short formulas for the FLOPs of training that papers use, and how far each is off.

Letters in the formulas: N parameters, D tokens, L layers, h hidden, q width of all queries, a
heads, s tokens of a sequence, f width of the MLP, V vocabulary.
"""

from __future__ import annotations

from fractions import Fraction

from tfdist.errors import checked_choice, checked_number
from tfdist.planner.compute import (
    checked_instance,
    checked_tokens,
    product,
    training_flops,
    with_backward,
)
from tfdist.planner.parameters import count_active_parameters
from tfdist.planner.quantity import Quantity
from tfdist.planner.training import RECOMPUTATIONS, Training
from tfdist.planner.transformer import Transformer

APPROXIMATIONS = ("6ND", "PaLM", "Narayanan", "Chinchilla")


def parameter_flops(parameters: float, tokens: float, *, recomputation: str = "none") -> Quantity:
    """6 N D: FLOPs of training from the number of parameters alone; 8 N D if all is recomputed.

    A token multiplies each parameter once, and so costs 2 FLOPs for it, and 4 in the backward pass.
    Attention's scores are left out; the embedding, which multiplies nothing, is counted.

    Args:
        parameters: those that a token uses.
        tokens: to train on.
        recomputation: as in `Training`; "selective" recomputes nothing that this formula counts.

    Raises:
        ConfigError: an argument is wrong.
    """
    rule = "must be a positive number of parameters"
    parameters = checked_number("parameters", parameters, lambda n: 0 < n < 1e30, rule)
    checked_choice("recomputation", recomputation, RECOMPUTATIONS)
    letters = {"N": Fraction(parameters), "D": checked_tokens(tokens)}
    once = product("parameters", "2 N D", letters, "arXiv 2001.08361, section 2.1")
    return with_backward([once], [once] if recomputation == "full" else [])


def approximate_flops(
    formula: str, model: Transformer, training: Training, tokens: float | None = None
) -> Quantity:
    """FLOPs of training by a published formula, with the parts of `training_flops`.

    Args:
        formula: "6ND" (Kaplan et al. 2020); "PaLM", which adds attention's scores to it
            (Chowdhery et al. 2022); "Narayanan", for the shape of GPT (Narayanan et al. 2021);
            "Chinchilla", which adds the embedding as a product, and the softmax (Hoffmann et al.
            2022).
        model: the shape. Each formula reads of it what its paper does.
        training: its sequence and recomputation count here.
        tokens: to train on; None for one step.

    Raises:
        ConfigError: an argument is wrong.
    """
    checked_choice("formula", formula, APPROXIMATIONS)
    checked_instance("model", model, Transformer)
    checked_instance("training", training, Training)
    tokens = training.tokens if tokens is None else tokens
    if formula == "6ND":
        parameters = count_active_parameters(model).value
        return parameter_flops(parameters, tokens, recomputation=training.recomputation)
    forward = {"PaLM": _palm, "Narayanan": _narayanan, "Chinchilla": _chinchilla}[formula](
        model, training.sequence, checked_tokens(tokens)
    )
    recomputed = {
        "none": [],
        "selective": [part for part in forward if part.name == PAIRWISE],
        "full": [part for part in forward if part.name not in ("embedding", "head")],
    }[training.recomputation]
    return with_backward(forward, recomputed)


def approximation_error(formula: str, model: Transformer, training: Training) -> Quantity:
    """By what fraction `approximate_flops` exceeds `training_flops`; negative if it falls short.

    Raises:
        ConfigError: an argument is wrong.
    """
    short = approximate_flops(formula, model, training)
    exact = training_flops(model, training)
    values = {"A": short.value, "F": exact.value}
    name = f"error of {formula}"
    return Quantity(name, short.value / exact.value - 1, "fraction", "A / F - 1", values)


PAIRWISE = "scores and weighted values"


def _palm(model: Transformer, sequence: int, tokens: Fraction) -> list[Quantity]:
    letters = {
        **{"N": count_active_parameters(model).value, "D": tokens, "s": sequence},
        **{"L": model.layers, "q": model.query_width},
    }
    source = "arXiv 2204.02311, appendix B"
    return [
        product("parameters", "2 N D", letters, source),
        product(PAIRWISE, "4 L q s D", letters, source),
    ]


def _narayanan(model: Transformer, sequence: int, tokens: Fraction) -> list[Quantity]:
    letters = {
        **{"D": tokens, "s": sequence, "L": model.layers},
        **{"h": model.hidden, "V": model.vocabulary},
    }
    source = "arXiv 2104.04473, equation 3 and its appendix"
    return [
        product("layers", "24 L h h D", letters, source),
        product(PAIRWISE, "4 L h s D", letters, source),
        product("head", "2 h V D", letters, source),
    ]


def _chinchilla(model: Transformer, sequence: int, tokens: Fraction) -> list[Quantity]:
    letters = {
        **{"D": tokens, "s": sequence, "L": model.layers, "a": model.heads},
        **{"h": model.hidden, "q": model.query_width, "f": model.mlp, "V": model.vocabulary},
    }
    source = "arXiv 2203.15556, appendix F"
    return [
        product("embedding", "2 V h D", letters, source),
        product("projections", "8 L h q D", letters, source),
        product(PAIRWISE, "4 L q s D", letters, source),
        product("softmax", "3 L a s D", letters, source),
        product("mlp", "4 L h f D", letters, source),
        product("head", "2 h V D", letters, source),
    ]
