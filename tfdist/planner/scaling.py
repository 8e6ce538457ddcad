"""The size of a model and the number of tokens that reach the lowest loss for a number of FLOPs.

Hoffmann et al. 2022 (arXiv 2203.15556, "Chinchilla") estimated them in three ways. All assume that
training takes C = 6 N D FLOPs, for N parameters and D tokens, and find that the best N grows as a
power of C.
"""

from __future__ import annotations

from typing import NamedTuple

from tfdist.errors import checked_integer, checked_number
from tfdist.planner.quantity import Quantity

# The exponents are printed in table 2. The factors are not printed, so each curve goes through its
# model of 1e12 parameters in tables 3 and A3, whose FLOPs stand here. The coefficients that the
# paper prints for approach 3 are rounded, and would make the models of table A3 18 to 30 % smaller
# (arXiv 2404.10102 explains it).
SIZE = 1e12
EXPONENTS = {1: (0.50, 1.27e26), 2: (0.49, 1.59e26), 3: (0.46, 5.65e26)}
SOURCE = "arXiv 2203.15556, tables 2, 3 and A3"


class ComputeOptimal(NamedTuple):
    """A model that reaches the lowest loss for its FLOPs, and what it is trained on."""

    parameters: Quantity
    tokens: Quantity


def compute_optimal(flops: float, *, approach: int = 1) -> ComputeOptimal:
    """Parameters and tokens for the lowest loss that these FLOPs of training can reach.

    The cost of training is all that counts here. A model that will serve many requests is better
    made smaller and trained on more tokens.

    Args:
        flops: of the training, 6 N D.
        approach: 1 takes the lowest loss of training curves; 2 compares models of equal FLOPs; 3
            fits a formula of the loss. 1 and 2 nearly agree, with some 20 tokens per parameter. 3
            recommends smaller models for many FLOPs.

    Raises:
        ConfigError: an argument is wrong.
    """
    rule = "must be a number of FLOPs from 1e15 to 1e32"
    flops = checked_number("flops", flops, lambda c: 1e15 <= c <= 1e32, rule)
    exponent, at_flops = EXPONENTS[checked_integer("approach", approach, 1, 3)]
    size = SIZE * (flops / at_flops) ** exponent
    values = {"N0": SIZE, "C": flops, "C0": at_flops, "x": exponent}
    parameters = Quantity("parameters", size, "parameters", "N0 (C / C0)^x", values, SOURCE)
    values = {"C": flops, "N": size}
    tokens = Quantity("tokens", flops / (6 * size), "tokens", "C / (6 N)", values, SOURCE)
    return ComputeOptimal(parameters, tokens)
