"""How a model is trained: batch, precision, optimizer, and how the work is divided."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tfdist.errors import ConfigError, checked_choice, checked_flag, checked_integer
from tfdist.planner.transformer import LARGEST

PRECISIONS = ("fp32", "mixed", "mixed, fp32 gradients", "keras mixed_float16")
# What each optimizer keeps for each parameter.
SLOTS = {
    "sgd": (),
    "momentum": ("momentum",),
    "adagrad": ("accumulator",),
    "adam": ("first moment", "second moment"),
}
OPTIMIZERS = tuple(SLOTS)
RECOMPUTATIONS = ("none", "selective", "full")


@dataclass(frozen=True)
class Training:
    """One training step, and its place on the devices.

    A device holds `1 / tensor` of each matrix of `1 / pipeline` of the layers. `data` groups of
    `tensor * pipeline` devices each train on their own part of the batch.

    Attributes:
        global_batch: sequences of a step, on all devices.
        sequence: tokens of a sequence.
        micro_batch: sequences that a device computes at a time; 0 for `global_batch / data`.
        tensor: devices that share each matrix.
        pipeline: devices that share the layers.
        data: groups that share the batch.
        expert: devices that share the experts; it divides `data`.
        sequence_parallel: whether the devices of `tensor` also share what lies between the
            matrices (Korthikanti et al. 2022).
        interleaved: stages on each device of the pipeline; more than 1 interleaves them.
        zero: stage of ZeRO: 1 shares the optimizer's slots among the groups, 2 the gradients too, 3
            the weights too.
        precision: of weights, gradients and activations, one of PRECISIONS.
        optimizer: one of OPTIMIZERS.
        recomputation: "none" keeps all activations for the backward pass, "selective" recomputes
            attention's softmax, "full" keeps the inputs of the layers alone.
        flash_attention: whether attention keeps no [sequence, sequence] matrix.
        dropout: whether attention and the ends of its blocks have dropout, as GPT-2, GPT-3 and BERT
            have; most models since LLaMA have none, and keep no masks.
    """

    global_batch: int = 1
    sequence: int = 2048
    micro_batch: int = 0
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1
    sequence_parallel: bool = False
    interleaved: int = 1
    zero: int = 0
    precision: str = "mixed"
    optimizer: str = "adam"
    recomputation: str = "none"
    flash_attention: bool = False
    dropout: bool = True

    def __post_init__(self) -> None:
        sizes = ("global_batch", "sequence", "tensor", "pipeline", "data", "expert", "interleaved")
        for name in sizes:
            checked_integer(name, getattr(self, name), 1, LARGEST)
        checked_integer("micro_batch", self.micro_batch, 0, LARGEST)
        checked_integer("zero", self.zero, 0, 3)
        for each in fields(self):
            if each.type == "bool":
                checked_flag(each.name, getattr(self, each.name))
        checked_choice("precision", self.precision, PRECISIONS)
        checked_choice("optimizer", self.optimizer, OPTIMIZERS)
        checked_choice("recomputation", self.recomputation, RECOMPUTATIONS)
        if self.global_batch % self.data:
            rule = f"must be a multiple of data ({self.data})"
            raise ConfigError("global_batch", self.global_batch, rule)
        own = self.global_batch // self.data
        if not self.micro_batch:
            object.__setattr__(self, "micro_batch", own)
        elif own % self.micro_batch:
            rule = f"must divide global_batch / data, which is {own}"
            raise ConfigError("micro_batch", self.micro_batch, rule)
        if self.data % self.expert:
            raise ConfigError("expert", self.expert, f"must divide data ({self.data})")
        if self.interleaved > 1 and self.pipeline == 1:
            raise ConfigError("interleaved", self.interleaved, "must be 1 without a pipeline")

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.tensor * self.pipeline * self.data

    @property
    def micro_batches(self) -> int:
        """Micro-batches that a group computes in a step."""
        return self.global_batch // (self.data * self.micro_batch)

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.global_batch * self.sequence
