"""The bytes of a training step are those of its messages, counted device by device."""

import math
from collections import Counter
from itertools import product

import pytest

from tfdist.errors import ConfigError
from tfdist.planner import (
    Device,
    Experts,
    Training,
    Transformer,
    count_parameters,
    find_device,
    pipeline_bubble,
    step_traffic,
    traffic_seconds,
)

MIXED = {"weight": 2, "gradient": 2, "activation": 2}


class Job:
    """Counts what each device (tensor, pipeline, data index) sends, for each purpose."""

    def __init__(self, model, training):
        self.model, self.training = model, training
        self.sent = {name: Counter() for name in ("data", "tensor", "pipeline", "expert")}
        t, p, d = training.tensor, training.pipeline, training.data
        self.devices = list(product(range(t), range(p), range(d)))
        self.tokens = training.sequence * training.micro_batch
        self.tensor = self.tokens * model.hidden * MIXED["activation"]

    def collective(self, name, group, nbytes, passes):
        """A reduce-scatter or an all-gather is one pass, an all-reduce two."""
        for each in group:
            self.sent[name][each] += passes * (len(group) - 1) * nbytes / len(group)

    def tensor_group(self, member):
        return [each for each in self.devices if each[1:] == member[1:]]

    def data_group(self, member):
        return [each for each in self.devices if each[:2] == member[:2]]

    def run(self):
        training = self.training
        stages = training.pipeline * training.interleaved
        per_stage = self.model.layers // stages
        for _ in range(training.micro_batches):
            for tensor_index, data_index in product(range(training.tensor), range(training.data)):
                for stage in range(stages):
                    here = (tensor_index, stage % training.pipeline, data_index)
                    if stage == 0 and tensor_index == 0:
                        self.embedding(here)
                    self.forward_and_backward(here, stage, stages, per_stage)
                    if stage == stages - 1 and tensor_index == 0:
                        self.head(here)
        for member in self.devices:
            if member[2] == 0:
                self.gradients(self.data_group(member))
        return {name: max(sent.values(), default=0) for name, sent in self.sent.items()}

    def embedding(self, here):
        """Each device looks up some rows, and they add what they found."""
        self.collective("tensor", self.tensor_group(here), self.tensor, 2)

    def head(self, here):
        """Each device has the gradient of some logits, and they add those of the inputs."""
        gathers = 1 if self.training.sequence_parallel else 0
        self.collective("tensor", self.tensor_group(here), self.tensor, 2 + gathers)

    def forward_and_backward(self, here, stage, stages, per_stage):
        training, tensor_index = self.training, here[0]
        passes = ["forward", "backward"]
        if training.recomputation == "full":
            passes.append("forward")
        for layer in range(per_stage):
            number = stage * per_stage + layer
            for each in passes:
                for _block in range(1 if self.model.parallel_block else 2):
                    if tensor_index == 0:  # once for the group
                        gathered_again = each == "backward" and training.sequence_parallel
                        group = self.tensor_group(here)
                        self.collective("tensor", group, self.tensor, 3 if gathered_again else 2)
                if self.model.experts and number >= self.model.experts.dense_layers:
                    self.tokens_to_experts(here)
        share = training.tensor if training.sequence_parallel else 1
        for neighbour in (stage + 1, stage - 1):  # the activations, and the gradients
            if 0 <= neighbour < stages and training.pipeline > 1:
                self.sent["pipeline"][here] += self.tensor / share

    def tokens_to_experts(self, here):
        """Dispatch and combine: a token for each of its experts, to each device alike."""
        e, active = self.training.expert, self.model.experts.active
        for _ in ("dispatch", "combine"):
            for other in range(e):
                if other != here[2] % e:
                    self.sent["expert"][here] += active * self.tensor / e

    def gradients(self, group):
        pipeline_index = group[0][1]
        last = pipeline_index == self.training.pipeline - 1
        count = parameters_of(self.model, self.training, pipeline_index)
        nbytes = count / self.training.tensor
        m = self.training.micro_batches
        weight, gradient = MIXED["weight"], MIXED["gradient"]
        times = {
            0: 2 * gradient,
            1: gradient + weight,
            2: m * gradient + weight,
            3: m * (gradient + 2 * weight),
        }[self.training.zero]
        self.collective("data", group, nbytes * times, 1)
        if self.model.tied and self.training.pipeline > 1 and (pipeline_index == 0 or last):
            copy = self.model.vocabulary * self.model.hidden / self.training.tensor * gradient
            for each in group:
                self.sent["pipeline"][each] += copy


def parameters_of(model, training, pipeline_index):
    """The parameters of one device of a pipeline, by counting whole models."""
    empty = Transformer(**{**vars_of(model), "layers": 1})
    two = Transformer(**{**vars_of(model), "layers": 2})
    layer = count_parameters(two).value - count_parameters(empty).value
    count = layer * model.layers // training.pipeline
    norm = 2 * model.hidden
    if pipeline_index == 0:
        count += (model.vocabulary + model.positions) * model.hidden
    if pipeline_index == training.pipeline - 1:
        count += norm
        if not model.tied or training.pipeline > 1:
            count += model.vocabulary * model.hidden
    return count


def vars_of(model):
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


def model_of(**changes):
    sizes = {"layers": 8, "hidden": 16, "heads": 2, "vocabulary": 50, "positions": 32}
    return Transformer(**{**sizes, **changes})


PLACES = [
    {},
    {"data": 4},
    {"tensor": 2},
    {"tensor": 4, "sequence_parallel": True},
    {"pipeline": 2},
    {"pipeline": 4},
    {"pipeline": 2, "interleaved": 2},
    {"pipeline": 4, "interleaved": 2},
    {"tensor": 2, "pipeline": 4, "data": 2},
    {"tensor": 2, "pipeline": 4, "data": 2, "sequence_parallel": True, "interleaved": 2},
    {"tensor": 2, "recomputation": "full"},
    {"tensor": 2, "recomputation": "full", "sequence_parallel": True},
    {"tensor": 2, "recomputation": "selective"},
    *({"data": 4, "zero": zero, "tensor": 2} for zero in (1, 2, 3)),
]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("change", [{}, {"tied": False}, {"parallel_block": True}], ids=str)
def test_each_part_is_the_most_that_a_device_sends(place, change):
    model = model_of(**change)
    training = Training(global_batch=16, sequence=8, micro_batch=2, **place)
    traffic = step_traffic(model, training)
    for name, most in Job(model, training).run().items():
        if name == "pipeline" and training.pipeline > 1 and model.tied:
            continue  # the ends send the embedding, the middle more activations: see below
        assert traffic.part(name) == pytest.approx(most), name
    assert traffic.value == sum(part.value for part in traffic.parts)


@pytest.mark.parametrize("p", [2, 4])
def test_a_tied_embedding_is_added_between_the_ends_of_a_pipeline(p):
    training = Training(global_batch=16, sequence=8, micro_batch=2, pipeline=p)
    tied, untied = (step_traffic(model_of(tied=tied), training) for tied in (True, False))
    assert tied.part("pipeline") - untied.part("pipeline") == 50 * 16 * 2
    counted = Job(model_of(), training).run()["pipeline"]
    if p == 2:  # both are ends
        assert tied.part("pipeline") == counted
    else:
        assert untied.part("pipeline") < tied.part("pipeline")
        assert counted < tied.part("pipeline") <= counted + 50 * 16 * 2


@pytest.mark.parametrize(
    "place", [{"expert": 2}, {"expert": 4}, {"expert": 4, "tensor": 2}], ids=str
)
@pytest.mark.parametrize("recomputation", ["none", "full"])
@pytest.mark.parametrize("active", [1, 2])
def test_tokens_travel_to_their_experts_and_back(place, recomputation, active):
    model = model_of(experts=Experts(count=8, active=active, dense_layers=1))
    training = Training(
        global_batch=16, sequence=8, micro_batch=2, data=4, recomputation=recomputation, **place
    )
    assert step_traffic(model, training).part("expert") == Job(model, training).run()["expert"]


def test_an_expert_has_fewer_copies_than_a_layer():
    model = model_of(experts=Experts(count=8, active=2, shared=1), bias="none")
    traffic = {
        e: step_traffic(model, Training(global_batch=8, data=8, expert=e)).parts[0]
        for e in (1, 2, 8)
    }
    routed = 8 * 8 * 2 * 16 * 64  # layers, experts, matrices
    everything = count_parameters(model).value
    for e, data in traffic.items():
        copies = 8 // e
        expected = 2 * 2 * routed / e * (copies - 1) / copies
        assert data.part("expert gradients") == expected
        assert data.part("gradients") == 2 * 2 * (everything - routed) * 7 / 8


def test_a_stage_of_mixed_layers_is_counted_whole_without_a_pipeline():
    model = model_of(experts=Experts(count=4, active=1, dense_layers=3))
    training = Training(global_batch=2, data=2)
    assert step_traffic(model, training).part("data") == 2 * 2 * count_parameters(model).value / 2


def test_zero_has_the_factors_of_its_paper():
    # 2, 2 and 3 times the parameters, in bytes of 2, for one micro-batch and many groups.
    model, d = model_of(), 1024
    sent = [
        step_traffic(model, Training(global_batch=d, data=d, zero=zero)).part("data")
        for zero in range(4)
    ]
    unit = 2 * count_parameters(model).value * (d - 1) / d
    assert sent == pytest.approx([2 * unit, 2 * unit, 2 * unit, 3 * unit])


def test_stages_that_keep_no_gradient_exchange_it_for_each_micro_batch():
    def sent(zero, micro_batch):
        training = Training(global_batch=16, micro_batch=micro_batch, data=2, zero=zero)
        return step_traffic(model_of(), training).part("data")

    unit = count_parameters(model_of()).value
    assert [sent(zero, 8) for zero in range(4)] == [2 * unit, 2 * unit, 2 * unit, 3 * unit]
    assert [sent(zero, 2) for zero in range(4)] == [2 * unit, 2 * unit, 5 * unit, 12 * unit]


def test_sequence_parallelism_adds_the_second_gather_alone():
    whole, split = (
        step_traffic(model_of(), Training(tensor=4, sequence_parallel=split)).parts[0]
        for split in (False, True)
    )
    assert split.part("layers") / whole.part("layers") == 10 / 8


def test_precision_changes_the_bytes():
    def sent(precision):
        training = Training(global_batch=4, data=2, tensor=2, zero=1, precision=precision)
        traffic = step_traffic(model_of(), training)
        return traffic.part("data"), traffic.part("tensor")

    data, tensor = sent("mixed")
    assert sent("fp32") == (2 * data, 2 * tensor)
    assert sent("mixed, fp32 gradients") == (1.5 * data, tensor)
    assert sent("keras mixed_float16") == (2 * data, tensor)


def test_one_device_sends_nothing():
    traffic = step_traffic(model_of(), Training())
    assert (traffic.value, traffic.parts) == (0, ())
    assert traffic_seconds(model_of(), Training(), find_device("a100-80g")).value == 0


@pytest.mark.parametrize(
    ("layers", "pipeline", "interleaved", "most"), [(8, 4, 1, 2), (9, 4, 1, 3), (9, 2, 2, 6)]
)
def test_the_device_with_the_most_layers_counts(layers, pipeline, interleaved, most):
    training = Training(tensor=2, pipeline=pipeline, interleaved=interleaved, sequence=4)
    tensor = step_traffic(model_of(layers=layers), training).parts[0]
    assert tensor.part("layers") == most * 8 * (4 * 16 * 2) / 2


def test_the_bubble_is_that_of_the_schedule():
    def idle(p, m):
        """Runs m forward and m backward passes through p stages; one as long as the other."""
        free, ready = [0] * p, [0] * m
        for stages in (range(p), reversed(range(p))):
            for stage in stages:
                for micro_batch in range(m):
                    start = max(free[stage], ready[micro_batch])
                    free[stage] = ready[micro_batch] = start + 1
        return (max(free) - 2 * m) / (2 * m)

    for p, m in [(1, 4), (2, 3), (4, 8), (8, 2)]:
        training = Training(global_batch=m, micro_batch=1, pipeline=p)
        assert pipeline_bubble(training).value == pytest.approx(idle(p, m))
    halved = Training(global_batch=8, micro_batch=1, pipeline=4, interleaved=2)
    assert pipeline_bubble(halved).value == 3 / 16


HERE = Device("here", 1, 1, 1, 1, 800.0, 100.0, 4, 0, "", "a test")


def test_a_group_within_a_machine_uses_its_link():
    training = Training(global_batch=4, tensor=4)
    sent = step_traffic(model_of(), training).value
    assert traffic_seconds(model_of(), training, HERE).value == sent / 800


def test_a_group_on_several_machines_sends_a_part_over_the_network():
    # 8 devices on 2 machines of 4. Inside 3/4, between machines (1/2)/4, together 7/8.
    training = Training(global_batch=8, data=8)
    sent = step_traffic(model_of(), training).value
    expected = sent * ((3 / 4) / 800 + (1 / 8) / 100) / (7 / 8)
    assert traffic_seconds(model_of(), training, HERE).part("data") == pytest.approx(expected)


def test_tensor_groups_push_the_other_groups_apart():
    training = Training(global_batch=4, tensor=4, data=2, pipeline=2, micro_batch=1)
    traffic = step_traffic(model_of(), training)
    seconds = traffic_seconds(model_of(), training, HERE)
    for name, bandwidth in (("tensor", 800), ("data", 100), ("pipeline", 100)):
        assert seconds.part(name) == pytest.approx(traffic.part(name) / bandwidth)
    inside = Training(global_batch=1, pipeline=4)
    sent = step_traffic(model_of(), inside).value
    assert traffic_seconds(model_of(), inside, HERE).value == pytest.approx(sent / 800)


def test_an_expert_group_sends_to_each_of_its_devices_alike():
    model = model_of(experts=Experts(count=8, active=2))
    training = Training(global_batch=8, data=8, expert=8)
    sent = step_traffic(model, training).part("expert")
    expected = sent * (3 / 7 / 800 + 4 / 7 / 100)
    assert traffic_seconds(model, training, HERE).part("expert") == pytest.approx(expected)


def test_every_quantity_says_where_it_comes_from():
    model = model_of(experts=Experts(count=8, active=2))
    training = Training(global_batch=16, data=4, expert=2, tensor=2, pipeline=2, zero=1)
    for root in (step_traffic(model, training), traffic_seconds(model, training, HERE)):
        for _, quantity in root.walk():
            assert quantity.unit in ("bytes", "seconds")
            assert math.isfinite(quantity.value)
            assert quantity.parts or (quantity.formula and quantity.values and quantity.source)


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ConfigError) as caught:
        step_traffic(model_of(), Training(pipeline=4, interleaved=4))
    assert caught.value.field == "pipeline"


@pytest.mark.parametrize("moe", [None, Experts(count=6, active=2)])
def test_experts_that_do_not_divide_are_refused(moe):
    with pytest.raises(ConfigError) as caught:
        step_traffic(model_of(experts=moe), Training(global_batch=4, data=4, expert=4))
    assert caught.value.field == "expert"
