"""The memory of a training step: published figures, what must hold for every shape, and runs."""

import csv
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tfdist.errors import ConfigError
from tfdist.planner.inference import inference_memory
from tfdist.planner.memory import bytes_per_parameter, training_memory
from tfdist.planner.parameters import count_parameters
from tfdist.planner.stages import stage_of
from tfdist.planner.training import OPTIMIZERS, PRECISIONS, Training
from tfdist.planner.transformer import Experts, LatentAttention, Transformer

TABLES = Path(__file__).parent / "planner_tables"
GB, GIB = 1e9, 2**30
# Table 3 of arXiv 2205.05198: layers, hidden, heads, pipeline, interleaved, micro- and whole batch.
# The tensor parallelism is 8, the sequence 2048, the vocabulary 51200.
KORTHIKANTI = {
    "22B": (48, 6144, 64, 1, 1, 4, 4),
    "175B": (96, 12288, 96, 8, 3, 1, 64),
    "530B": (105, 20480, 128, 35, 3, 1, 280),
    "1T": (128, 25600, 160, 64, 1, 1, 512),
}
GPT = Transformer(layers=24, hidden=2048, heads=16, vocabulary=51200, positions=2048)
MOE = Transformer(
    layers=27,
    hidden=2048,
    heads=16,
    vocabulary=102400,
    head_dim=128,
    mlp=10944,
    gated_mlp=True,
    bias="none",
    norm="rms",
    tied=False,
    experts=Experts(count=64, active=6, mlp=1408, shared=2, dense_layers=1),
    latent=LatentAttention(512, 0, 128, 64, 128),
)


def rows(name):
    with (TABLES / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


FIGURES = rows("korthikanti2022_activation_fig1_fig7.csv")


def korthikanti(name, **options):
    layers, hidden, heads, pipeline, interleaved, micro, batch = KORTHIKANTI[name]
    model = Transformer(layers, hidden, heads, 51200, positions=2048)
    return model, Training(
        **{
            **{"global_batch": batch, "micro_batch": micro, "tensor": 8, "pipeline": pipeline},
            **{"interleaved": interleaved, "precision": "mixed, fp32 gradients", **options},
        }
    )


def kept_by_layers(name, **options):
    """GiB that the layers of the first stage keep."""
    found = part(training_memory(*korthikanti(name, **options), stage=0), "activations")
    return found.part("layers") / GIB


def part(quantity, *names):
    for name in names:
        (quantity,) = [each for each in quantity.parts if each.name == name]
    return quantity


@pytest.mark.parametrize("row", FIGURES, ids=list(KORTHIKANTI))
def test_figure_1_of_korthikanti_is_exact(row):
    name = row["model"]
    assert kept_by_layers(name) == float(row["act_none_GiB"])
    both = {"sequence_parallel": True, "recomputation": "selective"}
    assert kept_by_layers(name, **both) == float(row["act_seqsel_GiB"])
    # The paper counts the matrices of the layers alone.
    model, training = korthikanti(name)
    model = replace(model, bias="none", mlp_bias=False)
    found = training_memory(model, training, stage=0)
    states = [*part(found, "weights").parts, *part(found, "gradients").parts]
    states += [each for slot in part(found, "slots").parts for each in slot.parts]
    matrices = sum(each.value for each in states if each.name in ("attention", "mlp"))
    assert matrices / GIB == float(row["state_GiB"])


@pytest.mark.parametrize("row", FIGURES, ids=list(KORTHIKANTI))
def test_figure_7_of_korthikanti_is_met_to_the_width_of_a_line(row):
    """The percentages were read off a drawing: 0.15 of them is its precision."""
    name = row["model"]
    whole = kept_by_layers(name)
    for column, options in {
        "fig7_seq_pct": {"sequence_parallel": True},
        "fig7_sel_pct": {"recomputation": "selective"},
        "fig7_seqsel_pct": {"sequence_parallel": True, "recomputation": "selective"},
        "fig7_full_pct": {"recomputation": "full"},
    }.items():
        percent = 100 * kept_by_layers(name, **options) / whole
        assert percent == pytest.approx(float(row[column]), abs=0.15)


def test_the_ends_of_a_model_keep_what_section_4_3_says():
    model, training = korthikanti("175B", sequence_parallel=True)
    sbh = 2048 * 12288
    first = part(training_memory(model, training, stage=0), "activations")
    assert first.part("mask of the embedding's dropout") == sbh * 8 / 8  # p micro-batches over t
    last = training_memory(model, training, stage=7)
    kept = part(last, "activations")
    ends = kept.part("input of the last norm") + kept.part("input of the output head")
    assert ends == 4 * sbh / 8
    assert part(last, "logits").part("logits in fp32") == 4 * 2048 * 51200 / 8
    assert part(last, "logits").part("their gradient") == 2 * 2048 * 51200 / 8
    # Stages between the ends have neither.
    middle = training_memory(model, training, stage=3)
    assert [each.name for each in part(middle, "activations").parts] == ["layers"]
    assert middle.part("logits") == 0


def test_interleaved_stages_keep_more_micro_batches():
    model, training = korthikanti("175B")
    plain = replace(training, interleaved=1)
    assert stage_of(model, plain, 0).in_flight == 8
    assert stage_of(model, plain, 7).in_flight == 1
    assert float(stage_of(model, training, 0).in_flight) == pytest.approx(8 * (1 + 7 / (8 * 3)))
    few = replace(plain, global_batch=3)
    assert [stage_of(model, few, i).in_flight for i in (0, 4, 5, 6)] == [3, 3, 3, 2]


@pytest.mark.parametrize(("zero", "gb"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_needs_what_figure_1_of_its_paper_prints(zero, gb):
    """7.5 billion parameters on 64 devices (Rajbhandari et al. 2019)."""
    found = bytes_per_parameter(Training(global_batch=64, data=64, zero=zero))
    assert round(7.5 * found.value, 1) == gb


def test_gpt_2_needs_24_gb_for_its_states():
    """Section 3.1 of ZeRO's paper: 1.5 billion parameters, 16 bytes each."""
    assert 1.5 * bytes_per_parameter(Training()).value == 24


@pytest.mark.parametrize(
    ("precision", "optimizer", "expected"),
    [
        ("fp32", "sgd", (4, 4, 0)),
        ("fp32", "momentum", (4, 4, 4)),
        ("fp32", "adagrad", (4, 4, 4)),
        ("fp32", "adam", (4, 4, 8)),
        ("mixed", "sgd", (2, 2, 4)),
        ("mixed", "adam", (2, 2, 12)),
        ("mixed, fp32 gradients", "adam", (2, 4, 12)),
        ("keras mixed_float16", "adam", (6, 4, 8)),
    ],
)
def test_bytes_of_a_parameter(precision, optimizer, expected):
    found = bytes_per_parameter(Training(precision=precision, optimizer=optimizer))
    assert tuple(found.part(name) for name in ("weights", "gradients", "slots")) == expected


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [GPT, MOE], ids=["gpt", "moe"])
def test_one_device_holds_the_whole_model(model, precision, optimizer):
    training = Training(sequence=128, precision=precision, optimizer=optimizer)
    found, each = training_memory(model, training), bytes_per_parameter(training)
    count = count_parameters(model)
    for name in ("gradients", "slots"):
        assert found.part(name) == each.part(name) * count.value
    if precision == "keras mixed_float16":
        layers = sum(count.part(n) for n in ("attention", "mlp", "experts", "router"))
        assert found.part("weights") == 4 * count.value + 2 * layers
    else:
        assert found.part("weights") == each.part("weights") * count.value


def test_the_devices_of_a_pipeline_hold_the_model_once_and_a_tied_embedding_twice():
    training = Training(global_batch=8, sequence=128, micro_batch=1, pipeline=5)
    stages = [training_memory(GPT, training, stage=index) for index in range(5)]
    weights = sum(each.part("weights") for each in stages)
    assert weights == 2 * (count_parameters(GPT).value + 51200 * 2048)
    assert part(stages[4], "weights").part("head") == 2 * 51200 * 2048
    untied = [training_memory(MOE, training, stage=index) for index in range(5)]
    assert sum(each.part("weights") for each in untied) == 2 * count_parameters(MOE).value


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_tensor_parallel_devices_hold_the_matrices_once_and_small_vectors_each(tensor):
    found = training_memory(GPT, Training(sequence=128, tensor=tensor))
    held = tensor * found.part("weights") / 2 - count_parameters(GPT).value
    again = 2048 * 2048 + 24 * (4 + 2) * 2048 + 2 * 2048  # positions, norms, biases of outputs
    assert held == (tensor - 1) * again


def test_experts_are_divided_among_their_devices():
    whole = training_memory(MOE, Training(8, 128, data=8))
    divided = training_memory(MOE, Training(8, 128, data=8, expert=8))
    assert whole.part("slots") == pytest.approx(6 * whole.part("weights"))
    one, all_of_them = (part(each, "weights").part("experts") for each in (divided, whole))
    assert one == all_of_them / 8
    for name in ("shared experts", "router", "attention", "embedding"):
        assert part(divided, "weights").part(name) == part(whole, "weights").part(name)


def test_zero_divides_experts_among_those_that_hold_the_same():
    trainings = [Training(8, 128, data=8, expert=expert, zero=1) for expert in (1, 2, 8)]
    assert len({training_memory(MOE, each).part("slots") for each in trainings}) == 1


@pytest.mark.parametrize("model", [GPT, MOE], ids=["gpt", "moe"])
@pytest.mark.parametrize("data", [2, 64])
def test_each_stage_of_zero_needs_less(model, data):
    for recomputation, layers in itertools.product(("none", "full"), (1, model.layers)):
        one = replace(model, layers=layers, experts=model.experts if layers > 1 else None)
        options = {"data": data, "recomputation": recomputation, "sequence": 128}
        need = [training_memory(one, Training(64, **options, zero=z)).value for z in range(4)]
        assert need == sorted(need, reverse=True)
        assert need[3] < need[0]


@pytest.mark.parametrize("model", [GPT, MOE], ids=["gpt", "moe"])
def test_more_tensor_parallelism_never_needs_more(model):
    for options in ({}, {"sequence_parallel": True}, {"recomputation": "full", "pipeline": 3}):
        need = [training_memory(model, Training(6, tensor=t, **options)) for t in (1, 2, 4, 8, 16)]
        values = [each.value for each in need]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("model", [GPT, MOE], ids=["gpt", "moe"])
@pytest.mark.parametrize("framework", ["megatron", "tensorflow"])
def test_full_recomputation_needs_least(model, framework):
    for options in ({}, {"tensor": 8}, {"pipeline": 4, "micro_batch": 1}, {"dropout": False}):
        need = [
            training_memory(
                model, Training(8, **options, recomputation=each), framework=framework
            ).value
            for each in ("full", "selective", "none")
        ]
        assert need == sorted(need)
        assert need[0] < need[2]


def test_a_layer_that_is_recomputed_exists_once():
    full, none = (training_memory(GPT, Training(recomputation=each)) for each in ("full", "none"))
    layers = part(none, "activations").part("layers")
    inputs = part(full, "activations").part("layers")
    again = part(full, "workspace").part("layer that is recomputed")
    assert again == (layers - inputs) / 24
    assert part(none, "workspace").part("layer that is recomputed") == 0


def test_zero_gathers_one_layer_at_a_time():
    found = part(training_memory(GPT, Training(4, data=4, zero=3)), "workspace")
    layer = 12 * 2048**2 + 13 * 2048
    assert found.part("weights of a layer, gathered") == 2 * layer * 3 / 4
    assert found.part("gradients of a layer, not yet summed") == 2 * layer * 3 / 4
    assert part(training_memory(GPT, Training(4, data=4)), "workspace").parts[0].name == (
        "temporary tensors"
    )


DIVISIONS = [
    {"pipeline": 1},
    {"pipeline": 5},
    {"pipeline": 9, "global_batch": 3},
    {"pipeline": 4, "interleaved": 3},
    {"pipeline": 2, "interleaved": 12},
    {"pipeline": 7, "recomputation": "full", "tensor": 4},
    {"pipeline": 3, "zero": 3, "data": 2, "expert": 2},
]
SHAPES = [
    GPT,
    MOE,
    replace(MOE, experts=replace(MOE.experts, dense_layers=13)),
    replace(MOE, experts=replace(MOE.experts, count=8, active=1, dense_layers=6), mlp=40000),
    replace(GPT, layers=29, vocabulary=5_000_000),
    replace(GPT, layers=29, tied=False, embedding_norm=True),
]


@pytest.mark.parametrize("division", DIVISIONS, ids=str)
def test_the_largest_stage_of_all_is_found(division):
    training = Training(**{"global_batch": 48, "micro_batch": 1, "sequence": 512, **division})
    seen = set()
    for model in SHAPES:
        if training.pipeline * training.interleaved > model.layers:
            continue
        if model.experts is None:
            training = replace(training, expert=1)
        stages = range(training.pipeline)
        need = [training_memory(model, training, stage=index) for index in stages]
        largest = training_memory(model, training)
        assert largest.value == max(each.value for each in need)
        seen.add(largest.name)
        # The layers of all stages are those of the model.
        held = [stage_of(model, training, index).model for index in stages]
        assert sum(each.layers for each in held) == model.layers
        assert sum(each.expert_layers for each in held) == model.expert_layers
    assert seen
    if training.pipeline == 5:
        assert len(seen) > 1, "the first stage is not always the largest"


def formula_value(quantity):
    """What the formula says with the values put in: letters side by side are multiplied."""
    tokens = re.findall(r"[A-Za-z]'?|[\d.]+|[-+/()]", quantity.formula)
    code, before = "", ""
    for token in tokens:
        if re.match(r"[\w(]", token) and re.match(r"[\w)]", before[:1] or " "):
            code += "*"
        known = re.match("[A-Za-z]", token)
        code += f"({quantity.values[token]!r})" if known else token
        before = token
    return eval(code)


def test_every_formula_with_its_values_gives_the_value():
    options = ({}, {"recomputation": "selective", "zero": 3, "data": 2, "expert": 2})
    options += ({"tensor": 4, "sequence_parallel": True, "pipeline": 3, "interleaved": 2},)
    options += ({"flash_attention": True, "precision": "keras mixed_float16", "pipeline": 9},)
    count = 0
    norms = replace(GPT, qk_norm="head", relative_positions=True, embedding_norm=True)
    for model, each, stage in itertools.product((GPT, MOE, norms), options, (0, -1)):
        if each.get("expert") and model.experts is None:
            continue
        training = Training(**{"global_batch": 12, "micro_batch": 1, **each})
        index = stage % training.pipeline
        found = training_memory(model, training, stage=index, framework="tensorflow")
        answer = inference_memory(model, 3, 1000, "int8")
        for _, quantity in itertools.chain(found.walk(), answer.walk()):
            if quantity.formula:
                assert formula_value(quantity) == pytest.approx(quantity.value), quantity
                count += 1
            elif quantity.parts:
                assert sum(p.value for p in quantity.parts) == pytest.approx(quantity.value)
    assert count > 500


def test_a_wrong_formula_is_found():
    quantity = part(training_memory(GPT, Training()), "weights", "mlp")
    wrong = replace(quantity, formula=quantity.formula.replace("+ h", ""))
    assert formula_value(quantity) == quantity.value
    assert formula_value(wrong) != wrong.value


def test_bigscience_measured_what_the_interval_says():
    """Runs on A100 of 80 GB: fp16, ZeRO 1 of DeepSpeed, full recomputation (BLOOM's tuning)."""
    ratios, out_of_memory = [], []
    for row in rows("bigscience_memory.csv"):
        layers, hidden, heads, data, tensor, pipeline, micro = (
            int(row[name])
            for name in ("layers", "hidden", "heads", "data", "tensor", "pipeline", "micro_batch")
        )
        model = Transformer(layers, hidden, heads, vocabulary=250_880)
        found = training_memory(
            model,
            Training(
                **{"global_batch": 64 * data * micro, "micro_batch": micro, "data": data},
                **{"tensor": tensor, "pipeline": pipeline, "zero": 1},
                **{"recomputation": "full", "dropout": False},
            ),
        )
        if row["measured_gb"] == "OOM":
            out_of_memory.append([end / GIB for end in found.interval])
        else:
            ratios.append(float(row["measured_gb"]) * GIB / found.value)
            assert found.value < float(row["measured_gb"]) * GIB < found.interval[1]
    assert len(ratios) == 26
    assert (round(min(ratios), 2), round(max(ratios), 2)) == (1.20, 1.51)
    assert [(least > 80, most > 80) for least, most in out_of_memory] == [
        (True, True),
        (False, True),
        (False, True),
    ]


def test_the_name_says_which_stage_needs_most():
    assert training_memory(GPT, Training()).name == "training memory"
    training = Training(global_batch=8, micro_batch=1, pipeline=4, sequence=128)
    large = replace(GPT, vocabulary=5_000_000, positions=0, tied=False)
    assert training_memory(GPT, training).name == "training memory, stage 0 of the pipeline"
    assert training_memory(large, training).name == "training memory, stage 3 of the pipeline"


def test_json_has_the_parts_that_users_look_for():
    found = training_memory(GPT, Training(data=1)).as_json()
    assert set(found["parts"]) == {
        "weights",
        "gradients",
        "slots",
        "activations",
        "logits",
        "workspace",
    }
    assert found["parts"]["slots"]["parts"]["first moment"]["parts"]["norms"] == 4 * 49 * 2 * 2048


@pytest.mark.parametrize(
    ("model", "training", "options", "field"),
    [
        (None, Training(), {}, "model"),
        (GPT, None, {}, "training"),
        (GPT, Training(), {"framework": "jax"}, "framework"),
        (GPT, Training(), {"stage": -1}, "stage"),
        (GPT, Training(), {"stage": 1}, "stage"),
        (GPT, Training(8, pipeline=4), {"stage": 4}, "stage"),
        (GPT, Training(8, pipeline=4), {"stage": 1.5}, "stage"),
        (MOE, Training(6, data=3, expert=3), {}, "expert"),
    ],
)
def test_wrong_input_is_named(model, training, options, field):
    with pytest.raises(ConfigError) as caught:
        training_memory(model, training, **options)
    assert caught.value.field == field


def test_bytes_of_a_parameter_need_a_training():
    with pytest.raises(ConfigError, match="training"):
        bytes_per_parameter("mixed")


def test_numbers_of_any_size_are_answered_in_no_time():
    most = 10**9
    model = Transformer(most, 10**6, 10**6, most, experts=Experts(most, 2, dense_layers=most // 3))
    training = Training(most, most, 1, pipeline=10**6, interleaved=999)
    assert training_memory(model, training).value > 1e20
