"""Each figure of the page on memory, computed again."""

import re
from dataclasses import replace
from pathlib import Path

from tfdist.planner.activations import layer_activations
from tfdist.planner.capacity import fits
from tfdist.planner.devices import find_device
from tfdist.planner.inference import inference_memory, kv_cache_per_token
from tfdist.planner.memory import CONTEXT, bytes_per_parameter, training_memory
from tfdist.planner.parameters import count_parameters
from tfdist.planner.training import OPTIMIZERS, PRECISIONS, Training
from tfdist.planner.transformer import LatentAttention, Transformer

PAGE = (Path(__file__).parents[2] / "docs/planner/memory.md").read_text("utf-8")
TEXT = " ".join(PAGE.split())
GIB, MIB = 2**30, 2**20
GPT3 = Transformer(layers=96, hidden=12288, heads=96, vocabulary=51200, positions=2048)
GPT2 = Transformer(layers=12, hidden=768, heads=12, vocabulary=50257, positions=1024)
TRAINING = Training(
    **{"global_batch": 64, "micro_batch": 1, "sequence": 2048, "tensor": 8, "pipeline": 8},
    **{"interleaved": 3, "precision": "mixed, fp32 gradients"},
)
BOTH = {"sequence_parallel": True, "recomputation": "selective"}
LAYOUTS = {
    "tensor and pipeline parallelism alone": {},
    "sequence parallelism": {"sequence_parallel": True},
    "selective recomputation": {"recomputation": "selective"},
    "both": BOTH,
    "full recomputation alone": {"recomputation": "full"},
    "both, with 8 groups and ZeRO 1": {**BOTH, "data": 8, "zero": 1, "global_batch": 512},
    "both, with 8 groups and ZeRO 3": {**BOTH, "data": 8, "zero": 3, "global_batch": 512},
}


def table(heading):
    """The rows of the table with this heading, as lists of cells."""
    lines = iter(PAGE.splitlines())
    assert heading in lines, heading
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def has(text):
    return text in TEXT


def gib(value, places=2):
    return f"{value / GIB:.{places}f}"


def test_bytes_of_a_parameter():
    columns = {"sgd": 4, "momentum": 5, "adagrad": 5, "adam": 6}
    rows = table(
        "| `precision` | weight | gradient | weight in fp32 | sgd | momentum, adagrad | adam |"
    )
    assert [row[0] for row in rows] == list(PRECISIONS)
    for row in rows:
        for optimizer in OPTIMIZERS:
            found = bytes_per_parameter(Training(precision=row[0], optimizer=optimizer))
            assert found.part("weights") == sum(int(n) for n in re.findall(r"\d+", row[1]))
            assert found.part("gradients") == int(row[2])
            assert found.part("slots") == int(row[3] or 0) + int(row[columns[optimizer]])


def test_states_of_gpt_3():
    count = count_parameters(GPT3).value
    each = bytes_per_parameter(Training(precision="mixed, fp32 gradients")).value
    assert has(f"its {count / 1e9:.1f} billion parameters")
    assert has(f"needs {each} bytes for each parameter, so {gib(count * each, 1)} GiB in all")
    assert bytes_per_parameter(Training(precision="keras mixed_float16")).value == 18
    zero = [bytes_per_parameter(Training(64, data=64, zero=z)).value * 7.5 for z in range(4)]
    assert has("needs {:.0f}, {:.1f}, {:.1f} and {:.1f} GB".format(*zero))


def test_operations_of_a_layer_of_gpt_3():
    layer = layer_activations(GPT3, Training(sequence=2048))
    rows = table("| operation | keeps | bytes | of GPT-3, MiB |")
    assert sorted(float(row[3]) for row in rows) == sorted(p.value / MIB for p in layer.parts)
    s, b, h, a = 2048, 1, 12288, 96
    for _, _, formula, mebibytes in rows:
        factor = int(re.match(r"\d*", formula)[0] or 1)
        square = a * s**2 * b if "a s^2 b" in formula else s * b * h
        assert factor * square == float(mebibytes) * MIB
    assert layer.value == s * b * (34 * h + 5 * a * s)
    assert has(f"It is {gib(layer.value)} GiB for one layer")
    assert has(f"and {gib(96 * layer.value, 1)} GiB for all 96 layers")
    squares = sum(part.value for part in layer.parts if "softmax" in part.name)
    assert squares / layer.value > 2 / 3


def test_the_first_device_of_gpt_3():
    rows = table("| | weights | gradients | slots | activations | workspace | sum |")
    assert [row[0] for row in rows] == list(LAYOUTS)
    names = ("weights", "gradients", "slots", "activations", "workspace")
    for row in rows:
        found = training_memory(GPT3, replace(TRAINING, **LAYOUTS[row[0]]))
        assert found.name == "training memory, stage 0 of the pipeline"
        assert row[1:] == [*(gib(found.part(name)) for name in names), gib(found.value)]
    for layout in ("tensor and pipeline parallelism alone", "both"):
        found = training_memory(GPT3, replace(TRAINING, **LAYOUTS[layout]))
        (kept,) = [part for part in found.parts if part.name == "activations"]
        assert has(f"{kept.part('layers') / GIB} GiB")
    first_five = [
        fits(GPT3, replace(TRAINING, **options), find_device("a100-80g"))
        for options in list(LAYOUTS.values())[:5]
    ]
    assert first_five == [False, False, False, True, True]


def test_logits_and_workspace():
    small = training_memory(GPT2, Training(sequence=1024, flash_attention=True))
    (kept,) = [part for part in small.parts if part.name == "activations"]
    assert has(f"keeps {gib(kept.part('layers'))} GiB in its layers")
    assert has(f"needs {gib(small.part('logits'))} GiB for logits")
    last = training_memory(GPT3, replace(TRAINING, **BOTH), stage=7)
    assert has(f"For GPT-3 it is {gib(last.part('logits'))} GiB on the last device")
    assert has(f"{gib(CONTEXT)} GiB for the context of the device")


def test_tensorflow_against_resident_memory():
    model = Transformer(4, 256, 4, 1000, tied=False, head_bias=True)

    def growth(dropout, framework):
        few, many = (
            training_memory(
                model, Training(b, 256, precision="fp32", dropout=dropout), framework=framework
            ).value
            for b in (4, 20)
        )
        return f"{(many - few) / 16 / 1e6:.1f}"

    pieces, fused = (
        [growth(dropout, framework) for dropout in (False, True)]
        for framework in ("tensorflow", "megatron")
    )
    assert has("The formulas say {} ({}) with".format(*pieces))
    assert has('`framework="tensorflow"`, and {} ({}) without'.format(*fused))


def test_caches():
    latent = LatentAttention(512, 1536, 128, 64, 128)
    models = {
        "multi-head": Transformer(32, 4096, 32, 32000),
        "grouped": Transformer(80, 8192, 64, 128256, kv_heads=8),
        "multi-query": Transformer(118, 18432, 48, 256000, head_dim=256, kv_heads=1),
        "latent": Transformer(60, 5120, 128, 102400, head_dim=128, latent=latent),
    }
    heading = "| | numbers for each layer and token | example | KiB for each token in 16 bits |"
    for kind, _, _, kibibytes in table(heading):
        assert kv_cache_per_token(models.pop(kind)).value == float(kibibytes) * 1024
    assert not models
    assert has(f"`kv_cache_per_token` is {kv_cache_per_token(GPT3).value / MIB} MiB for GPT-3")
    answer = inference_memory(GPT3, batch=8, sequence=2048, tensor=8)
    weights, cache, work = (gib(answer.part(n)) for n in ("weights", "cache", "workspace"))
    assert has(f"is {weights} GiB of weights, {cache} GiB of cache and {work} GiB of workspace")
