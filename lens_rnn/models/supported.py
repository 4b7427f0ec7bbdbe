"""Which families this package knows, where their checkpoints live, and what each was verified against."""

from typing import NamedTuple


class Family(NamedTuple):
    """One row of the table in the README."""

    name: str
    model_types: tuple[str, ...]
    """`config.model_type`, or what load_model takes a file for."""
    checkpoints: str
    verified: str
    """What its outputs were compared with, by whose code."""
    state: bool
    """Whether the recurrent state can be read, copied and changed (`ModelAdapter.advance`)."""
    layers: str
    """What hidden state i is."""


_AFTER, _BEFORE = "output of block i", "input of block i"

_FAMILIES = (
    Family(
        "Mamba",
        ("mamba",),
        "state-spaces/mamba-130m-hf …; the native state-spaces/mamba-130m …",
        "transformers; a float64 re-implementation for native files",
        True,
        _AFTER,
    ),
    Family(
        "Mamba-2",
        ("mamba2",),
        "AntonV/mamba2-130m-hf …; the native state-spaces/mamba2-130m …",
        "transformers; a float64 re-implementation for native files",
        True,
        _AFTER,
    ),
    Family("Falcon-Mamba", ("falcon_mamba",), "tiiuae/falcon-mamba-7b …", "transformers", True, _AFTER),
    Family(
        "RWKV-4",
        ("rwkv",),
        "RWKV/rwkv-4-169m-pile …; BlinkDL/rwkv-4-pile-169m/FILE.pth …",
        "transformers, the rwkv package, stored logits",
        True,
        _AFTER,
    ),
    Family(
        "RWKV-5, 6, 7",
        ("rwkv_official",),
        "BlinkDL/rwkv-5-world/FILE.pth, rwkv-6-world, rwkv-7-world …",
        "the rwkv package; stored logits of 5.2 (at their epsilon, 1e-5) and 6 (quantised: within 0.08)",
        True,
        _AFTER,
    ),
    Family("RecurrentGemma", ("recurrent_gemma",), "google/recurrentgemma-2b …", "transformers", True, _BEFORE),
    Family("GPT-NeoX (Pythia)", ("gpt_neox",), "EleutherAI/pythia-160m …", "transformers", False, _BEFORE),
    Family("Llama", ("llama",), "meta-llama/Llama-2-7b-hf …", "transformers", False, _BEFORE),
    Family("GPT-2", ("gpt2",), "openai-community/gpt2 …", "transformers", False, _BEFORE),
    Family(
        "code beside the weights",
        ("*",),
        "RWKV/rwkv-5-world-1b5, fla-hub/rwkv7-… with --trust-remote-code",
        "its own logits, when it loads",
        False,
        "found when it loads",
    ),
)


def supported() -> tuple[Family, ...]:
    """The families that `load_model` takes. All run on the CPU and on CUDA GPUs, those with code of their own where that code does."""
    return _FAMILIES
