"""The memory of a model that answers: weights, and the keys and values of all tokens so far.

Letters in the formulas: those of `parameters`, B bytes of one number, b sequences, s tokens of a
sequence, of which w are in the cache.
"""

from __future__ import annotations

from dataclasses import replace

from tfdist.errors import ConfigError, checked_choice, checked_integer
from tfdist.planner import parameters
from tfdist.planner.quantity import Quantity
from tfdist.planner.stages import shard
from tfdist.planner.transformer import LARGEST, Transformer

# Bytes of a weight, and of a number in the cache. Scales of int8 are left out: one for each row.
INFERENCE_PRECISIONS = {"fp32": (4, 4), "bf16": (2, 2), "fp16": (2, 2), "int8": (1, 2)}
LATENT_SOURCE = "arXiv 2405.04434, table 1"


def kv_cache_per_token(model: Transformer, precision: str = "bf16", tensor: int = 1) -> Quantity:
    """Bytes that each token adds to the cache of keys and values, on one of `tensor` devices.

    Raises:
        ConfigError: an argument is wrong, or the heads cannot be divided among so many devices.
    """
    part = _checked_part(model, precision, tensor)
    size = INFERENCE_PRECISIONS[precision][1]
    values = {"L": part.layers, "B": size}
    name, latent = "cache of a token", part.latent
    if latent is not None:
        # All heads share the compressed vector, so that each device needs the whole of it.
        width = latent.kv_rank + latent.position_dim
        values |= {"z": latent.kv_rank, "p": latent.position_dim}
        number = part.layers * width * size
        return Quantity(name, number, "bytes", "L (z + p) B", values, LATENT_SOURCE)
    values["k"] = part.kv_width
    return Quantity(name, 2 * part.layers * part.kv_width * size, "bytes", "2 L k B", values)


def inference_memory(
    model: Transformer, batch: int, sequence: int, precision: str = "bf16", tensor: int = 1
) -> Quantity:
    """Bytes to generate up to `sequence` tokens for each of `batch` prompts, on one device.

    The parts are weights, cache and workspace.

    Args:
        model: the whole model.
        batch: sequences at a time.
        sequence: tokens of a sequence, with its prompt.
        precision: one of INFERENCE_PRECISIONS; with int8 weights, the rest is in 16 bits.
        tensor: devices that share each matrix.

    Raises:
        ConfigError: an argument is wrong, or the heads cannot be divided among so many devices.
    """
    part = _checked_part(model, precision, tensor)
    checked_integer("batch", batch, 1, LARGEST)
    checked_integer("sequence", sequence, 1, LARGEST)
    size, cache_size = INFERENCE_PRECISIONS[precision]
    weights = [
        replace(
            each,
            value=size * each.value,
            unit="bytes",
            formula=f"B ({each.formula})",
            values={"B": size, **each.values},
        )
        for each in parameters.count_parameters(part).parts
    ]
    cached = min(sequence, part.window or sequence)
    token = kv_cache_per_token(model, precision, tensor)
    values = {"b": batch, "w": cached, **token.values}
    cache = replace(
        token,
        name="cache",
        value=batch * cached * token.value,
        formula=f"b w {token.formula}",
        values=values,
    )
    return Quantity.sum_of(
        "inference memory",
        "bytes",
        [
            Quantity.sum_of("weights", "bytes", weights),
            cache,
            Quantity.sum_of("workspace", "bytes", _workspace(part, batch, sequence, cache_size)),
        ],
    )


def _workspace(part: Transformer, batch: int, sequence: int, size: int) -> list[Quantity]:
    """The widest point of a layer while one prompt is read, and the logits of the next tokens."""
    h, m, f = part.hidden, part.mlp_matrices, part.mlp
    if part.experts is not None:
        moe = part.experts
        f = max(f, moe.active * (moe.mlp or part.mlp) + moe.shared_mlp)
    values = {"B": size, "s": sequence, "h": h, "m": m, "f": f}
    tensors = size * sequence * (2 * h + m * f)
    logits = {"b": batch, "V": part.vocabulary}
    return [
        Quantity("tensors of a layer", tensors, "bytes", "B s (2 h + m f)", values),
        Quantity("logits in fp32", 4 * batch * part.vocabulary, "bytes", "4 b V", logits),
    ]


def _checked_part(model: Transformer, precision: str, tensor: int) -> Transformer:
    if not isinstance(model, Transformer):
        raise ConfigError("model", model, "must be a Transformer")
    checked_choice("precision", precision, list(INFERENCE_PRECISIONS))
    return shard(model, checked_integer("tensor", tensor, 1, LARGEST))
