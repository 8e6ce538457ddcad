"""Counts parameters with the library transformers, and compares the planner with it.

    python -m tests.planner_peers           counts again; differences from the table are errors
    python -m tests.planner_peers --write   writes the table

It needs transformers and torch, so the suite reads the table. The models are made on torch's meta
device, which stores no numbers: the largest has 671 billion parameters and takes seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfdist.planner import count_active_parameters, count_parameters, from_config

TABLE = Path(__file__).parent / "unit/planner_tables/transformers_parameters.json"
# Fields that no count depends on, left out of the table.
UNUSED = (
    "transformers_version",
    "dtype",
    "rope_parameters",
    "id2label",
    "label2id",
    "vision_config",
)


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: of the weights with this config, or what the case is about.
        kind: transformers' model type.
        fields: of the config, apart from the defaults of transformers.
        auto: the class that makes it: "ForCausalLM", "ForMaskedLM", "ForImageTextToText", "Model".
        preset: the preset of the same shape.
    """

    name: str
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    auto: str = "ForCausalLM"
    preset: str = ""


def llama(layers: int, hidden: int, heads: int, kv: int, mlp: int, vocabulary: int, **more: Any):
    """The fields that most families call the same."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        **more,
    }


def gpt(layers: int, hidden: int, heads: int, **more: Any):
    return {"n_layer": layers, "n_embd": hidden, "n_head": heads, **more}


def opt(layers: int, hidden: int, heads: int, **more: Any):
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return {**sizes, "ffn_dim": 4 * hidden, "word_embed_proj_dim": hidden, **more}


def bert(layers: int, hidden: int, heads: int, **more: Any):
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": 4 * hidden, **more}


TINY = llama(2, 64, 4, 2, 96, 1000)
DEEPSEEK = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512}
LITE = {"n_routed_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 1408}
V2 = {"n_routed_experts": 160, "num_experts_per_tok": 6, "moe_intermediate_size": 1536}
SCOUT = {"num_local_experts": 16, "num_experts_per_tok": 1, "head_dim": 128}
MLM = "ForMaskedLM"

CASES = (
    Case("gpt2", "gpt2", gpt(12, 768, 12), preset="gpt2-124m"),
    Case("gpt2-xl", "gpt2", gpt(48, 1600, 25), preset="gpt2-1558m"),
    Case("gpt-neo-1.3B", "gpt_neo"),
    Case("gpt-neox-20b", "gpt_neox", preset="gpt-neox-20b"),
    Case("no bias, serial", "gpt_neox", {"attention_bias": False, "use_parallel_residual": False}),
    Case("gpt-j-6b", "gptj", preset="gpt-j-6b"),
    Case("codegen-350M", "codegen", gpt(20, 1024, 16, vocab_size=51200)),
    Case("opt-125m", "opt", opt(12, 768, 12), preset="opt-125m"),
    Case(
        "opt-350m",
        "opt",
        opt(24, 1024, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
        preset="opt-350m",
    ),
    Case("opt-175b", "opt", opt(96, 12288, 96), preset="opt-175b"),
    Case(
        "no bias, no parameters of norms",
        "opt",
        opt(2, 64, 4, enable_bias=False) | {"layer_norm_elementwise_affine": False},
    ),
    Case(
        "bloom-560m",
        "bloom",
        {"hidden_size": 1024, "n_layer": 24, "n_head": 16},
        preset="bloom-560m",
    ),
    Case(
        "bloom", "bloom", {"hidden_size": 14336, "n_layer": 70, "n_head": 112}, preset="bloom-176b"
    ),
    Case("llama-7b", "llama", preset="llama-7b"),
    Case("Llama-3.1-8B", "llama", llama(32, 4096, 32, 8, 14336, 128256), preset="llama3.1-8b"),
    Case(
        "Llama-3.1-405B", "llama", llama(126, 16384, 128, 8, 53248, 128256), preset="llama3.1-405b"
    ),
    Case(
        "Llama-3.2-1B",
        "llama",
        llama(16, 2048, 32, 8, 8192, 128256, tie_word_embeddings=True),
        preset="llama3.2-1b",
    ),
    Case("all biases", "llama", TINY | {"attention_bias": True, "mlp_bias": True}),
    Case("heads of another width", "llama", TINY | {"head_dim": 24}),
    Case("Mistral-7B-v0.1", "mistral", preset="mistral-7b"),
    Case("Mixtral-8x7B-v0.1", "mixtral", preset="mixtral-8x7b"),
    Case(
        "Mixtral-8x22B-v0.1",
        "mixtral",
        llama(56, 6144, 48, 8, 16384, 32000),
        preset="mixtral-8x22b",
    ),
    Case(
        "Qwen2-0.5B",
        "qwen2",
        llama(24, 896, 14, 2, 4864, 151936, tie_word_embeddings=True),
        preset="qwen2-0.5b",
    ),
    Case("Qwen2-7B", "qwen2", llama(28, 3584, 28, 4, 18944, 152064), preset="qwen2-7b"),
    Case("Qwen1.5-MoE-A2.7B", "qwen2_moe"),
    Case(
        "Qwen2-57B-A14B",
        "qwen2_moe",
        llama(28, 3584, 28, 4, 18944, 151936, num_experts=64, num_experts_per_tok=8)
        | {"moe_intermediate_size": 2560, "shared_expert_intermediate_size": 20480},
        preset="qwen2-57b-a14b",
    ),
    Case(
        "Qwen3-0.6B",
        "qwen3",
        llama(28, 1024, 16, 8, 3072, 151936, tie_word_embeddings=True),
        preset="qwen3-0.6b",
    ),
    Case("Qwen3-8B", "qwen3", llama(36, 4096, 32, 8, 12288, 151936), preset="qwen3-8b"),
    Case(
        "Qwen3-30B-A3B",
        "qwen3_moe",
        llama(48, 2048, 32, 4, 6144, 151936, head_dim=128),
        preset="qwen3-30b-a3b",
    ),
    Case(
        "layers without experts",
        "qwen3_moe",
        TINY
        | {
            "num_hidden_layers": 9,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [0, 3],
            "head_dim": 16,
        },
    ),
    Case("gemma-2b", "gemma", llama(18, 2048, 8, 1, 16384, 256000), preset="gemma-2b"),
    Case("gemma-2-9b", "gemma2", llama(42, 3584, 16, 8, 14336, 256000), preset="gemma2-9b"),
    Case("gemma-3-1b", "gemma3_text", llama(26, 1152, 4, 1, 6912, 262144), preset="gemma3-1b"),
    Case(
        "gemma-3-27b",
        "gemma3",
        {"text_config": llama(62, 5376, 32, 16, 21504, 262208, head_dim=128)},
        "ForImageTextToText",
        "gemma3-27b",
    ),
    Case("phi-1_5", "phi", llama(24, 2048, 32, 32, 8192, 51200), preset="phi-1.5"),
    Case("phi-2", "phi", llama(32, 2560, 32, 32, 10240, 51200), preset="phi-2"),
    Case("Phi-3-mini", "phi3"),
    Case("Phi-3.5-MoE", "phimoe", {"attention_bias": True, "lm_head_bias": True}),
    Case("falcon-7b", "falcon", preset="falcon-7b"),
    Case(
        "falcon-40b",
        "falcon",
        {"num_hidden_layers": 60, "hidden_size": 8192, "num_attention_heads": 128}
        | {"num_kv_heads": 8, "new_decoder_architecture": True},
        preset="falcon-40b",
    ),
    Case(
        "falcon-rw-1b",
        "falcon",
        {"num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 32, "bias": True}
        | {"multi_query": False, "parallel_attn": False, "alibi": True, "vocab_size": 50304},
    ),
    Case("mpt-7b", "mpt", {"d_model": 4096, "n_heads": 32, "n_layers": 32, "vocab_size": 50432}),
    Case("stablelm-3b-4e1t", "stablelm"),
    Case("stablelm-2-1_6b", "stablelm", llama(24, 2048, 32, 32, 5632, 100352, use_qkv_bias=True)),
    Case(
        "stablelm-2-12b",
        "stablelm",
        llama(40, 5120, 32, 8, 13824, 100352, qk_layernorm=True, use_parallel_residual=True),
    ),
    Case("c4ai-command-r-v01", "cohere"),
    Case("c4ai-command-r-plus", "cohere", llama(64, 12288, 96, 8, 33792, 256000, use_qk_norm=True)),
    Case("c4ai-command-r7b", "cohere2", llama(32, 4096, 32, 8, 14336, 256000)),
    Case("OLMo-7B", "olmo"),
    Case("OLMo-2-7B", "olmo2", {"vocab_size": 100352}),
    Case("Olmo-3-7B", "olmo3", {"vocab_size": 100278}),
    Case("OLMoE-1B-7B", "olmoe", {"intermediate_size": 1024}),
    Case("starcoder2-3b", "starcoder2"),
    Case("no bias", "starcoder2", TINY | {"use_bias": False}),
    Case("starcoder", "gpt_bigcode", gpt(40, 6144, 48, n_positions=8192, vocab_size=49152)),
    Case("multi-head attention", "gpt_bigcode", {"multi_query": False}),
    Case(
        "DeepSeek-V2-Lite",
        "deepseek_v2",
        llama(27, 2048, 16, 16, 10944, 102400)
        | DEEPSEEK
        | LITE
        | {"q_lora_rank": None, "n_shared_experts": 2, "first_k_dense_replace": 1},
        preset="deepseek-v2-lite",
    ),
    Case(
        "DeepSeek-V2",
        "deepseek_v2",
        llama(60, 5120, 128, 128, 12288, 102400)
        | DEEPSEEK
        | V2
        | {"q_lora_rank": 1536, "n_shared_experts": 2, "first_k_dense_replace": 1},
        preset="deepseek-v2",
    ),
    Case("DeepSeek-V3", "deepseek_v3", preset="deepseek-v3"),
    Case(
        "attention with biases",
        "deepseek_v3",
        llama(3, 64, 4, 4, 96, 1000, attention_bias=True, first_k_dense_replace=1),
    ),
    Case("bert-base-uncased", "bert", bert(12, 768, 12), MLM, "bert-base"),
    Case("bert-large-uncased", "bert", bert(24, 1024, 16), MLM, "bert-large"),
    Case("bert-base-uncased without a head", "bert", {}, "Model"),
    Case("roberta-base", "roberta", {"max_position_embeddings": 514, "type_vocab_size": 1}, MLM),
    Case("xlm-roberta-base", "xlm-roberta", {"vocab_size": 250002, "type_vocab_size": 1}, MLM),
    Case("camembert-base", "camembert", {"vocab_size": 32005, "type_vocab_size": 1}, MLM),
    Case("distilbert-base-uncased", "distilbert", {}, MLM),
    Case("electra-base", "electra", bert(12, 768, 12, embedding_size=768), MLM),
    Case(
        "granite-3.1-8b",
        "granite",
        llama(40, 4096, 32, 8, 12800, 49155) | {"tie_word_embeddings": True},
    ),
    Case(
        "granite-3.1-3b-a800m",
        "granitemoe",
        llama(32, 1536, 24, 8, 512, 49155, num_local_experts=40, num_experts_per_tok=8)
        | {"tie_word_embeddings": True},
    ),
    Case("Minitron-8B", "nemotron", llama(32, 4096, 48, 8, 16384, 256000, head_dim=128)),
    Case("glm-4-9b", "glm"),
    Case("GLM-4-9B-0414", "glm4"),
    Case("GLM-4.5-Air", "glm4_moe", {"attention_bias": True, "head_dim": 128}),
    Case(
        "gpt-oss-20b",
        "gpt_oss",
        {"num_hidden_layers": 24, "num_local_experts": 32},
        preset="gpt-oss-20b",
    ),
    Case("gpt-oss-120b", "gpt_oss", preset="gpt-oss-120b"),
    Case("Llama-4-Scout, text", "llama4_text", SCOUT),
    Case(
        "Llama-4-Maverick, text",
        "llama4_text",
        SCOUT | {"num_local_experts": 128, "interleave_moe_layer_step": 2},
    ),
    Case(
        "dbrx-base",
        "dbrx",
        {"d_model": 6144, "n_heads": 48, "n_layers": 40, "vocab_size": 100352}
        | {"attn_config": {"kv_n_heads": 8, "rope_theta": 5e5}}
        | {"ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4}},
    ),
    Case("SmolLM3-3B", "smollm3"),
    Case("AFM-4.5B", "arcee", llama(36, 2560, 20, 4, 18432, 128004, head_dim=128)),
    Case("ERNIE-4.5-0.3B", "ernie4_5"),
    Case("EXAONE-4.0-32B", "exaone4", llama(64, 5120, 40, 8, 27392, 102400)),
    Case("Seed-OSS-36B", "seed_oss", llama(64, 5120, 80, 8, 27648, 155136, head_dim=128)),
    Case("xglm-564M", "xglm"),
    Case(
        "Qwen2.5-VL-7B",
        "qwen2_5_vl",
        {"text_config": llama(28, 3584, 28, 4, 18944, 152064)},
        "ForImageTextToText",
    ),
    Case(
        "Qwen2-VL-2B",
        "qwen2_vl",
        {"text_config": llama(28, 1536, 12, 2, 8960, 151936, tie_word_embeddings=True)},
        "ForImageTextToText",
    ),
    Case(
        "Qwen3-VL-30B-A3B",
        "qwen3_vl_moe",
        {
            "text_config": llama(48, 2048, 32, 4, 6144, 151936, head_dim=128)
            | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
        },
        "ForImageTextToText",
    ),
    Case(
        "Qwen3-VL-8B",
        "qwen3_vl",
        {"text_config": llama(36, 4096, 32, 8, 12288, 151936)},
        "ForImageTextToText",
    ),
)


def counted(case: Case) -> dict[str, Any]:
    """What transformers makes of a case: its config as it is written to a file, and the counts."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(case.kind, **case.fields)
    make = getattr(transformers, f"AutoModel{case.auto.removeprefix('Model')}")
    with torch.device("meta"):
        model = make.from_config(config)
    model.tie_weights()
    config.architectures = [type(model).__name__]
    written = json.loads(config.to_json_string())
    row = {
        "name": case.name,
        "preset": case.preset,
        "config": {name: value for name, value in written.items() if name not in UNUSED},
    }
    # named_parameters() has tied weights once.
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    sizes = {n: s for n, s in sizes.items() if "vision" not in n and "multi_modal" not in n}
    if "text_config" in case.fields:
        sizes = {n: s for n, s in sizes.items() if "language_model" in n or "lm_head" in n}
    row["total"] = sum(sizes.values())
    shape = from_config(row["config"]).model  # for the names of the fields alone
    if shape.experts is not None:
        of_experts = sum(size for name, size in sizes.items() if ".experts." in name)
        unused = of_experts * (shape.experts.count - shape.experts.active) // shape.experts.count
        row["active"] = row["total"] - unused
    return row


def table() -> dict[str, Any]:
    """All cases, with the versions of the tools."""
    import torch
    import transformers

    tools = {"transformers": transformers.__version__, "torch": torch.__version__}
    return {"tools": tools, "models": [counted(case) for case in CASES]}


def differences(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Each model whose parameters the planner counts otherwise."""
    for row in rows:
        model = from_config(row["config"]).model
        found = {"total": count_parameters(model), "active": count_active_parameters(model)}
        for name, quantity in found.items():
            if name in row and quantity.value != row[name]:
                kind = row["config"]["model_type"]
                yield f"{row['name']} ({kind}): {name} {quantity.value:,}, not {row[name]:,}"


def main() -> int:
    """Makes the table, compares, and prints what differs; 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table")
    args = parser.parse_args()
    found = table()
    problems = list(differences(found["models"]))
    if args.write:
        lines = ",\n".join(json.dumps(row) for row in found["models"])
        tools = json.dumps(found["tools"])
        TABLE.write_text(f'{{"tools": {tools},\n"models": [\n{lines}\n]}}\n', "utf-8")
    else:
        recorded = {row["name"]: row for row in json.loads(TABLE.read_text("utf-8"))["models"]}
        for row in found["models"]:
            old = recorded.get(row["name"], {})
            problems += [
                f"{row['name']}: {name} {row[name]:,}, but {old.get(name)} in the table"
                for name in ("total", "active")
                if name in row and row[name] != old.get(name)
            ]
    print(*problems, f"{len(found['models'])} models, {len(problems)} problems", sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
