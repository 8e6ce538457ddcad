"""Shapes of published models, by name, each with the source of its numbers.

The vocabulary is that of the published weights, with its padding. A test compares the parameters
with the published totals, and with those that the library transformers counts.
"""

from __future__ import annotations

from typing import Any

from tfdist.errors import ConfigError, did_you_mean
from tfdist.planner.transformer import Experts, LatentAttention, Transformer

NEAR = 3  # names that the message on an unknown one suggests
Shapes = dict[str, Transformer]


def _gpt2(layers: int, hidden: int, heads: int, **more: Any) -> Transformer:
    return Transformer(layers, hidden, heads, **{"vocabulary": 50257, "positions": 1024} | more)


def _opt(layers: int, hidden: int, heads: int, **more: Any) -> Transformer:
    return Transformer(layers, hidden, heads, 50272, positions=2050, **more)


def _llama(
    layers: int, hidden: int, heads: int, kv_heads: int, mlp: int, vocabulary: int, **more: Any
) -> Transformer:
    """A decoder with RMSNorm, a gated MLP and no biases."""
    given: dict[str, Any] = {"gated_mlp": True, "bias": "none", "norm": "rms", "tied": False} | more
    return Transformer(layers, hidden, heads, vocabulary, kv_heads=kv_heads, mlp=mlp, **given)


def _palm(layers: int, hidden: int, heads: int) -> Transformer:
    return Transformer(
        *(layers, hidden, heads, 256000, 256, 1),
        gated_mlp=True,
        bias="none",
        norm="layer without bias",
        norms_per_layer=1,
        parallel_block=True,
    )


def _gopher(layers: int, hidden: int, heads: int) -> Transformer:
    return Transformer(
        *(layers, hidden, heads, 32000), bias="none", norm="rms", relative_positions=True
    )


def _bloom(layers: int, hidden: int, heads: int) -> Transformer:
    return Transformer(layers, hidden, heads, 250880, embedding_norm=True)


def _bert(layers: int, hidden: int, heads: int) -> Transformer:
    """The masked language model."""
    return Transformer(
        *(layers, hidden, heads, 30522),
        positions=512,
        token_types=2,
        final_norm=False,
        embedding_norm=True,
        head_bias=True,
        head_layer=True,
    )


def _deepseek(
    layers: int, hidden: int, heads: int, mlp: int, vocabulary: int, query_rank: int, moe: Experts
) -> Transformer:
    latent = LatentAttention(512, query_rank, content_dim=128, position_dim=64, value_dim=128)
    return _llama(
        *(layers, hidden, heads, heads, mlp, vocabulary), head_dim=192, experts=moe, latent=latent
    )


def _falcon(layers: int, hidden: int, heads: int, kv_heads: int, norms: int) -> Transformer:
    return Transformer(
        *(layers, hidden, heads, 65024),
        kv_heads=kv_heads,
        bias="none",
        norms_per_layer=norms,
        parallel_block=True,
    )


def _phi(layers: int, hidden: int, heads: int) -> Transformer:
    return Transformer(
        *(layers, hidden, heads, 51200),
        norms_per_layer=1,
        parallel_block=True,
        tied=False,
        head_bias=True,
    )


def _gpt_oss(layers: int, experts: int) -> Transformer:
    return _llama(
        *(layers, 2880, 64, 8, 2880, 201088),
        head_dim=64,
        bias="all",
        mlp_bias=False,
        sinks=True,
        experts=Experts(experts, 4, bias=True, router_bias=True),
    )


_QKV: dict[str, Any] = {"bias": "qkv"}
_QWEN3: dict[str, Any] = {"head_dim": 128, "qk_norm": "head"}
_GEMMA: dict[str, Any] = {"head_dim": 256, "tied": True}
_GEMMA2: dict[str, Any] = {"tied": True, "norms_per_layer": 4}
_GEMMA3: dict[str, Any] = {**_GEMMA2, "qk_norm": "head"}

_CONFIG = "config.json of its published weights"
# Each group: the source of its shapes, and the shapes.
_GROUPS: tuple[tuple[str, Shapes], ...] = (
    (
        f"Radford et al. 2019, table 2; {_CONFIG}",
        {
            "gpt2-124m": _gpt2(12, 768, 12),
            "gpt2-355m": _gpt2(24, 1024, 16),
            "gpt2-774m": _gpt2(36, 1280, 20),
            "gpt2-1558m": _gpt2(48, 1600, 25),
        },
    ),
    (
        # Two printed shapes do not fit their parameters in table D.1: 24 heads of 128 for a width
        # of 2048 (1,517 million instead of 1,320), and a width of 5140 for 40 heads of 128.
        "arXiv 2005.14165, table 2.1, with 16 heads for XL and a width of 5120 for 13B",
        {
            "gpt3-125m": _gpt2(12, 768, 12, positions=2048),
            "gpt3-350m": _gpt2(24, 1024, 16, positions=2048),
            "gpt3-760m": _gpt2(24, 1536, 16, positions=2048),
            "gpt3-1.3b": _gpt2(24, 2048, 16, positions=2048),
            "gpt3-2.7b": _gpt2(32, 2560, 32, positions=2048),
            "gpt3-6.7b": _gpt2(32, 4096, 32, positions=2048),
            "gpt3-13b": _gpt2(40, 5120, 40, positions=2048),
            "gpt3-175b": _gpt2(96, 12288, 96, positions=2048),
        },
    ),
    (
        "arXiv 2205.05198, table 3 (22B, 530B, 1T); vocabulary 51200 as in arXiv 2104.04473",
        {
            "megatron-22b": _gpt2(48, 6144, 64, vocabulary=51200, positions=2048),
            "megatron-530b": _gpt2(105, 20480, 128, vocabulary=51200, positions=2048),
            "megatron-1t": _gpt2(128, 25600, 160, vocabulary=51200, positions=2048),
        },
    ),
    (
        f"arXiv 2205.01068, table 1; {_CONFIG}",
        {
            "opt-125m": _opt(12, 768, 12),
            "opt-350m": _opt(24, 1024, 16, embedding_width=512, final_norm=False),
            "opt-1.3b": _opt(24, 2048, 32),
            "opt-2.7b": _opt(32, 2560, 32),
            "opt-6.7b": _opt(32, 4096, 32),
            "opt-13b": _opt(40, 5120, 40),
            "opt-30b": _opt(48, 7168, 56),
            "opt-66b": _opt(64, 9216, 72),
            "opt-175b": _opt(96, 12288, 96),
        },
    ),
    (
        f"arXiv 2302.13971, table 2; {_CONFIG}",
        {
            "llama-7b": _llama(32, 4096, 32, 32, 11008, 32000),
            "llama-13b": _llama(40, 5120, 40, 40, 13824, 32000),
            "llama-33b": _llama(60, 6656, 52, 52, 17920, 32000),
            "llama-65b": _llama(80, 8192, 64, 64, 22016, 32000),
        },
    ),
    (
        f"arXiv 2307.09288; {_CONFIG}",
        {
            "llama2-7b": _llama(32, 4096, 32, 32, 11008, 32000),
            "llama2-13b": _llama(40, 5120, 40, 40, 13824, 32000),
            "llama2-70b": _llama(80, 8192, 64, 8, 28672, 32000),
        },
    ),
    (
        f"arXiv 2407.21783, table 3; {_CONFIG}",
        {
            "llama3.1-8b": _llama(32, 4096, 32, 8, 14336, 128256),
            "llama3.1-70b": _llama(80, 8192, 64, 8, 28672, 128256),
            "llama3.1-405b": _llama(126, 16384, 128, 8, 53248, 128256),
            "llama3.2-1b": _llama(16, 2048, 32, 8, 8192, 128256, tied=True),
            "llama3.2-3b": _llama(28, 3072, 24, 8, 8192, 128256, tied=True),
        },
    ),
    (
        f"arXiv 2310.06825, table 1, and arXiv 2401.04088, table 1; {_CONFIG}",
        {
            "mistral-7b": _llama(32, 4096, 32, 8, 14336, 32000, window=4096),
            "mixtral-8x7b": _llama(32, 4096, 32, 8, 14336, 32000, experts=Experts(8, 2)),
            "mixtral-8x22b": _llama(56, 6144, 48, 8, 16384, 32000, experts=Experts(8, 2)),
        },
    ),
    (
        "arXiv 2204.02311, table 1",
        {
            "palm-8b": _palm(32, 4096, 16),
            "palm-62b": _palm(64, 8192, 32),
            "palm-540b": _palm(118, 18432, 48),
        },
    ),
    ("arXiv 2112.11446, table 1", {"gopher-280b": _gopher(80, 16384, 128)}),
    ("arXiv 2203.15556, table 4", {"chinchilla-70b": _gopher(80, 8192, 64)}),
    (
        f"arXiv 2211.05100; {_CONFIG}",
        {
            "bloom-560m": _bloom(24, 1024, 16),
            "bloom-7b": _bloom(30, 4096, 32),
            "bloom-176b": _bloom(70, 14336, 112),
        },
    ),
    (
        f"arXiv 2204.06745, section 2; {_CONFIG}",
        {"gpt-neox-20b": Transformer(44, 6144, 64, 50432, tied=False, parallel_block=True)},
    ),
    (
        f"Wang and Komatsuzaki 2021; {_CONFIG}",
        {
            "gpt-j-6b": Transformer(
                *(28, 4096, 16, 50400),
                bias="none",
                mlp_bias=True,
                norms_per_layer=1,
                parallel_block=True,
                tied=False,
                head_bias=True,
            )
        },
    ),
    (
        f"arXiv 2405.04434, section 3.1.2; arXiv 2412.19437, section 4.2; {_CONFIG}",
        {
            "deepseek-v2-lite": _deepseek(
                *(27, 2048, 16, 10944, 102400, 0), Experts(64, 6, 1408, shared=2, dense_layers=1)
            ),
            "deepseek-v2": _deepseek(
                *(60, 5120, 128, 12288, 102400, 1536),
                Experts(160, 6, 1536, shared=2, dense_layers=1),
            ),
            "deepseek-v3": _deepseek(
                *(61, 7168, 128, 18432, 129280, 1536),
                Experts(256, 8, 2048, shared=1, dense_layers=3),
            ),
        },
    ),
    (
        f"arXiv 1810.04805, section 3; {_CONFIG}",
        {"bert-base": _bert(12, 768, 12), "bert-large": _bert(24, 1024, 16)},
    ),
    (
        f"arXiv 2407.10671, table 1; {_CONFIG}",
        {
            "qwen2-0.5b": _llama(24, 896, 14, 2, 4864, 151936, tied=True, **_QKV),
            "qwen2-7b": _llama(28, 3584, 28, 4, 18944, 152064, **_QKV),
            "qwen2-72b": _llama(80, 8192, 64, 8, 29568, 152064, **_QKV),
            "qwen2-57b-a14b": _llama(
                *(28, 3584, 28, 4, 18944, 151936),
                experts=Experts(64, 8, 2560, shared_mlp=20480, shared_gate=True),
                **_QKV,
            ),
        },
    ),
    (
        f"arXiv 2505.09388, tables 1 and 2; {_CONFIG}",
        {
            "qwen3-0.6b": _llama(28, 1024, 16, 8, 3072, 151936, tied=True, **_QWEN3),
            "qwen3-8b": _llama(36, 4096, 32, 8, 12288, 151936, **_QWEN3),
            "qwen3-32b": _llama(64, 5120, 64, 8, 25600, 151936, **_QWEN3),
            "qwen3-30b-a3b": _llama(
                *(48, 2048, 32, 4, 6144, 151936), experts=Experts(128, 8, 768), **_QWEN3
            ),
            "qwen3-235b-a22b": _llama(
                *(94, 4096, 64, 4, 12288, 151936), experts=Experts(128, 8, 1536), **_QWEN3
            ),
        },
    ),
    (
        "arXiv 2403.08295, table 1; arXiv 2408.00118, table 1; arXiv 2503.19786, table 1; "
        f"{_CONFIG}",
        {
            "gemma-2b": _llama(18, 2048, 8, 1, 16384, 256000, **_GEMMA),
            "gemma-7b": _llama(28, 3072, 16, 16, 24576, 256000, **_GEMMA),
            "gemma2-2b": _llama(26, 2304, 8, 4, 9216, 256000, head_dim=256, **_GEMMA2),
            "gemma2-9b": _llama(42, 3584, 16, 8, 14336, 256000, head_dim=256, **_GEMMA2),
            "gemma2-27b": _llama(46, 4608, 32, 16, 36864, 256000, head_dim=128, **_GEMMA2),
            "gemma3-1b": _llama(26, 1152, 4, 1, 6912, 262144, head_dim=256, **_GEMMA3),
            "gemma3-27b": _llama(62, 5376, 32, 16, 21504, 262208, head_dim=128, **_GEMMA3),
        },
    ),
    (
        f"arXiv 2311.16867; {_CONFIG}",
        {"falcon-7b": _falcon(32, 4544, 71, 1, 1), "falcon-40b": _falcon(60, 8192, 128, 8, 2)},
    ),
    (f"arXiv 2309.05463; {_CONFIG}", {"phi-1.5": _phi(24, 2048, 32), "phi-2": _phi(32, 2560, 32)}),
    (
        f"arXiv 2508.10925, table 1; {_CONFIG}",
        {"gpt-oss-20b": _gpt_oss(24, 32), "gpt-oss-120b": _gpt_oss(36, 128)},
    ),
)

PRESETS = {name: shape for _, shapes in _GROUPS for name, shape in shapes.items()}
PRESET_SOURCES = {name: source for source, shapes in _GROUPS for name in shapes}


def preset(name: str) -> Transformer:
    """The shape of a published model, such as "gpt3-175b".

    Raises:
        ConfigError: there is none of this name. The message suggests the nearest names.
    """
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]
    near = did_you_mean(name.lower(), PRESETS, NEAR) if isinstance(name, str) else ""
    rule = f"must be the name of a published model{near}"
    raise ConfigError("preset", name, rule if near else f"{rule}: {', '.join(PRESETS)}")
