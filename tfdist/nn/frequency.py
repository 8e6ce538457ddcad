"""How often classes occur, from their counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdist.errors import ConfigError, checked_number


def log_unigram(counts: Any, *, pseudo_count: float = 1.0) -> Any:
    """The logarithm of each class's frequency, as the first bias of a `ClassTable`.

    With it a model begins at the frequencies instead of the uniform distribution. NCE needs that:
    it expects logits that are normalized, and takes long to get there from a bias of zero.

    Args:
        counts: [num_classes], how often each class occurs.
        pseudo_count: is added to each count, so that a class that does not occur has a finite bias.

    Returns:
        float32 [num_classes].

    Raises:
        ConfigError: a count is negative or no number, or a sum is 0.
    """
    return np.log(frequencies(counts, pseudo_count)).astype(np.float32)


def frequencies(counts: Any, pseudo_count: float) -> Any:
    """The probability of each class, float64; none is 0.

    Raises:
        ConfigError: the counts are no vector of finite numbers of at least 0, or a class never
            occurs and the pseudo count is 0.
    """
    pseudo_count = checked_number(
        "pseudo_count",
        pseudo_count,
        lambda number: 0 <= number < np.inf,
        "must be a number of at least 0",
    )
    rule = "must be a vector of finite numbers of at least 0"
    try:
        found = np.asarray(counts, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError("counts", counts, rule) from error
    if found.ndim != 1 or not found.size:
        raise ConfigError("counts", f"the shape {list(found.shape)}", rule)
    wrong = ~(np.isfinite(found) & (found >= 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ConfigError("counts", float(found[first]), f"{rule}; the one of class {first} is not")
    sums = found + pseudo_count
    sums /= sums.max() or 1  # their sum may be too large for a number
    if not sums.all():
        first = int(np.argmin(sums))
        rule = "must be positive where pseudo_count is 0, and not 1e300 times less than another"
        raise ConfigError(f"counts[{first}]", float(found[first]), rule)
    return np.divide(sums, sums.sum())
