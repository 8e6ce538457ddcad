"""Warns of what is often wrong in figures of models: in a plan's input, and in printed tables."""

from __future__ import annotations

import math
from typing import Any

from tfdist.errors import ConfigError, checked_integer, checked_number
from tfdist.planner.parameters import count_active_parameters, count_parameters
from tfdist.planner.quantity import Quantity
from tfdist.planner.training import Training
from tfdist.planner.transformer import LARGEST, Transformer

GB, GIB = 10**9, 2**30
LARGE_SHARE = 0.2  # of separate embedding and head in all parameters
RULE_OF_THUMB_ERROR = 0.05
# A product with a dimension that no multiple of 64 is runs at a fraction of the speed (NVIDIA,
# "Matrix Multiplication Background User's Guide"). Megatron-LM pads the vocabulary to a multiple of
# 128 on each device.
MULTIPLE, MULTIPLE_EACH = 64, 128
GPT2_VOCABULARY = 50257
GPT2_PADDED = {
    -(-GPT2_VOCABULARY // multiple) * multiple for multiple in (32, 64, 128, 256, 512, 1024, 2048)
}
# How near to a power of ten the ratio of two figures is if an exponent is misprinted. Both are
# rounded to two digits or more.
EXPONENT_TOLERANCE = 0.1


def cautions(
    model: Transformer,
    training: Training | None = None,
    *,
    states: Quantity | None = None,
    activations: Quantity | None = None,
) -> list[str]:
    """What to check before you rely on figures of this model, one sentence each.

    Args:
        model: its shape.
        training: how it is trained.
        states: bytes of weights, gradients and the optimizer's slots on one device.
        activations: bytes of the activations on one device.

    Raises:
        ConfigError: an argument is none of these, or is not in bytes.
    """
    if not isinstance(model, Transformer):
        raise ConfigError("model", model, "must be a Transformer")
    if training is not None and not isinstance(training, Training):
        raise ConfigError("training", training, "must be a Training, or None")
    found = []
    if model.latent is None:
        found += _width(model.hidden, model.heads, model.head_dim)
    if training is not None and 0 < model.positions < training.sequence:
        found.append(
            f"a sequence of {training.sequence} tokens is longer than the {model.positions} "
            "learned positions of the model"
        )
    found += _separate_head(model)
    found += _vocabulary(model, 1 if training is None else training.tensor)
    found += _experts(model)
    found += _rule_of_thumb(model)
    found += _memory(_checked_bytes("states", states), _checked_bytes("activations", activations))
    return found


def cautions_of_figures(
    *,
    hidden: int | None = None,
    heads: int | None = None,
    head_dim: int | None = None,
    parameters: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
) -> list[str]:
    """Which printed figures contradict one another, one sentence each.

    Pass what a table has: `hidden`, `heads` and `head_dim`, and `parameters`, `tokens` and the
    `flops` of the training.

    Raises:
        ConfigError: a figure is not a positive number.
    """
    shape = {"hidden": hidden, "heads": heads, "head_dim": head_dim}
    sizes = {
        name: checked_integer(name, value, 1, LARGEST)
        for name, value in shape.items()
        if value is not None
    }
    found = _width(**sizes) if len(sizes) == len(shape) else []
    cost = {"parameters": parameters, "tokens": tokens, "flops": flops}
    figures = {
        name: checked_number(name, value, lambda n: 0 < n < math.inf, "must be more than 0")
        for name, value in cost.items()
        if value is not None
    }
    return found + (_compute(**figures) if len(figures) == len(cost) else [])


def _width(hidden: int, heads: int, head_dim: int) -> list[str]:
    width = heads * head_dim
    if width == hidden:
        return []
    return [
        f"heads x head_dim = {heads} x {head_dim} = {width} is not the width {hidden}: some models "
        "mean that, such as Gemma; in a paper one of the three may be a misprint"
    ]


def _compute(parameters: float, tokens: float, flops: float) -> list[str]:
    """Compares with 6 N D FLOPs (arXiv 2001.08361, section 2.1)."""
    expected = 6 * parameters * tokens
    exponent = math.log10(flops) - math.log10(expected)
    nearest = round(exponent)
    if not nearest or abs(exponent - nearest) > EXPONENT_TOLERANCE:
        return []
    return [
        f"{flops:.3g} FLOPs for {parameters:.3g} parameters and {tokens:.3g} tokens differ from "
        f"6 N D = {expected:.3g} by a factor of 10^{nearest}: an exponent may be a misprint"
    ]


def _separate_head(model: Transformer) -> list[str]:
    total, head = count_parameters(model).value, model.vocabulary * model.embedding_width
    share = 2 * head / total
    if model.tied or share < LARGE_SHARE:
        return []
    return [
        f"the embedding and the output head are separate and have {share:.0%} of the parameters; "
        f"tied, they would have {head:,} fewer"
    ]


def _vocabulary(model: Transformer, tensor: int) -> list[str]:
    size, found = model.vocabulary, []
    multiple = MULTIPLE if tensor == 1 else MULTIPLE_EACH * tensor
    padded = -(-size // multiple) * multiple
    if padded != size:
        more = f"{(padded - size) * model.embedding_width:,} more parameters"
        found.append(
            f"the vocabulary of {size} is no multiple of {MULTIPLE}: matrix products are faster if "
            f"it is padded to {padded}, which has {more}"
            if tensor == 1
            else f"the vocabulary of {size} is no multiple of {MULTIPLE_EACH} x {tensor}: "
            f"Megatron-LM pads it to {padded}, which has {more}"
        )
    if size in GPT2_PADDED:
        found.append(
            f"a vocabulary of {size} is that of GPT-2, {GPT2_VOCABULARY}, with padding: the "
            "parameters include the padding, published numbers may not"
        )
    return found


def _experts(model: Transformer) -> list[str]:
    if model.experts is None:
        return []
    total, active = count_parameters(model).value, count_active_parameters(model).value
    return [
        f"a token uses {active:,} of the {total:,} parameters ({active / total:.0%}): memory "
        "depends on all of them, compute on those that are used"
    ]


def _rule_of_thumb(model: Transformer) -> list[str]:
    total = count_parameters(model).value
    estimate = 12 * model.layers * model.hidden**2
    error = estimate / total - 1
    if abs(error) <= RULE_OF_THUMB_ERROR:
        return []
    return [
        f"the rule of thumb 12 L h^2 gives {estimate:,} parameters, which is {abs(error):.0%} "
        f"{'more' if error > 0 else 'less'} than the {total:,} of this model"
    ]


def _memory(states: float | None, activations: float | None) -> list[str]:
    found = []
    if states is not None and activations is not None and activations > states:
        found.append(
            f"the activations ({activations / GB:.3g} GB) are larger than weights, gradients and "
            f"slots ({states / GB:.3g} GB): a smaller micro-batch or recomputation helps more than "
            "a cheaper optimizer"
        )
    largest = max(states or 0, activations or 0)
    if largest >= GB:
        found.append(
            f"{largest / GB:.4g} GB are {largest / GIB:.4g} GiB: the memory of a device is often "
            "printed in GB and means GiB"
        )
    return found


def _checked_bytes(field: str, quantity: Any) -> float | None:
    if quantity is None:
        return None
    if not isinstance(quantity, Quantity) or quantity.unit != "bytes":
        raise ConfigError(field, quantity, "must be a Quantity in bytes, or None")
    return quantity.value
