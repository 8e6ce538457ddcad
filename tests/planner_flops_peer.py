"""Counts the FLOPs of Transformers with PyTorch, which knows nothing of tfdist's formulas.

    python tests/planner_flops_peer.py           # compares with the recorded table
    python tests/planner_flops_peer.py --write   # records it anew

It needs PyTorch alone. The models are small modules of our own on the meta device, which has shapes
but no numbers, so that GPT-3 takes no memory. `FlopCounterMode` counts the products that they
execute, forward and backward. tests/unit/test_planner_torch_flops.py compares the table with
`tfdist.planner`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

TABLE = Path(__file__).parent / "unit/planner_tables/torch_flops.json"

LLAMA = {"bias": "none", "norm": "rms", "tied": False, "gated_mlp": True}


def shape(batch: int, sequence: int, sizes: str, **model: Any) -> dict[str, Any]:
    """A batch, a model's layers, width, heads and vocabulary, and the other fields of its shape."""
    names = ("layers", "hidden", "heads", "vocabulary")
    sized = dict(zip(names, map(int, sizes.split()), strict=True))
    return {"batch": batch, "sequence": sequence, "model": {**sized, **model}}


def latent(query_rank: int) -> dict[str, int]:
    """The latent attention of DeepSeek-V2 and V3."""
    names = ("kv_rank", "query_rank", "content_dim", "position_dim", "value_dim")
    return dict(zip(names, (512, query_rank, 128, 64, 128), strict=True))


SHAPES = {
    "GPT-2 124M": shape(4, 1024, "12 768 12 50257", positions=1024),
    "GPT-2 1558M": shape(1, 1024, "48 1600 25 50257", positions=1024),
    "GPT-3 175B": shape(1, 2048, "96 12288 96 50257", positions=2048),
    "BERT-Base": shape(8, 128, "12 768 12 30522", positions=512, token_types=2),
    "Llama-2-7B": shape(1, 4096, "32 4096 32 32000", mlp=11008, **LLAMA),
    "Llama-3.1-8B": shape(2, 2048, "32 4096 32 128256", kv_heads=8, mlp=14336, **LLAMA),
    "PaLM-8B": shape(
        *(1, 2048, "32 4096 16 256000"),
        **{"kv_heads": 1, "head_dim": 256, "gated_mlp": True, "bias": "none"},
        **{"norm": "layer without bias", "norms_per_layer": 1, "parallel_block": True},
    ),
    "window of 16": shape(2, 256, "4 256 8 1000", kv_heads=2, window=16, mlp=512, **LLAMA),
    "relative positions": shape(
        4, 256, "8 512 8 32000", relative_positions=True, bias="none", norm="rms"
    ),
    "Mixtral-8x7B": shape(
        *(1, 1024, "32 4096 32 32000"),
        **{"kv_heads": 8, "mlp": 14336, "experts": {"count": 8, "active": 2}},
        **LLAMA,
    ),
    "all experts active": shape(2, 128, "4 256 8 1000", mlp=512, experts={"count": 4, "active": 4}),
    "shared experts with a gate": shape(
        *(2, 128, "4 256 8 1000"),
        experts={"count": 16, "active": 4, "mlp": 64, "shared_mlp": 320, "shared_gate": True},
        **LLAMA,
    ),
    "DeepSeek-V3, 6 layers": shape(
        *(1, 512, "6 7168 128 129280"),
        mlp=18432,
        experts={"count": 256, "active": 8, "mlp": 2048, "shared": 1, "dense_layers": 3},
        latent=latent(query_rank=1536),
        **LLAMA,
    ),
    "DeepSeek-V2-Lite, 4 layers": shape(
        2, 256, "4 2048 16 102400", mlp=10944, latent=latent(query_rank=0), **LLAMA
    ),
}
# Generated token by token, after a prompt of one token.
GENERATED = {"GPT-2 124M": 6, "Llama-3.1-8B": 4, "window of 16": 24, "DeepSeek-V3, 6 layers": 4}
PARTS = {
    **{"query": "query projection", "query_down": "query projection"},
    **{"query_absorbed": "query projection", "key": "key and value projections"},
    **{"value": "key and value projections", "compress": "key and value projections"},
    **{"expand": "key and value projections", "scores": "scores", "weighted": "weighted values"},
    **{"output": "output projection", "output_absorbed": "output projection"},
    **{"positions": "relative positions", "position_scores": "relative scores"},
    **{"mlp": "mlp", "experts": "experts", "router": "router", "shared_gate": "router"},
    "head": "head",
}


class Product(nn.Module):
    """A product of two tensors, as a module, so that its FLOPs are counted apart."""

    def forward(self, a: Any, b: Any) -> Any:
        return a @ b


def kept(function: Any, inputs: Any, recompute: bool) -> Any:
    """What a function returns; the backward pass calls it again if it is to be recomputed."""
    if recompute:
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


class Attention(nn.Module):
    """Multi-head attention; heads may share keys and values, and see a window alone."""

    def __init__(self, m: Any, recompute: bool) -> None:
        super().__init__()
        self.m, self.recompute = m, recompute
        bias, width = m.bias == "all", m.heads * m.head_dim
        self.query = nn.Linear(m.hidden, width, bias)
        self.key = nn.Linear(m.hidden, m.kv_heads * m.head_dim, bias)
        self.value = nn.Linear(m.hidden, m.kv_heads * m.head_dim, bias)
        self.output = nn.Linear(width, m.hidden, bias)
        self.scores, self.weighted = Product(), Product()
        if m.relative_positions:
            self.positions = nn.Linear(m.hidden, width, False)
            self.position_scores = Product()

    def forward(self, x: Any, past: Any, absorbed: bool) -> Any:
        m, (batch, length, _) = self.m, x.shape
        groups = (m.kv_heads, m.heads // m.kv_heads)
        # [batch, kv_heads, heads of a group, tokens, head_dim]; keys and values have one "head".
        query = self.query(x).view(batch, length, *groups, m.head_dim).permute(0, 2, 3, 1, 4)
        key, value = (
            layer(x).view(batch, length, m.kv_heads, 1, m.head_dim).permute(0, 2, 3, 1, 4)
            for layer in (self.key, self.value)
        )
        if past is not None:
            key, value = (torch.cat(pair, 3) for pair in zip(past, (key, value), strict=True))
            if m.window:
                key, value = key[:, :, :, -m.window :], value[:, :, :, -m.window :]
        core = self.banded if 0 < m.window < length else self.whole
        inputs = [query, key, value]
        if m.relative_positions:
            constants = torch.empty(length, m.hidden, device="meta")
            rows = self.positions(constants).view(length, *groups, m.head_dim)
            inputs.append(rows.permute(1, 2, 3, 0))
        mixed = kept(core, inputs, self.recompute)
        mixed = mixed.permute(0, 3, 1, 2, 4).reshape(batch, length, m.heads * m.head_dim)
        return self.output(mixed), (key, value)

    def whole(self, query: Any, key: Any, value: Any, positions: Any = None) -> Any:
        scores = self.scores(query, key.mT)
        if positions is not None:
            scores = scores + self.position_scores(query, positions)
        return self.weighted(scores.softmax(-1), value)

    def banded(self, query: Any, key: Any, value: Any) -> Any:
        """Each query is multiplied with the keys of its own window alone."""
        window = self.m.window
        key, value = (
            functional.pad(each, (0, 0, window - 1, 0)).unfold(3, window, 1)
            for each in (key, value)
        )  # [batch, kv_heads, 1, tokens, head_dim, window]
        scores = self.scores(query.unsqueeze(-2), key).softmax(-1)
        return self.weighted(scores, value.mT).squeeze(-2)


class Latent(nn.Module):
    """DeepSeek's attention, whose cache is one compressed vector for all heads."""

    def __init__(self, m: Any, recompute: bool) -> None:
        super().__init__()
        self.m, self.recompute, n = m, recompute, m.latent
        width = m.heads * (n.content_dim + n.position_dim)
        if n.query_rank:
            self.query_down = nn.Linear(m.hidden, n.query_rank, False)
        self.query = nn.Linear(n.query_rank or m.hidden, width, False)
        self.compress = nn.Linear(m.hidden, n.kv_rank + n.position_dim, False)
        self.expand = nn.Linear(n.kv_rank, m.heads * (n.content_dim + n.value_dim), False)
        self.output = nn.Linear(m.heads * n.value_dim, m.hidden, False)
        self.scores, self.weighted = Product(), Product()
        self.query_absorbed, self.output_absorbed = Product(), Product()

    def forward(self, x: Any, past: Any, absorbed: bool) -> Any:
        m, n, (batch, length, _) = self.m, self.m.latent, x.shape
        query = self.query(self.query_down(x) if n.query_rank else x)
        query = query.view(batch, length, m.heads, -1).transpose(1, 2)
        cached = self.compress(x)
        if past is not None:
            cached = torch.cat((past, cached), 1)
        if absorbed:
            mixed = self.with_absorbed(query, cached)
        else:
            mixed = kept(self.core, self.expanded(query, cached), self.recompute)
        mixed = mixed.transpose(1, 2).reshape(batch, length, m.heads * n.value_dim)
        return self.output(mixed), cached

    def expanded(self, query: Any, cached: Any) -> tuple[Any, Any, Any]:
        n, (batch, length, _) = self.m.latent, cached.shape
        latent, position = cached.split((n.kv_rank, n.position_dim), -1)
        both = self.expand(latent).view(batch, length, self.m.heads, -1).transpose(1, 2)
        content, value = both.split((n.content_dim, n.value_dim), -1)
        position = position.unsqueeze(1).expand(-1, self.m.heads, -1, -1)
        return query, torch.cat((content, position), -1), value

    def core(self, query: Any, key: Any, value: Any) -> Any:
        return self.weighted(self.scores(query, key.mT).softmax(-1), value)

    def with_absorbed(self, query: Any, cached: Any) -> Any:
        n = self.m.latent
        weight = self.expand.weight.detach().view(
            self.m.heads, n.content_dim + n.value_dim, n.kv_rank
        )
        of_keys, of_values = weight.split((n.content_dim, n.value_dim), 1)
        content, position = query.split((n.content_dim, n.position_dim), -1)
        query = torch.cat((self.query_absorbed(content, of_keys), position), -1)
        scores = self.scores(query, cached.unsqueeze(1).mT).softmax(-1)
        mixed = self.weighted(scores, cached[..., : n.kv_rank].unsqueeze(1))
        return self.output_absorbed(mixed, of_values.mT)


class Mlp(nn.Module):
    """Two matrices, or three with a gate."""

    def __init__(self, m: Any, width: int) -> None:
        super().__init__()
        bias = m.bias == "all"
        self.up = nn.Linear(m.hidden, width, bias)
        self.gate = nn.Linear(m.hidden, width, bias) if m.gated_mlp else None
        self.down = nn.Linear(width, m.hidden, bias)

    def forward(self, x: Any) -> Any:
        up = functional.gelu(self.up(x))
        return self.down(up if self.gate is None else up * self.gate(x))


class Experts(nn.Module):
    """Experts that all get the same number of tokens, and shared ones that get all."""

    def __init__(self, m: Any) -> None:
        super().__init__()
        moe = m.experts
        width = moe.mlp or m.mlp
        self.active, shared = moe.active, moe.shared_mlp or moe.shared * width
        self.router = nn.Linear(m.hidden, moe.count, False)
        self.experts = nn.ModuleList(Mlp(m, width) for _ in range(moe.count))
        if shared:
            self.experts.append(Mlp(m, shared))
        self.has_shared = bool(shared)
        self.shared_gate = nn.Linear(m.hidden, 1, False) if moe.shared_gate else None

    def forward(self, x: Any) -> Any:
        flat = x.flatten(0, 1)
        weights, _ = self.router(flat).softmax(-1).topk(self.active)
        experts = list(self.experts)
        everywhere = experts.pop() if self.has_shared else None
        used = flat.repeat_interleave(self.active, 0).chunk(len(experts))
        found = torch.cat([expert(part) for expert, part in zip(experts, used, strict=False)])
        found = (found.view(len(flat), self.active, -1) * weights.unsqueeze(-1)).sum(1)
        if everywhere is not None:
            extra = everywhere(flat)
            found = found + (extra if self.shared_gate is None else extra * self.shared_gate(flat))
        return found.view_as(x)


class Layer(nn.Module):
    """Attention and an MLP or experts, each with a norm and a residual connection."""

    def __init__(self, m: Any, number: int, recompute: bool) -> None:
        super().__init__()
        self.attention = (Attention if m.latent is None else Latent)(m, recompute)
        self.mlp = self.moe = None
        if m.experts is None or number < m.experts.dense_layers:
            self.mlp = Mlp(m, m.mlp)
        else:
            self.moe = Experts(m)
        self.norms = nn.ModuleList(nn.LayerNorm(m.hidden) for _ in range(2))

    def forward(self, x: Any, past: Any = None, absorbed: bool = False) -> Any:
        mixed, cache = self.attention(self.norms[0](x), past, absorbed)
        x = x + mixed
        return x + (self.mlp or self.moe)(self.norms[1](x)), cache


class Model(nn.Module):
    """A stack of layers between an embedding and a head."""

    def __init__(self, m: Any, recomputation: str) -> None:
        super().__init__()
        selective = recomputation == "selective"
        self.full = recomputation == "full"
        self.embedding = nn.Embedding(m.vocabulary, m.hidden)
        self.layers = nn.ModuleList(Layer(m, number, selective) for number in range(m.layers))
        self.head = nn.Linear(m.hidden, m.vocabulary, False)
        if m.tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Any, past: Any = None) -> Any:
        x, caches = self.embedding(ids), []
        for number, layer in enumerate(self.layers):
            inputs = (x, past and past[number], past is not None)
            x, cache = kept(layer, inputs, self.full)
            caches.append(cache)
        return self.head(x), caches


def completed(model: dict[str, Any]) -> Any:
    """The fields of a shape, with those that were left out."""
    fields = {"bias": "all", "gated_mlp": False, "tied": True, "window": 0} | model
    fields.setdefault("head_dim", model["hidden"] // model["heads"])
    fields.setdefault("kv_heads", model["heads"])
    fields.setdefault("mlp", 4 * model["hidden"])
    fields.setdefault("relative_positions", False)
    moe = {"mlp": 0, "shared": 0, "shared_mlp": 0, "dense_layers": 0, "shared_gate": False}
    experts, latent = model.get("experts"), model.get("latent")
    fields["experts"] = None if experts is None else SimpleNamespace(**moe | experts)
    fields["latent"] = None if latent is None else SimpleNamespace(**latent)
    return SimpleNamespace(**fields)


def ids(batch: int, length: int) -> Any:
    return torch.empty(batch, length, dtype=torch.long, device="meta")


def by_part(counter: FlopCounterMode, model: Model) -> dict[str, int]:
    """FLOPs by the names of tfdist's parts, all layers together."""
    found: Counter[str] = Counter()
    counts = counter.get_flop_counts()
    for name, module in model.named_modules():
        if not list(module.children()):
            flops = sum(counts.get(f"Model.{name}", {}).values())
            part = next((PARTS[word] for word in name.split(".") if word in PARTS), None)
            if flops:
                assert part is not None, name
                found[part] += flops
    assert sum(found.values()) == counter.get_total_flops()
    return dict(sorted(found.items()))


def count_forward(shape: dict[str, Any]) -> dict[str, int]:
    model = Model(completed(shape["model"]), "none")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(ids(shape["batch"], shape["sequence"]))
    return by_part(counter, model)


def count_training(shape: dict[str, Any], recomputation: str) -> int:
    model = Model(completed(shape["model"]), recomputation)
    # By default PyTorch stops to recompute when it has what it needs, and skips the last product.
    with set_checkpoint_early_stop(False), FlopCounterMode(display=False) as counter:
        model(ids(shape["batch"], shape["sequence"]))[0].sum().backward()
    return int(counter.get_total_flops())


def count_generation(shape: dict[str, Any], generated: int) -> dict[str, int]:
    model, past = Model(completed(shape["model"]), "none"), None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for _ in range(generated):
            _, past = model(ids(shape["batch"], 1), past)
    return by_part(counter, model)


def count_flash_attention() -> dict[str, Any]:
    """The two operations of FlashAttention, which are no products of their own to PyTorch."""
    batch, heads, length, width = 2, 4, 128, 64
    query, key, value = (
        torch.randn(batch, heads, length, width, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    with FlopCounterMode(display=False) as counter:
        found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        forward = counter.get_total_flops()
        found.sum().backward()
    return {
        **{"batch": batch, "heads": heads, "sequence": length, "head_dim": width},
        **{"forward": forward, "backward": counter.get_total_flops() - forward},
    }


def count_all() -> dict[str, Any]:
    rows = []
    with torch.device("meta"):
        for name, shape in SHAPES.items():
            row = {"name": name, **shape, "forward": count_forward(shape)}
            row["training"] = {
                recomputation: count_training(shape, recomputation)
                for recomputation in ("none", "selective", "full")
            }
            if name in GENERATED:
                row["generated"] = GENERATED[name]
                row["generation"] = count_generation(shape, GENERATED[name])
            rows.append(row)
            print(name, file=sys.stderr)
        flash = count_flash_attention()
    tool = "torch.utils.flop_counter.FlopCounterMode"
    version = torch.__version__.partition("+")[0]
    return {
        **{"tool": tool, "version": version, "rows": rows},
        "flash_attention": flash,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="record the table anew")
    write = parser.parse_args().write
    found = count_all()
    if write:
        TABLE.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    recorded = json.loads(TABLE.read_text("utf-8"))
    wrong = [
        row["name"]
        for row, before in zip(found["rows"], recorded["rows"], strict=True)
        if row != before
    ]
    if found["flash_attention"] != recorded["flash_attention"]:
        wrong.append("FlashAttention")
    versions = f"torch {found['version']}; the table is from torch {recorded['version']}"
    print(f"{versions}; {'all counts are equal' if not wrong else f'other counts: {wrong}'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
