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

    With a bias the inner products of some classes are large for all queries, and a graph by inner
    products then leads to few others. So the rows get one more element that makes all of them
    equally long: then the largest inner product is the smallest distance (Bachrach et al. 2014).

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
        if not len(weights):
            raise ConfigError("weights", "no class", "must have a class")
        self._num_classes, self._dim = weights.shape
        bias = np.zeros(self._num_classes) if bias is None else _finite("bias", bias, 1)
        if len(bias) != self._num_classes:
            rule = f"must have the shape [{self._num_classes}]"
            raise ConfigError("bias", f"the shape {list(bias.shape)}", rule)
        links = checked_integer("links", links, 2)
        build_width = checked_integer("build_width", build_width, 1)
        # A query gets an element of 1, so that the inner product has the bias, and one of 0.
        rows = np.column_stack([weights, bias])
        squares = np.sum(rows**2, axis=1)
        rows = np.column_stack([rows, np.sqrt(squares.max() - squares)]).astype(np.float32)
        self._index = hnswlib.Index("l2" if np.ptp(bias) else "ip", rows.shape[1])
        self._index.init_index(len(rows), M=links, ef_construction=build_width)
        self._index.add_items(rows)

    def top_k(self, queries: Any, k: int, *, width: int = 400) -> tuple[Any, Any]:
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
        ones, zeros = np.ones(len(queries)), np.zeros(len(queries))
        queries = np.column_stack([queries, ones, zeros]).astype(np.float32)
        try:
            ids, _ = self._index.knn_query(queries, k)
        except RuntimeError as error:  # the graph does not lead to so many
            rule = "must be smaller: the search has found fewer; raise width, or use nn.top_k"
            raise ConfigError("k", k, rule) from error
        rows = np.array(self._index.get_items(ids.ravel())).reshape(*ids.shape, -1)
        logits = np.einsum("bd,bkd->bk", queries, rows)
        order = np.argsort(-logits, axis=1, kind="stable")
        found = (np.take_along_axis(each, order, 1) for each in (logits, ids))
        return next(found), next(found).astype(np.int64)


def _finite(field: str, values: Any, rank: int) -> Any:
    found = np.asarray(values, np.float32)
    if found.ndim != rank or not np.isfinite(found).all():
        rule = f"must be finite numbers with {rank} dimensions"
        raise ConfigError(field, f"the shape {list(found.shape)}", rule)
    return found
