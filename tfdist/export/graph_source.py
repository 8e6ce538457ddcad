"""Exports a training graph: cut at its reader, its variables from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tfdist.export import saved_model, verify
from tfdist.export.cut import cut, needed
from tfdist.export.feature import Feature, parts_of
from tfdist.export.reader import detached
from tfdist.export.signature import signature_of
from tfdist.export.training_graph import TrainingGraph


class GraphSource:
    """A training graph that computes outputs from what its reader reads.

    Attributes:
        features: the inputs of the model.
        trained_batch: the only number of rows that the graph takes; None for any.
    """

    features: list[Feature]
    trained_batch: int | None

    def __init__(
        self,
        graph: TrainingGraph,
        inputs: Mapping[str, Any] | None,
        outputs: Any,
        constants: Mapping[Any, Any] | None,
    ) -> None:
        """The parameters are those of `export_model`."""
        self._graph = graph
        self._signature = signature_of(graph.meta_graph, inputs, outputs, constants)
        self.features, self.trained_batch = self._signature.features, self._signature.batch

    def write(self, folder: str, num_ids: Mapping[str, int]) -> None:
        """Writes the SavedModel into a folder that does not exist yet."""
        parses = all(each.parsed is not None for each in self.features)
        model = cut(self._graph.meta_graph, self._signature, num_ids, parses=parses)
        saved_model.write(model, self._graph.checkpoint, folder)

    @contextmanager
    def trained(self) -> Iterator[verify.Model]:
        """Computes the outputs in the training graph itself, which is fed where the reader ends."""
        outputs, constants = self._signature.outputs, self._signature.constants
        cut_at = [text for each in self.features for text in each.tensors if text is not None]
        targets = [*outputs.values(), *cut_at, *constants]
        graph_def = detached(self._graph.meta_graph.graph_def)
        training = needed(graph_def, self._graph.meta_graph, targets)
        with saved_model.restored(training, self._graph.checkpoint) as session:

            def run(values: verify.Values) -> verify.Values:
                feed = dict(constants)
                for each in self.features:
                    for text, part in zip(each.tensors, parts_of(values[each.name]), strict=True):
                        if text is not None:
                            feed[text] = part
                computed: verify.Values = session.run(outputs, feed)
                return computed

            yield run
