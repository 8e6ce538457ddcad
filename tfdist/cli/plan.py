"""`tfdist plan`: what a model and its training need."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import MISSING, fields
from typing import Any

from tfdist import planner
from tfdist.cli import plan_text
from tfdist.cli.arguments import add_json
from tfdist.cli.output import PipeConsole
from tfdist.errors import HELD, NOT_HELD, ConfigError
from tfdist.planner.training import OPTIMIZERS, PRECISIONS, RECOMPUTATIONS, Training
from tfdist.planner.transformer import BIASES, NORMS, Transformer

_DESCRIPTION = """\
Plans the training of a Transformer: parameters, memory, FLOPs, traffic, time and cost. It needs
neither TensorFlow nor an accelerator. It looks for the fastest division that fits into the memory
of the devices, and keeps what you give of it, such as --tensor 8.

  tfdist plan --preset gpt3-175b --devices 1024 --device a100-80g --tokens 300e9
  tfdist plan --config config.json --devices 64 --explain    every number with its formula
  tfdist plan --preset llama3.1-8b --tokens 1e12 --cheapest  which machines cost least
  tfdist plan --calibrate MEASURED.csv --predict OTHERS.csv  from your own measured iterations
"""

_MODEL = {
    "layers": "number of layers",
    "hidden": "width of the residual stream",
    "heads": "attention heads",
    "vocabulary": "rows of the embedding",
    "head-dim": "width of a head (default: hidden / heads)",
    "kv-heads": "heads of keys and values (default: heads)",
    "mlp": "width of the MLP (default: 4 hidden)",
    "positions": "learned positions (default: 0)",
}
_TRAINING = {
    "global-batch": "sequences of a step (default: 1024)",
    "sequence": "tokens of a sequence (default: 2048, or the learned positions if fewer)",
    "micro-batch": "sequences that a device computes at a time",
    "tensor": "devices that share each matrix",
    "pipeline": "devices that share the layers",
    "data": "groups that share the batch",
    "expert": "devices that share the experts",
    "interleaved": "stages on each device of the pipeline",
    "zero": "stage of ZeRO, 0 to 3",
}
# The search chooses what of these is not given.
_SEARCHED = {
    *("micro_batch", "tensor", "pipeline", "data", "interleaved", "zero", "recomputation"),
    *("expert", "sequence_parallel"),
}
# What each other plan reads; any other flag has no effect on it.
_READ = {
    "list": set(),
    "calibrate": {"predict", "device", "explain"},
    "predict": {"calibrate", "device", "explain"},
    "generate": {"model", "sequence", "tensor", "explain"},
    "cheapest": {
        *("model", "global_batch", "sequence", "precision", "optimizer", "flash_attention"),
        *("tokens", "device", "days", "most_devices", "plot"),
    },
    "rlhf": {"model", "mfu", "explain", "device", "devices"},
}
_ALWAYS = ("command", "command_function", "json")
_ONLY_CHEAPEST = ("days", "most_devices")
# What the functions call what a flag gives.
_FLAGS = {"deadline_secs": "days", "batch": "generate", "rows": "predict", "measured": "calibrate"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `plan` to the subcommands."""
    parser = commands.add_parser(
        "plan",
        help="parameters, memory, compute, time and cost of a model, before you train it",
        description=_DESCRIPTION,
    )
    model = parser.add_argument_group("the model: one of these, or its shape")
    model.add_argument("--preset", metavar="NAME", help="a published model; --list has all names")
    model.add_argument(
        "--config",
        metavar="FILE",
        help="a config.json of Hugging Face, or a YAML or JSON file of the fields of "
        "tfdist.planner.Transformer",
    )
    for name, about in _MODEL.items():
        model.add_argument(f"--{name}", type=int, metavar="N", help=about)
    model.add_argument("--gated-mlp", action="store_true", help="the MLP has three matrices")
    model.add_argument("--bias", choices=BIASES, help="which linear layers have biases")
    model.add_argument("--norm", choices=tuple(NORMS), help="kind of the norms")
    model.add_argument("--untied", action="store_true", help="the head has weights of its own")
    training = parser.add_argument_group("the training")
    for name, about in _TRAINING.items():
        training.add_argument(f"--{name}", type=int, metavar="N", help=about)
    training.add_argument("--precision", choices=PRECISIONS, help="default: mixed")
    training.add_argument("--optimizer", choices=OPTIMIZERS, help="default: adam")
    training.add_argument("--recomputation", choices=RECOMPUTATIONS, help="of activations")
    training.add_argument(
        "--sequence-parallel", action="store_true", help="also share what lies between matrices"
    )
    training.add_argument(
        "--flash-attention", action="store_true", help="keep no matrix of attention's scores"
    )
    training.add_argument(
        "--tokens", type=float, metavar="N", help="such as 300e9 (default: one step)"
    )
    training.add_argument(
        "--mfu", type=float, metavar="SHARE", help="of the peak FLOPs; else the time is computed"
    )
    devices = parser.add_argument_group("the devices")
    devices.add_argument("--device", metavar="NAME", help="default: a100-80g; --list has all names")
    devices.add_argument(
        "--devices", type=int, metavar="N", help="default: as the division says, or 1"
    )
    devices.add_argument(
        "--cheapest", action="store_true", help="which devices, and how many, cost least"
    )
    devices.add_argument("--days", type=float, metavar="N", help="longest time for --cheapest")
    devices.add_argument(
        "--most-devices", type=int, metavar="N", help="for --cheapest (default: 4096)"
    )
    other = parser.add_argument_group("other plans")
    other.add_argument(
        "--generate", type=int, metavar="BATCH", help="memory to generate for so many prompts"
    )
    other.add_argument(
        "--rlhf", metavar="REWARD", help="three phases, with this preset as the reward model"
    )
    other.add_argument("--calibrate", metavar="FILE", help="a CSV file of measured iterations")
    other.add_argument("--predict", metavar="FILE", help="iterations to predict with --calibrate")
    other.add_argument("--list", action="store_true", help="print the presets and the devices")
    output = parser.add_argument_group("the output")
    output.add_argument("--explain", action="store_true", help="print each number with its formula")
    output.add_argument("--plot", metavar="FILE", help="also draw it; needs matplotlib")
    add_json(parser)
    parser.set_defaults(command_function=command)


def command(parsed: argparse.Namespace) -> int:
    """Prints the plan that is asked for."""
    console = PipeConsole(highlight=False, markup=False, emoji=False)
    try:
        _check_combination(parsed)
        if parsed.list:
            found: Any = {"presets": list(planner.PRESETS), "devices": list(planner.DEVICES)}
            return _print(parsed, console, found, plan_text.show_names)
        if parsed.calibrate is not None or parsed.predict is not None:
            return _predict(parsed, console)
        model, name, warnings = _model(parsed)
        if parsed.generate is not None:
            return _generate(parsed, console, model)
        if parsed.cheapest:
            return _cheapest(parsed, console, model)
        if parsed.rlhf is not None:
            return _rlhf(parsed, console, model)
        return _train(parsed, console, model, name, warnings)
    except ConfigError as error:
        flag, is_missing = _flag(parsed, error.field), error.value is None
        raise ConfigError(flag, error.value, error.rule, missing=is_missing) from error


def _flag(parsed: argparse.Namespace, field: str) -> str:
    """The flag of a field, if the user can have given it."""
    field = _FLAGS.get(field, field)
    return f"--{field.replace('_', '-')}" if field in vars(parsed) else field


def _check_combination(parsed: argparse.Namespace) -> None:
    """Raises ConfigError for a flag that has no effect on the plan that is asked for."""
    names = {"preset", "config", "gated_mlp", "bias", "norm", "untied"}
    names |= {name.replace("-", "_") for name in _MODEL}
    given = {
        name: value
        for name, value in vars(parsed).items()
        if value is not None and value is not False and name not in _ALWAYS
    }
    for mode, read in _READ.items():
        if mode not in given:
            continue
        allowed = read | {mode} | (names if "model" in read else set())
        for name, value in given.items():
            if name not in allowed:
                raise ConfigError(name, value, f"cannot be combined with --{mode}")
        return
    for name in _ONLY_CHEAPEST:
        if name in given:
            raise ConfigError(name, given[name], "needs --cheapest")


def _print(parsed: argparse.Namespace, console: PipeConsole, found: Any, show: Any) -> int:
    if parsed.json:
        print(json.dumps({**found, "exit_code": HELD}))
    else:
        show(console, found)
    return HELD


def _model(parsed: argparse.Namespace) -> tuple[Transformer, str, tuple[str, ...]]:
    shape = {name.replace("-", "_"): getattr(parsed, name.replace("-", "_")) for name in _MODEL}
    shape |= {"bias": parsed.bias, "norm": parsed.norm}
    given = {name: value for name, value in shape.items() if value is not None}
    if parsed.gated_mlp:
        given["gated_mlp"] = True
    if parsed.untied:
        given["tied"] = False
    sources = [flag for flag in ("preset", "config") if getattr(parsed, flag) is not None]
    if len(sources) + bool(given) > 1:
        flag = sources[0] if given else "config"
        rule = "cannot be combined with another model or shape"
        raise ConfigError(flag, getattr(parsed, flag), rule)
    if parsed.preset is not None:
        return planner.preset(parsed.preset), parsed.preset, ()
    if parsed.config is not None:
        read = planner.read_model(parsed.config)
        return read.model, read.name, read.cautions
    required = [each.name for each in fields(Transformer) if each.default is MISSING]
    for name in required:
        if name not in given:
            rule = "give a preset, a config, or all of " + ", ".join(f"--{n}" for n in required)
            raise ConfigError(name, None, rule, missing=True)
    return Transformer(**given), "the model", ()


def _training(parsed: argparse.Namespace, model: Transformer, device: planner.Device) -> Training:
    names = [each.name for each in fields(Training) if hasattr(parsed, each.name)]
    given = {name: getattr(parsed, name) for name in names}
    given = {
        name: value for name, value in given.items() if value is not None and value is not False
    }
    given.setdefault("global_batch", 1024)
    given.setdefault("sequence", _sequence(parsed, model))
    whole = {name: given[name] for name in given if name not in _SEARCHED}
    fixed = {name: given[name] for name in given if name in _SEARCHED}
    devices = parsed.devices
    if devices is None:
        devices = math.prod(fixed.get(name, 1) for name in ("tensor", "pipeline", "data"))
    division = planner.fastest_division(model, Training(**whole), device, devices, fixed=fixed)
    # If nothing fits, the plan of this division says how much memory is missing.
    return division or _undivided(whole, fixed, devices)


def _undivided(whole: dict[str, Any], fixed: dict[str, Any], devices: int) -> Training:
    """The given division, with all other devices as groups and the smallest micro-batch."""
    groups = fixed.get("tensor", 1) * fixed.get("pipeline", 1)
    if devices % groups:
        rule = f"must be a multiple of tensor * pipeline, which is {groups}"
        raise ConfigError("devices", devices, rule)
    if fixed.get("data", devices // groups) * groups != devices:
        rule = f"must be tensor * pipeline * data, which is {fixed['data'] * groups}"
        raise ConfigError("devices", devices, rule)
    return Training(**{**whole, "micro_batch": 1, "data": devices // groups, **fixed})


def _sequence(parsed: argparse.Namespace, model: Transformer) -> int:
    """The length of a sequence: 2048, unless the model has fewer learned positions."""
    return min(2048, model.positions or 2048) if parsed.sequence is None else parsed.sequence


def _train(
    parsed: argparse.Namespace,
    console: PipeConsole,
    model: Transformer,
    name: str,
    warnings: tuple[str, ...],
) -> int:
    device = planner.find_device(parsed.device or "a100-80g")
    training = _training(parsed, model, device)
    tokens = training.tokens if parsed.tokens is None else parsed.tokens
    found = planner.plan_training(
        model, training, device, tokens, utilization=parsed.mfu, warnings=warnings
    )
    if parsed.plot is not None:
        planner.plot_plan(found, parsed.plot)
    code = HELD if found.left.value >= 0 else NOT_HELD
    if parsed.json:
        print(json.dumps({"model": name, **found.as_json(), "exit_code": code}))
        return code
    if parsed.explain:
        plan_text.explain(console, found.quantities)
    else:
        plan_text.show_plan(console, name, found)
    plan_text.show_warnings(console, found.warnings)
    return code


def _generate(parsed: argparse.Namespace, console: PipeConsole, model: Transformer) -> int:
    tensor = 1 if parsed.tensor is None else parsed.tensor
    found = planner.inference_memory(
        model, parsed.generate, _sequence(parsed, model), tensor=tensor
    )
    if parsed.json:
        print(json.dumps({"memory_bytes": found.as_json(), "exit_code": HELD}))
    else:
        plan_text.explain(console, (found,), formulas=parsed.explain)
    return HELD


def _cheapest(parsed: argparse.Namespace, console: PipeConsole, model: Transformer) -> int:
    if parsed.tokens is None:
        raise ConfigError(
            "tokens", None, "--cheapest needs the length of the training", missing=True
        )
    training = Training(
        global_batch=1024 if parsed.global_batch is None else parsed.global_batch,
        sequence=_sequence(parsed, model),
        precision=parsed.precision or "mixed",
        optimizer=parsed.optimizer or "adam",
        flash_attention=parsed.flash_attention,
    )
    deadline = None if parsed.days is None else 86400 * parsed.days
    offers = planner.cheapest_clusters(
        model,
        training,
        parsed.tokens,
        deadline_secs=deadline,
        names=None if parsed.device is None else [parsed.device],
        most_devices=4096 if parsed.most_devices is None else parsed.most_devices,
    )
    if parsed.plot is not None:
        planner.plot_offers(offers, parsed.plot)
    code = HELD if offers else NOT_HELD
    if parsed.json:
        print(json.dumps({"clusters": [each.as_json() for each in offers], "exit_code": code}))
    else:
        plan_text.show_offers(console, offers)
    return code


def _rlhf(parsed: argparse.Namespace, console: PipeConsole, model: Transformer) -> int:
    device = planner.find_device(parsed.device or "a100-80g")
    devices = 1 if parsed.devices is None else parsed.devices
    try:
        reward = planner.preset(parsed.rlhf)
    except ConfigError as error:
        raise ConfigError("rlhf", error.value, error.rule) from error
    phases = planner.plan_rlhf(model, reward, device, devices, mfu=parsed.mfu)
    if parsed.json:
        found = {each.name: each.as_json() for each in phases}
        print(json.dumps({"phases": found, "exit_code": HELD}))
        return HELD
    for each in phases:
        console.out(f"{each.name}:")
        figures = (each.parameters, each.states, each.flops, each.time)
        plan_text.explain(console, figures, formulas=parsed.explain, depth=1)
    return HELD


def _predict(parsed: argparse.Namespace, console: PipeConsole) -> int:
    if not parsed.calibrate:
        raise ConfigError("calibrate", None, "--predict needs measured iterations", missing=True)
    calibration = planner.calibrate(parsed.calibrate, parsed.device or "a100-80g")
    found: dict[str, Any] = {"constants": {q.name: q.value for q in calibration.constants}}
    if parsed.predict:
        found |= calibration.predict(parsed.predict)
    if parsed.json:
        print(json.dumps({**found, "exit_code": HELD}))
        return HELD
    plan_text.explain(console, calibration.constants, formulas=parsed.explain)
    if parsed.predict:
        plan_text.show_predictions(console, found)
    return HELD
