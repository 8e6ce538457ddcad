"""Training from human feedback (RLHF) in three phases, as InstructGPT and ChatGPT were trained.

1. Supervised: the policy, a pretrained model, learns from answers that people wrote.
2. Reward: a second model learns from rankings of answers to predict which answer people prefer.
3. PPO: the policy generates answers, the reward model rates them, and the policy learns from that.

PPO needs four models in memory at the same time: the actor, which is the policy, and the critic,
which predicts the reward, are trained; a reference, the policy as it was, and the reward model are
not.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

from tfdist.errors import ConfigError, checked_integer
from tfdist.planner.compute import (
    UNIT,
    Work,
    attended,
    checked_instance,
    operations,
    product,
    with_backward,
)
from tfdist.planner.devices import Device
from tfdist.planner.generation import generation_flops, generation_time
from tfdist.planner.parameters import count_parameters
from tfdist.planner.quantity import Quantity
from tfdist.planner.transformer import LARGEST, Transformer
from tfdist.planner.utilization import sum_of_times, training_time

SOURCE = "arXiv 2203.02155, table 6 and appendix C"


@dataclass(frozen=True)
class Rlhf:
    """How much is trained in each phase. The defaults are those of InstructGPT (arXiv 2203.02155).

    The paper prints the most tokens of a prompt and of a response, and no mean. So the defaults
    plan for the most.

    Attributes:
        prompt: tokens of a prompt.
        response: tokens of an answer.
        demonstrations: prompts with a written answer, for the supervised phase.
        supervised_epochs: how often each is read.
        ranked_prompts: prompts with several ranked answers, for the reward model.
        completions: ranked answers of each; InstructGPT has 4 to 9.
        reward_epochs: how often each is read.
        episodes: answers that PPO generates and learns from.
        rollout: episodes that are generated before the policy changes.
        ppo_epochs: how often PPO learns from an episode.
        pretraining: texts of the pretraining, of `prompt + response` tokens, that the policy also
            learns from, for each episode (PPO-ptx); 0 for none.
        trained_bytes: bytes of memory for each parameter that is trained: 16 are weights and
            gradients in 16 bits, and weights and the two slots of Adam in fp32.
        frozen_bytes: for each parameter that is not.
    """

    prompt: int = 1024
    response: int = 1024
    demonstrations: int = 12_725
    supervised_epochs: int = 16
    ranked_prompts: int = 33_207
    completions: int = 9
    reward_epochs: int = 1
    episodes: int = 256_000
    rollout: int = 512
    ppo_epochs: int = 1
    pretraining: int = 8
    trained_bytes: int = 16
    frozen_bytes: int = 2

    def __post_init__(self) -> None:
        for each in fields(self):
            least = 0 if each.name == "pretraining" else 1
            checked_integer(each.name, getattr(self, each.name), least, LARGEST)
        if self.episodes % self.rollout:
            rule = f"must be a multiple of rollout ({self.rollout})"
            raise ConfigError("episodes", self.episodes, rule)


@dataclass(frozen=True)
class RlhfPhase:
    """What one phase needs.

    Attributes:
        name: "supervised", "reward" or "ppo".
        parameters: of all models in memory; the parts are the models.
        states: bytes of weights, gradients and slots; the parts are the models.
        flops: the parts are what is computed.
        time: in seconds.
    """

    name: str
    parameters: Quantity
    states: Quantity
    flops: Quantity
    time: Quantity

    def as_json(self) -> dict[str, Any]:
        """All figures as plain data."""
        return {
            "parameters": self.parameters.as_json(),
            "states_bytes": self.states.as_json(),
            "flops": self.flops.as_json(),
            "time_secs": self.time.as_json(),
        }


def plan_rlhf(
    policy: Transformer,
    reward: Transformer,
    device: Device,
    devices: int,
    *,
    rlhf: Rlhf | None = None,
    copies: int = 1,
    mfu: float | None = None,
) -> tuple[RlhfPhase, RlhfPhase, RlhfPhase]:
    """The three phases, one after another on the same devices.

    All matrices of scores are counted whole, except in generation.

    Args:
        policy: the shape of the model that is trained.
        reward: the shape of the reward model and of the critic. A single output takes the place of
            its head.
        device: one of the devices.
        devices: their number.
        rlhf: how much is trained; None for what InstructGPT was trained with.
        copies: copies of the actor that generate, each on `devices / copies` devices. Few large
            copies read their weights less often; many small ones do not fit into memory.
        mfu: as in `training_time`.

    Raises:
        ConfigError: an argument is wrong.
    """
    checked_instance("policy", policy, Transformer)
    checked_instance("reward", reward, Transformer)
    rlhf = Rlhf() if rlhf is None else rlhf
    checked_instance("rlhf", rlhf, Rlhf)
    devices = checked_integer("devices", devices, 1, LARGEST)
    copies = checked_integer("copies", copies, 1, devices)
    if devices % copies or rlhf.rollout % copies:
        rule = f"must divide devices ({devices}) and rollout ({rlhf.rollout})"
        raise ConfigError("copies", copies, rule)

    whole = rlhf.prompt + rlhf.response
    supervised = _learning(policy, rlhf.demonstrations * rlhf.supervised_epochs, whole)
    answers = rlhf.ranked_prompts * rlhf.completions * rlhf.reward_epochs
    ranking = _learning(reward, answers, whole, classes=1)
    generation = generation_flops(policy, rlhf.episodes, rlhf.prompt, rlhf.response)
    learning = _ppo_learning(policy, reward, rlhf)

    def seconds(flops: Quantity) -> Quantity:
        return training_time(flops, device, devices, mfu=mfu)

    rollout = generation_time(
        policy,
        rlhf.rollout // copies,
        rlhf.prompt,
        rlhf.response,
        device,
        devices // copies,
        mfu=mfu,
    )
    rollouts = rlhf.episodes // rlhf.rollout
    generating = sum_of_times(
        "generation", [part.repeated(rollouts, "i") for part in rollout.parts]
    )
    ppo_time = sum_of_times("time", [generating, replace(seconds(learning), name="learning")])

    actor, critic = _size("actor", policy), _size("critic", reward, scalar=True)
    reference, rater = _size("reference", policy), _size("reward", reward, scalar=True)
    ppo = Quantity.sum_of("ppo", UNIT, [generation, learning])
    return (
        _phase("supervised", [actor], [], rlhf, supervised, seconds(supervised)),
        _phase("reward", [rater], [], rlhf, ranking, seconds(ranking)),
        _phase("ppo", [actor, critic], [reference, rater], rlhf, ppo, ppo_time),
    )


def _ppo_learning(policy: Transformer, reward: Transformer, rlhf: Rlhf) -> Quantity:
    """FLOPs of PPO apart from generation: three models rate an episode, two learn from it."""
    whole, epochs = rlhf.prompt + rlhf.response, rlhf.episodes * rlhf.ppo_epochs

    def rated(name: str, model: Transformer, classes: int | None = None) -> Quantity:
        return Quantity.sum_of(name, UNIT, _forward(model, rlhf.episodes, whole, classes))

    parts = [
        rated("reference", policy),
        rated("reward", reward, 1),
        rated("values of the critic", reward, 1),
        replace(_learning(policy, epochs, whole), name="actor"),
        replace(_learning(reward, epochs, whole, classes=1), name="critic"),
    ]
    if texts := rlhf.episodes * rlhf.pretraining:
        parts.append(replace(_learning(policy, texts, whole), name="pretraining"))
    return Quantity.sum_of("learning", UNIT, parts, SOURCE)


def _learning(
    model: Transformer, sequences: int, length: int, *, classes: int | None = None
) -> Quantity:
    return with_backward(_forward(model, sequences, length, classes), [])


def _forward(
    model: Transformer, sequences: int, length: int, classes: int | None
) -> list[Quantity]:
    tokens = Fraction(sequences * length)
    pairs = Fraction(sequences * attended(length, model.window, causal=False))
    return operations(model, Work(tokens, pairs, tokens, tokens), classes=classes)


def _size(name: str, model: Transformer, *, scalar: bool = False) -> Quantity:
    """Parameters of a model, which may have a single output in place of its head."""
    found = count_parameters(model)
    if not scalar:
        return replace(found, name=name)
    scorer = Quantity("scalar head", model.hidden, "parameters", "h", {"h": model.hidden})
    body = [part for part in found.parts if part.name != "head"]
    return Quantity.sum_of(name, "parameters", [*body, scorer])


def _phase(
    name: str,
    trained: list[Quantity],
    frozen: list[Quantity],
    rlhf: Rlhf,
    flops: Quantity,
    time: Quantity,
) -> RlhfPhase:
    sizes = Quantity.sum_of("parameters", "parameters", [*trained, *frozen])
    bytes_of = [(each, rlhf.trained_bytes) for each in trained]
    bytes_of += [(each, rlhf.frozen_bytes) for each in frozen]
    states = [
        product(each.name, "y N", {"y": size, "N": each.value}, unit="bytes")
        for each, size in bytes_of
    ]
    return RlhfPhase(name, sizes, Quantity.sum_of("states", "bytes", states), flops, time)
