"""Which families this package knows, what it can do with each, where their checkpoints live, and what each was compared
with.

A model whose family is not here is taken apart like the others without a file of their own, and says when it loads what
it can do. A test derives what stands here by trying a tiny random model of every family.
"""

from typing import NamedTuple


class Family(NamedTuple):
    """One row of the table in the README."""

    name: str
    model_types: tuple[str, ...]
    """`config.model_type`, or what load_model takes a file for."""
    checkpoints: str
    compared: str
    """What its outputs were compared with."""
    layers: str = "input of block i"
    """What hidden state i is."""
    state: tuple[str, ...] = ()
    """What the recurrent state of a block is called (`RecurrentState.blocks`); empty where there is none that can be
    reached."""
    fused: bool = False
    """Whether whole texts run by equations of this package on the CPU, in float32."""
    attention: str = ""
    """What blocks have a view of: hidden attention by channel or head, softmax attention; empty for none."""
    relevance: bool = False
    """Whether MambaLRP covers it."""
    lora: tuple[str, ...] = ()
    """Which linear maps take a low-rank adapter in fine-tuning; empty for those of the blocks that `lora_maps`
    finds."""
    since: str = ""
    """The release of transformers that it came with, where that is later than the lowest that this package works
    with."""


_OUTPUTS = "output of block i"
_TRANSFORMERS = "transformers"
_MAMBA2_HYBRID = ("conv", "ssm")
_DELTA_HYBRID = ("conv", "delta")
_SOFTMAX = "softmax, by head"
_BOTH = f"hidden, by head; {_SOFTMAX}"

_FAMILIES = (
    Family(
        "Mamba",
        ("mamba",),
        "state-spaces/mamba-130m-hf …; the native state-spaces/mamba-130m …",
        "transformers; a float64 re-implementation for native files",
        _OUTPUTS,
        ("conv", "ssm"),
        fused=True,
        attention="hidden, by channel",
        relevance=True,
        lora=("in_proj",),
    ),
    Family(
        "Falcon-Mamba",
        ("falcon_mamba",),
        "tiiuae/falcon-mamba-7b …",
        _TRANSFORMERS,
        _OUTPUTS,
        ("conv", "ssm"),
        fused=True,
        attention="hidden, by channel",
        relevance=True,
        lora=("in_proj",),
    ),
    Family(
        "Mamba-2",
        ("mamba2",),
        "AntonV/mamba2-130m-hf …; the native state-spaces/mamba2-130m …",
        "transformers; a float64 re-implementation for native files",
        _OUTPUTS,
        ("conv", "ssm"),
        fused=True,
        attention="hidden, by head",
        lora=("in_proj",),
    ),
    Family(
        "RWKV-4",
        ("rwkv",),
        "RWKV/rwkv-4-169m-pile …; BlinkDL/rwkv-4-pile-169m/FILE.pth …",
        "transformers, the rwkv package, stored logits",
        _OUTPUTS,
        ("att_shift", "den", "ffn_shift", "max", "num"),
        fused=True,
        attention="hidden, by channel",
        lora=("key", "value", "receptance", "output"),
    ),
    Family(
        "RWKV-5, 6, 7",
        ("rwkv_official",),
        "BlinkDL/rwkv-5-world/FILE.pth, rwkv-6-world, rwkv-7-world …",
        "the rwkv package; stored logits of 5.2 (at their epsilon, 1e-5) and 6 (quantised: within 0.08)",
        _OUTPUTS,
        ("att_shift", "ffn_shift", "wkv"),
        fused=True,
        attention="hidden, by head",
        lora=("key", "value", "receptance", "output"),
    ),
    Family(
        "RecurrentGemma",
        ("recurrent_gemma",),
        "google/recurrentgemma-2b …",
        _TRANSFORMERS,
        state=("conv", "lru"),
        fused=True,
    ),
    Family(
        "Nemotron-H",
        ("nemotron_h",),
        "nvidia/Nemotron-H-8B-Base-8K …",
        _TRANSFORMERS,
        state=_MAMBA2_HYBRID,
        attention=_BOTH,
    ),
    Family(
        "Granite-4-H",
        ("granitemoehybrid",),
        "ibm-granite/granite-4.0-h-tiny …",
        _TRANSFORMERS,
        state=_MAMBA2_HYBRID,
        attention=_BOTH,
    ),
    Family(
        "Falcon-H1",
        ("falcon_h1",),
        "tiiuae/Falcon-H1-0.5B-Base …",
        _TRANSFORMERS,
        state=_MAMBA2_HYBRID,
        attention=_BOTH,
    ),
    Family("Bamba", ("bamba",), "ibm-ai-platform/Bamba-9B-v2 …", _TRANSFORMERS, state=_MAMBA2_HYBRID, attention=_BOTH),
    Family("Zamba2", ("zamba2",), "Zyphra/Zamba2-1.2B …", _TRANSFORMERS, state=_MAMBA2_HYBRID, attention=_BOTH),
    Family("Zamba", ("zamba",), "Zyphra/Zamba-7B-v1 …", _TRANSFORMERS, state=("conv", "ssm"), attention=_SOFTMAX),
    Family(
        "Jamba",
        ("jamba",),
        "ai21labs/AI21-Jamba-Reasoning-3B …",
        _TRANSFORMERS,
        state=("conv", "ssm"),
        attention=_SOFTMAX,
    ),
    Family(
        "Qwen3-Next",
        ("qwen3_next",),
        "Qwen/Qwen3-Next-80B-A3B-Instruct …",
        _TRANSFORMERS,
        state=_DELTA_HYBRID,
        attention=_BOTH,
    ),
    Family(
        "Qwen3.5",
        ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe"),
        "Qwen/Qwen3.5-0.8B-Base …, the folders with a vision part too",
        _TRANSFORMERS,
        state=_DELTA_HYBRID,
        attention=_BOTH,
    ),
    Family(
        "OLMo-Hybrid", ("olmo_hybrid",), "allenai/Olmo-Hybrid-7B …", _TRANSFORMERS, state=_DELTA_HYBRID, attention=_BOTH
    ),
    Family(
        "Kimi-Linear",
        ("kimi_linear",),
        "moonshotai/Kimi-Linear-48B-A3B-Base …",
        _TRANSFORMERS,
        state=_DELTA_HYBRID,
        attention=_BOTH,
    ),
    Family("LFM2", ("lfm2", "lfm2_moe"), "LiquidAI/LFM2-350M …", _TRANSFORMERS, state=("conv",), attention=_SOFTMAX),
    Family("MiniMax", ("minimax",), "MiniMaxAI/MiniMax-Text-01-hf …", _TRANSFORMERS, state=("kv",), attention=_SOFTMAX),
    Family("xLSTM", ("xlstm",), "NX-AI/xLSTM-7b …", _TRANSFORMERS),
    Family(
        "transformers, as controls",
        (
            "gpt_neox",
            "llama",
            "gpt2",
            "qwen3",
            "gemma2",
            "gemma3_text",
            "mistral",
            "olmo2",
            "phi3",
            "gpt_oss",
            "cohere",
            "granite",
            "opt",
        ),
        "EleutherAI/pythia-160m, Qwen/Qwen3-0.6B-Base … and every other causal model of transformers",
        _TRANSFORMERS,
        attention=_SOFTMAX,
    ),
    Family(
        "code beside the weights",
        ("*",),
        "RWKV/rwkv-5-world-1b5, fla-hub/rwkv7-… with --trust-remote-code",
        "its own logits, when it loads",
        "found when it loads",
    ),
)


def supported() -> tuple[Family, ...]:
    """The families that `load_model` takes. All run on the CPU and on CUDA GPUs, those with code of their own where
    that code does."""
    return _FAMILIES


def table() -> str:
    """The same as the README's table, in Markdown."""
    columns = (
        "family",
        "hidden state i",
        "state",
        "fused on the CPU",
        "attention to look at",
        "relevance",
        "LoRA",
        "checkpoints",
        "compared with",
    )
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    for family in _FAMILIES:
        since = f" (transformers {family.since} and later)" if family.since else ""
        cells = (
            *(family.name + since, family.layers, ", ".join(f"`{name}`" for name in family.state) or "–"),
            *("yes" if family.fused else "–", family.attention or "–", "yes" if family.relevance else "–"),
            ", ".join(f"`{name}`" for name in family.lora) or "linear maps of the blocks",
            *(family.checkpoints, family.compared),
        )
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)
