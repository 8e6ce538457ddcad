"""Approximate search of the classes with the largest logits, by hnswlib."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfdist.errors import ConfigError, checked_integer


class ApproximateIndex:
    """A graph of near neighbours over the classes (Malkov and Yashunin 2018), in this process.

    A query is compared with a few hundred classes instead of all, and finds most of the k best. To
    see how many, compare with `top_k` on your own queries. The index holds a copy of the weights,
    and does not follow a table that is trained on.

    Needs hnswlib, the extra `retrieval` of tfdist.

    Args:
        weights: [num_classes, dim], such as a table's in a checkpoint, or `table.numpy()[0]`.
        bias: [num_classes], or None for zeros.
        links: neighbours of a class in the graph; more find more, and take more memory.
        build_width: how many classes are compared for each one that is added.

    Raises:
        ConfigError: an argument is wrong.
        ModuleNotFoundError: hnswlib is not installed.
    """

    def __init__(
        self, weights: Any, bias: Any = None, *, links: int = 16, build_width: int = 200
    ) -> None:
        try:
            import hnswlib
        except ModuleNotFoundError as error:
            message = "an ApproximateIndex needs hnswlib: pip install hnswlib"
            raise ModuleNotFoundError(message, name="hnswlib") from error
        weights = _finite("weights", weights, 2)
        self._num_classes, self._dim = weights.shape
        bias = np.zeros(self._num_classes) if bias is None else _finite("bias", bias, 1)
        if len(bias) != self._num_classes:
            rule = f"must have the shape [{self._num_classes}]"
            raise ConfigError("bias", f"the shape {list(bias.shape)}", rule)
        links = checked_integer("links", links, 2)
        build_width = checked_integer("build_width", build_width, 1)
        # A query gets a last element of 1, so that the inner product has the bias.
        rows = np.column_stack([weights, bias]).astype(np.float32)
        self._index = hnswlib.Index("ip", rows.shape[1])
        self._index.init_index(len(rows), M=links, ef_construction=build_width)
        self._index.add_items(rows)

    def top_k(self, queries: Any, k: int, *, width: int = 200) -> tuple[Any, Any]:
        """Most of the k classes with the largest logits.

        Args:
            queries: [batch, dim].
            k: at most the number of classes.
            width: how many classes the search keeps on its way, at least k: more find more, in
                proportional time.

        Returns:
            Logits, float32 [batch, k], the largest first, and classes, int64 [batch, k].

        Raises:
            ConfigError: an argument is wrong.
        """
        queries = _finite("queries", queries, 2)
        if queries.shape[1] != self._dim:
            rule = f"must have the shape [batch, {self._dim}]"
            raise ConfigError("queries", f"the shape {list(queries.shape)}", rule)
        k = checked_integer("k", k, 1, self._num_classes)
        self._index.set_ef(max(checked_integer("width", width, 1), k))
        ids, distances = self._index.knn_query(
            np.column_stack([queries, np.ones(len(queries))]).astype(np.float32), k
        )
        return 1 - distances, ids.astype(np.int64)  # hnswlib's distance is 1 - the inner product


def _finite(field: str, values: Any, rank: int) -> Any:
    found = np.asarray(values, np.float32)
    if found.ndim != rank or not np.isfinite(found).all():
        rule = f"must be finite numbers with {rank} dimensions"
        raise ConfigError(field, f"the shape {list(found.shape)}", rule)
    return found
