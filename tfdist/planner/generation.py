"""What it takes to generate text with a cache of keys and values: FLOPs, bytes and seconds.

The prompt passes through the model as a whole. Then each token passes alone, and for it the device
reads all weights and the cache. With few sequences a time it waits for its memory most of the time.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from tfdist.errors import checked_integer
from tfdist.planner import parameters
from tfdist.planner.compute import UNIT, Work, attended, checked_instance, operations, product
from tfdist.planner.devices import Device
from tfdist.planner.quantity import Quantity
from tfdist.planner.transformer import LARGEST, Transformer
from tfdist.planner.utilization import sum_of_times, training_time

POPE = "arXiv 2211.05102, section 2"


def generation_flops(model: Transformer, batch: int, prompt: int, generated: int) -> Quantity:
    """FLOPs to generate; the parts are prefill and decode.

    Only the scores that a causal mask leaves are computed. Latent attention is absorbed in decode
    (see `forward_flops`). Of the prompt only the last token passes through the head, and the last
    generated token does not pass through the model any more.

    Args:
        model: the shape.
        batch: sequences.
        prompt: tokens of each prompt.
        generated: tokens to generate for each.

    Raises:
        ConfigError: an argument is wrong.
    """
    _check(model, batch, prompt, generated)
    whole = Work.of_batch(model, batch, prompt, causal=True)
    prefill = operations(model, replace(whole, outputs=Fraction(batch)))
    parts = [Quantity.sum_of("prefill", UNIT, prefill)]
    if steps := generated - 1:
        tokens = Fraction(batch * steps)
        pairs = Fraction(batch * _read(model, prompt, steps))
        work = Work(tokens, pairs, tokens, Fraction(steps))
        absorbed = model.latent is not None
        parts.append(Quantity.sum_of("decode", UNIT, operations(model, work, absorbed=absorbed)))
    return Quantity.sum_of("generation", UNIT, parts)


def decode_bytes(
    model: Transformer, batch: int, prompt: int, generated: int, *, bytes_per_number: int = 2
) -> Quantity:
    """Bytes that decode reads from the memory of the devices; the parts are weights and cache.

    Args:
        model: the shape. Of its experts a step reads as many as its tokens can use.
        batch: sequences that are generated together.
        prompt: tokens of each prompt.
        generated: tokens to generate for each.
        bytes_per_number: of weights and of the cache; 2 for bf16 and fp16.

    Raises:
        ConfigError: an argument is wrong.
    """
    _check(model, batch, prompt, generated)
    size = checked_integer("bytes_per_number", bytes_per_number, 1, 8)
    steps = generated - 1
    moe = model.experts
    used = None if moe is None else min(moe.count, batch * moe.active)
    layers = [parameters.attention(model), parameters.mlp(model), parameters.norms(model)]
    layers += parameters.experts(model, used)
    read = sum(part.value for part in layers) + model.vocabulary * model.hidden  # and the head
    letters = {
        **{"S": steps, "W": read, "y": size, "L": model.layers, "k": model.kv_width},
        "P": batch * _read(model, prompt, steps),
    }
    cache = "2 P L k y"
    if model.latent is not None:
        cache = "P L s y + P L p y"
        letters |= {"s": model.latent.kv_rank, "p": model.latent.position_dim}
    parts = [
        product("weights", "S W y", letters, POPE, "bytes"),
        product("cache", cache, letters, POPE, "bytes"),
    ]
    return Quantity.sum_of("decode", "bytes", parts)


def generation_time(
    model: Transformer,
    batch: int,
    prompt: int,
    generated: int,
    device: Device,
    devices: int = 1,
    *,
    bytes_per_number: int = 2,
    mfu: float | None = None,
) -> Quantity:
    """Least seconds to generate on devices that share one copy of the weights.

    The parts are prefill, which computes, and decode, which computes or reads memory, whichever
    takes longer. Memory is read at its full bandwidth here, and links between the devices take no
    time, so a real program takes longer.

    Args:
        model: the shape.
        batch: sequences that are generated together.
        prompt: tokens of each prompt.
        generated: tokens to generate for each.
        device: one of the devices.
        devices: that share the weights.
        bytes_per_number: of weights and of the cache; 2 for bf16 and fp16.
        mfu: as in `training_time`.

    Raises:
        ConfigError: an argument is wrong.
    """
    flops = generation_flops(model, batch, prompt, generated)
    read = decode_bytes(model, batch, prompt, generated, bytes_per_number=bytes_per_number)
    checked_instance("device", device, Device)
    devices = checked_integer("devices", devices, 1, LARGEST)
    computing = [
        replace(training_time(part, device, devices, mfu=mfu), name=part.name)
        for part in flops.parts
    ]
    values = {"B": read.value, "d": devices, "M": device.memory_bandwidth}
    seconds = read.value / (devices * device.memory_bandwidth)
    reading = Quantity("decode", seconds, "seconds", "B / (d M)", values, POPE)
    parts = [computing[0], max([*computing[1:], reading], key=float)]
    return sum_of_times("generation", parts)


def _read(model: Transformer, prompt: int, steps: int) -> int:
    """Keys that the tokens after the prompt attend to, in one sequence."""
    before = attended(prompt, model.window, causal=True)
    return attended(prompt + steps, model.window, causal=True) - before


def _check(model: Transformer, batch: int, prompt: int, generated: int) -> None:
    checked_instance("model", model, Transformer)
    for field, value in (("batch", batch), ("prompt", prompt), ("generated", generated)):
        checked_integer(field, value, 1, LARGEST)
