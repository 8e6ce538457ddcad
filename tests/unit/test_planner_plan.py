"""The plan of a training agrees with its parts, also as the command `tfdist plan` prints it."""

import json
import re
from pathlib import Path

import pytest

from tfdist import planner
from tfdist.cli import main
from tfdist.planner import Training, find_device, plan_training, preset

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/planner.md").read_text("utf-8")
GPT3 = "plan --preset gpt3-175b --devices 1024 --device a100-80g --tokens 300e9"


def run(capsys, command):
    """The exit code, standard output and standard error of `tfdist COMMAND`."""
    code = main(command.split() if isinstance(command, str) else command)
    ended = capsys.readouterr()
    return code, ended.out, ended.err


def test_the_json_of_a_plan_has_totals_and_their_parts(capsys):
    code, out, err = run(capsys, f"{GPT3} --json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["parameters"]["total"] == found["parameters"]["active"] == 174_604_259_328
    for key in ("parameters", "memory_bytes", "flops", "time_secs"):
        parts = found[key]["parts"].values()
        totals = [part["total"] if isinstance(part, dict) else part for part in parts]
        assert sum(totals) == pytest.approx(found[key]["total"], rel=1e-9)
    hours = found["time_secs"]["total"] / 3600
    assert found["cost"]["total"] == pytest.approx(hours * 1024 * 5.12)
    assert found["flops"]["total"] == pytest.approx(6 * 174.6e9 * 300e9, rel=0.05)
    assert found["warnings"]


def test_the_time_of_a_training_is_that_of_its_steps():
    model, device = preset("gpt2-124m"), find_device("a100-80g")
    training = Training(global_batch=64, sequence=1024, micro_batch=8)
    step = planner.iteration_time(model, training, device)
    plan = plan_training(model, training, device, tokens=100 * training.tokens)
    assert plan.time.value == pytest.approx(100 * step.value)
    assert plan.time.part("compute") == pytest.approx(100 * step.part("compute"))
    assert plan.time.interval[0] < plan.time.value < plan.time.interval[1]
    given = plan_training(model, training, device, tokens=1e9, utilization=0.5)
    assert given.utilization.value == pytest.approx(0.5)


def test_a_training_that_does_not_fit_is_a_warning_and_exit_code_1(capsys):
    code, out, _ = run(capsys, "plan --preset llama2-70b --data 8 --devices 8 --json")
    found = json.loads(out)
    assert code == found["exit_code"] == 1
    assert found["memory_bytes"]["left"] < 0
    assert re.match(r"a step needs [\d,.]+ GiB more than a100-80g has", found["warnings"][0])


def test_a_model_that_fits_nowhere_is_planned_with_what_is_missing(capsys):
    code, out, _ = run(capsys, "plan --preset gpt3-175b")
    assert code == 1
    assert re.search(r"warning: a step needs [\d,.]+ GiB more than a100-80g has", out)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [("--tensor 2", "tensor", 2), ("--zero 3", "zero", 3), ("--micro-batch 4", "micro_batch", 4)],
)
def test_the_search_keeps_what_is_given(capsys, flags, field, value):
    code, out, _ = run(capsys, f"plan --preset gpt2-124m --devices 8 {flags} --json")
    found = json.loads(out)
    assert (code, found["devices"], found["training"][field]) == (0, 8, value)


def test_a_sequence_has_at_most_the_positions_of_the_model(capsys):
    _, out, _ = run(capsys, "plan --preset gpt2-124m --json")
    assert json.loads(out)["training"]["sequence"] == 1024
    _, out, _ = run(capsys, "plan --preset gpt2-124m --sequence 4096 --json")
    assert any("longer than the 1024 learned" in text for text in json.loads(out)["warnings"])


def test_memory_that_allocators_may_exceed_is_a_warning(capsys):
    _, out, _ = run(capsys, "plan --preset gpt3-13b --devices 192 --global-batch 1536 --json")
    found = json.loads(out)
    low, high = found["memory_bytes"]["interval"]
    assert low <= found["memory_bytes"]["device"] < high
    assert found["warnings"][0].startswith("it may not fit: allocators keep gaps")


def test_every_number_is_explained(capsys):
    code, out, _ = run(capsys, f"{GPT3} --explain")
    assert code == 0
    assert "= L (2 h (q + k) + q + 2 k + h), L = 96" in out
    assert "source: arXiv" in out
    assert "price" in out
    assert out.count("parameters: 174,604,259,328") == 1
    assert re.search(r"= steps \(m \(n \(.*\), steps = 143051\.\d+, m = .*, n = 6,", out)


def test_a_config_of_hugging_face_is_read(capsys, tmp_path):
    file = tmp_path / "config.json"
    config = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12}
    file.write_text(json.dumps(config | {"vocab_size": 50257, "n_positions": 1024}))
    code, out, _ = run(capsys, ["plan", "--config", str(file), "--json"])
    assert code == 0
    assert json.loads(out)["parameters"]["total"] == 124_439_808


def test_a_shape_can_be_given(capsys):
    shape = "plan --layers 12 --hidden 768 --heads 12 --vocabulary 50257 --positions 1024 --json"
    code, out, _ = run(capsys, shape)
    assert (code, json.loads(out)["parameters"]["total"]) == (0, 124_439_808)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("plan", "--layers: missing; give a preset, a config, or all of --layers"),
        ("plan --preset gpt5", "--preset: got 'gpt5'; must be"),
        ("plan --preset gpt2-124m --layers 3", "--preset: got 'gpt2-124m'; cannot be combined"),
        ("plan --preset gpt2-124m --device abacus", "--device: got 'abacus'; must be one of"),
        ("plan --preset gpt2-124m --rlhf nosuch", "--rlhf: got 'nosuch'; must be"),
        ("plan --preset gpt2-124m --generate 0", "--generate: got 0; must be"),
        ("plan --preset gpt2-124m --micro-batch 0", "--micro-batch: got 0; must be"),
        ("plan --preset gpt2-124m --days 3", "--days: got 3.0; needs --cheapest"),
        ("plan --preset gpt2-124m --cheapest --tokens 1 --days 0", "--days: got 0.0; must be"),
        (
            "plan --preset gpt2-124m --cheapest --tokens 1 --tensor 2",
            "--tensor: got 2; cannot be combined with --cheapest",
        ),
        (
            "plan --preset gpt2-124m --generate 1 --plot x.svg",
            "--plot: got 'x.svg'; cannot be combined with --generate",
        ),
        ("plan --preset gpt2-124m --generate 1 --sequence 0", "--sequence: got 0; must be"),
        ("plan --preset gpt2-124m --rlhf gpt2-124m --devices 0", "--devices: got 0; must be"),
        ("plan --list --tensor 0", "--tensor: got 0; cannot be combined with --list"),
        ("plan --preset gpt2-124m --devices 3 --data 3", "--global-batch: got 1024; must be a"),
        ("plan --list --zero 1", "--zero: got 1; cannot be combined with --list"),
        ("plan --preset gpt2-124m --devices 0", "--devices: got 0; must be"),
        ("plan --preset gpt2-124m --tensor 5 --devices 5", "--tensor: got 5; must divide"),
        ("plan --preset gpt2-124m --tensor 2 --devices 3", "--devices: got 3; must be a multiple"),
        ("plan --preset gpt2-124m --micro-batch 3", "--micro-batch: got 3; must divide"),
        ("plan --preset gpt2-124m --tokens -1", "--tokens: got -1.0; must be a positive number"),
        ("plan --preset gpt2-124m --mfu 2", "--mfu: got 2.0; must be"),
        ("plan --preset gpt2-124m --cheapest", "--tokens: missing; --cheapest needs"),
        ("plan --predict rows.csv", "--calibrate: missing; --predict needs measured"),
        ("plan --config nothing.json", "nothing.json"),
    ],
)
def test_a_wrong_flag_is_one_line(capsys, command, message):
    code, out, err = run(capsys, command)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_other_plans(capsys):
    rows = str(ROOT / "tests/unit/planner_tables/vtrain_multi.csv")
    command = ["plan", "--calibrate", rows, "--predict", rows, "--json"]
    code, out, _ = run(capsys, command)
    found = json.loads(out)
    assert (code, len(found["rows"])) == (0, 109)
    assert found["mean_error"] < 0.05
    code, out, _ = run(capsys, "plan --preset gpt3-175b --rlhf gpt3-6.7b --devices 256 --json")
    assert (code, list(json.loads(out)["phases"])) == (0, ["supervised", "reward", "ppo"])
    code, out, _ = run(capsys, "plan --preset llama2-7b --generate 8 --sequence 4096 --json")
    assert json.loads(out)["memory_bytes"]["parts"]["cache"] == 8 * 4096 * 2**19
    code, out, _ = run(capsys, "plan --list --json")
    assert "gpt3-175b" in json.loads(out)["presets"]
    small = "--cheapest --tokens 1e9 --most-devices 4 --device a100-80g --json"
    code, out, _ = run(capsys, f"plan --preset gpt2-124m {small}")
    assert [each["devices"] for each in json.loads(out)["clusters"]]


def test_the_page_shows_what_the_command_prints(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    command, shown = re.search(
        r"```\ntfdist (plan.*?)\n```\n\n```text\n(.*?)```", PAGE, re.S
    ).groups()
    _, out, _ = run(capsys, command)
    assert [line.rstrip() for line in out.splitlines()] == shown.splitlines()


def test_the_program_of_the_page_prints_what_it_shows(capsys):
    program, shown = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.S).groups()
    exec(compile(program, "planner.md", "exec"), {})
    assert capsys.readouterr().out == shown
