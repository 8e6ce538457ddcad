"""What the forward pass keeps for the backward pass, operation by operation.

To compute its gradient an operation needs some of its inputs or its output again. These stay in
memory from the forward to the backward pass. A tensor that two operations need counts once.

Letters in the formulas, all for one device: b sequences of a micro-batch, s tokens of a sequence,
e bytes of an element, h hidden, a heads, q width of all queries, k width of all keys, f width of
the MLP, V vocabulary, t devices that share what lies between the matrices. Masks take one byte.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from tfdist.errors import checked_choice
from tfdist.planner.quantity import Quantity, plain
from tfdist.planner.stages import check_division, shard
from tfdist.planner.training import Training
from tfdist.planner.transformer import Experts, Transformer

SOURCE = "arXiv 2205.05198, section 4"
FLASH_SOURCE = "arXiv 2307.08691, section 3.1"

# "megatron" fuses GELU and norms into single operations, as the paper assumes. TensorFlow keeps
# their pieces.
FRAMEWORKS = ("megatron", "tensorflow")
TENSORFLOW_SOURCE = "counted in graphs of Keras 3.15 on TensorFlow 2.21"


def layer_activations(
    model: Transformer, training: Training, *, framework: str = "megatron"
) -> Quantity:
    """Bytes that one layer keeps of one micro-batch on one device; the parts are its operations.

    The layer is the model's last one: with experts, if the model has any. For GPT with dropout the
    sum is `s b h (34 + 5 a s / h)` (Korthikanti et al. 2022, table 2).

    Args:
        model: the whole model.
        training: its batch, precision and division.
        framework: one of FRAMEWORKS.

    Raises:
        ConfigError: an argument is wrong, or the model cannot be divided like this.
    """
    check_division(model, training)
    checked_choice("framework", framework, FRAMEWORKS)
    part = shard(model, training.tensor)
    layer = part if part.expert_layers else replace(part, experts=None)
    operations = layer_operations(layer, training, framework)
    return Quantity.sum_of("activations of a layer", "bytes", operations)


def layer_operations(part: Transformer, training: Training, framework: str) -> list[Quantity]:
    """What each operation of a layer keeps, where a device holds `part` of the layer.

    A layer has experts if `part.experts` is not None.
    """
    kept = _Kept(part, training)
    if training.recomputation == "full":
        return [kept.between("input of the layer")]
    mlp = _mlp_input(part, kept)
    if part.experts is None:
        mlp += _inside_mlp(part, kept)
    else:
        mlp += _experts(part, part.experts, kept)
    # Two norms in front of a parallel block read the same tensor.
    norms = part.norms_per_layer - (part.parallel_block and part.norms_per_layer > 1)
    found = [
        kept.between("inputs of the norms", "n h", norms * part.hidden, n=norms, h=part.hidden),
        *_attention(part, training, kept),
        *mlp,
    ]
    if training.dropout:
        blocks = ("mask of attention's dropout", "mask of the MLP's dropout")
        found += [kept.between(name, size=1) for name in blocks]
    if framework == "tensorflow":
        found += _tensorflow(part, training, kept, norms)
    return found


def embedding_operations(part: Transformer, training: Training) -> list[Quantity]:
    """What the embedding keeps."""
    kept, found = _Kept(part, training), []
    if part.embedding_norm:
        found.append(kept.between("input of the embedding's norm"))
    if training.dropout:
        found.append(kept.between("mask of the embedding's dropout", size=1))
    return found


def head_operations(part: Transformer, training: Training) -> list[Quantity]:
    """What the last norm and the output head keep, without the logits."""
    kept = _Kept(part, training)
    found = [kept.between("input of the last norm")] if part.final_norm else []
    return [*found, kept.between("input of the output head")]


def logits(part: Transformer, training: Training) -> list[Quantity]:
    """The logits in fp32, as the loss needs them, and their gradient."""
    rows, vocabulary = training.micro_batch * training.sequence, part.vocabulary
    values = {"b": training.micro_batch, "s": training.sequence, "V": vocabulary}
    e = element_bytes(training)
    gradient = {"e": e, **values}
    return [
        Quantity("logits in fp32", 4 * rows * vocabulary, "bytes", "4 b s V", values, SOURCE),
        Quantity("their gradient", e * rows * vocabulary, "bytes", "e b s V", gradient),
    ]


def element_bytes(training: Training) -> int:
    """Bytes of one element of an activation."""
    return 4 if training.precision == "fp32" else 2


class _Kept:
    """Makes the quantities of what a device keeps of one micro-batch.

    A tensor has `width` elements for each token, as `formula` says with `letters`. They have `size`
    bytes; 0 means as many as activations have.
    """

    def __init__(self, part: Transformer, training: Training) -> None:
        self._hidden = part.hidden
        self._values = {"b": training.micro_batch, "s": training.sequence}
        self._element_bytes = element_bytes(training)
        self._shared_by = training.tensor if training.sequence_parallel else 1

    def inside(
        self, name: str, formula: str, width: int, size: int = 0, **letters: int
    ) -> Quantity:
        """A tensor inside attention or MLP."""
        values, formula = {**self._values, **letters}, f"b s {formula}"
        if not size:
            values, formula = {"e": self._element_bytes, **values}, f"e {formula}"
        elif size > 1:
            formula = f"{size} {formula}"
        count = (size or self._element_bytes) * values["b"] * values["s"] * width
        return Quantity(name, count, "bytes", formula, values, SOURCE)

    def between(
        self, name: str, formula: str = "h", width: int = 0, size: int = 0, **letters: int
    ) -> Quantity:
        """A tensor between the matrices, which sequence parallelism divides; `hidden` wide."""
        letters = letters or {"h": self._hidden}
        whole = self.inside(name, formula, width or self._hidden, size, **letters)
        if self._shared_by == 1:
            return whole
        own = plain(Fraction(int(whole.value), self._shared_by))
        values = {**whole.values, "t": self._shared_by}
        return replace(whole, value=own, formula=f"{whole.formula} / t", values=values)


def _attention(part: Transformer, training: Training, kept: _Kept) -> list[Quantity]:
    latent, q, k = part.latent, part.query_width, part.kv_width
    found = [kept.between("input of queries, keys and values")]
    if latent is not None:
        # Each device compresses the same vectors. A norm follows, so that they count twice.
        r, z = latent.query_rank, latent.kv_rank
        found.append(kept.inside("compressed vectors", "2 (r + z)", 2 * (r + z), r=r, z=z))
        q = k = part.heads * (latent.content_dim + latent.position_dim)
    elif part.qk_norm != "none":
        found.append(kept.inside("inputs of their norms", "(q + k)", q + k, q=q, k=k))
    found.append(kept.inside("queries and keys", "(q + k)", q + k, q=q, k=k))
    if part.relative_positions:
        # The product with positions has queries of its own: another bias is added to them.
        found.append(kept.inside("queries for positions", "q", q, q=q))
    v = k if latent is None else part.heads * latent.value_dim
    output = q if latent is None else v
    return [
        *found,
        *_softmax(part.heads, training, kept),
        kept.inside("values", "v", v, v=v),
        kept.inside("input of the output projection", "o", output, o=output),
    ]


def _softmax(a: int, training: Training, kept: _Kept) -> list[Quantity]:
    """What grows with the square of the sequence."""
    if training.recomputation == "selective":
        return []
    if training.flash_attention:
        sums = kept.inside("logarithms of the softmax's sums", "a", a, 4, a=a)
        return [replace(sums, source=FLASH_SOURCE)]
    width = a * training.sequence
    found = [kept.inside("softmax", "a s", width, a=a)]
    if training.dropout:
        # Without dropout the product with the values reads the softmax itself.
        found.append(kept.inside("mask of the softmax's dropout", "a s", width, 1, a=a))
        found.append(kept.inside("softmax after dropout", "a s", width, a=a))
    return found


def _mlp_input(part: Transformer, kept: _Kept) -> list[Quantity]:
    # A parallel block with one norm reads the input of queries, keys and values again.
    is_same = part.parallel_block and part.norms_per_layer < 2
    return [] if is_same else [kept.between("input of the MLP")]


def _mlp_width(part: Transformer) -> tuple[str, int, dict[str, int]]:
    """Width of all MLPs that a token passes in a layer: the formula, the number, the letters."""
    moe = part.experts
    if moe is None:
        return "f", part.mlp, {"f": part.mlp}
    used, each, shared = moe.active, moe.mlp or part.mlp, moe.shared_mlp
    return "(A f + g)", used * each + shared, {"A": used, "f": each, "g": shared}


def _inside_mlp(part: Transformer, kept: _Kept) -> list[Quantity]:
    formula, width, letters = _mlp_width(part)
    if part.gated_mlp:
        # SiLU keeps its input. The product keeps SiLU's output, and what that is multiplied with.
        gate = kept.inside("gate", f"3 {formula}", 3 * width, **letters)
    else:
        gate = kept.inside("input of GELU", formula, width, **letters)
    return [gate, kept.inside("input of the MLP's last product", formula, width, **letters)]


def _experts(part: Transformer, moe: Experts, kept: _Kept) -> list[Quantity]:
    """A layer's experts, of which each gets equally many tokens.

    Expert parallelism then changes nothing: a device receives as many tokens as it sends away.
    """
    copies, letters = moe.active * part.hidden, {"A": moe.active, "h": part.hidden}
    router = kept.inside("router in fp32", "E", moe.count, 4, E=moe.count)
    return [
        replace(router, source=""),
        kept.inside("inputs of the experts", "A h", copies, **letters),
        *_inside_mlp(part, kept),
        kept.between("outputs of the experts", "A h", copies, **letters),
    ]


def _tensorflow(part: Transformer, training: Training, kept: _Kept, norms: int) -> list[Quantity]:
    """What the gradient of a TensorFlow function captures in addition."""
    h, a, is_fp32 = part.hidden, part.heads, training.precision == "fp32"
    letters = {"n": norms, "h": h}
    # Norms compute in fp32, whatever the precision of the rest.
    name, size = "TensorFlow: pieces of the norms", 12 if is_fp32 else 10
    found = [kept.between(name, "n h", norms * h, size, **letters)]
    if part.gated_mlp:
        found.append(kept.between("TensorFlow: input of the MLP, for the gate"))
    else:
        formula, width, letters = _mlp_width(part)
        gelu = kept.inside("TensorFlow: pieces of GELU", f"3 {formula}", 3 * width, **letters)
        # ReLU keeps no pieces, and not even its input; GELU's tanh approximation keeps four more.
        likely = (-gelu.value / 3, 4 / 3 * gelu.value)
        found.append(replace(gelu, interval=likely))
    has_softmax = not training.flash_attention and training.recomputation != "selective"
    width = a * training.sequence
    if training.dropout:
        q, k = part.query_width, part.kv_width
        name = "TensorFlow: transposed queries, keys and values"
        found.append(kept.inside(name, "(q + 2 k)", q + 2 * k, q=q, k=k))
        if has_softmax:
            found.append(kept.inside("TensorFlow: pieces of the softmax", "a s", width, a=a))
    elif has_softmax:
        # The scores, and a mask of one byte. Without dropout Keras computes them in fp32.
        name, size = "TensorFlow: pieces of the softmax", 5 if is_fp32 else 9
        found.append(kept.inside(name, "a s", width, size, a=a))
    return [replace(each, source=TENSORFLOW_SOURCE) for each in found]
