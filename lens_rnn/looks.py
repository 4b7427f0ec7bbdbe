"""What families of models are called and how pictures draw them. A leaf: whoever draws or writes of a family asks here.

Nothing else depends on a family being listed: one that is not gets a look from its name.
"""

import colorsys
import hashlib
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Look:
    """One family in words and pictures."""

    title: str
    """What people call it."""
    ramp: tuple[str, str, str]
    """Colours from light to dark, for small to large."""
    lone_shade: float
    """Where on the ramp the family's only result is: apart from other families in greyscale too, where dashed lines
    have no marker."""
    marker: str
    """As matplotlib names it. No other family has that of Mamba, RWKV or GPT-NeoX, so that they stay apart in
    greyscale."""


MARKERS = ("D", "v", "P", "<", "p", ">", "*", "d", "h")
"""Of all families but the first three."""
_HUE_STEP = (5**0.5 - 1) / 2  # the golden ratio: any few hues that follow one another are far apart


def look_of(family: str | None) -> Look:
    """The look of a family, the same in every picture: from the table, else made from its name. None: of results that
    name no family."""
    if family is None:
        return _NAMELESS
    if family in LOOKS:
        return LOOKS[family]
    return _made(family, int.from_bytes(hashlib.sha256(family.encode()).digest()[:4]))


def title_of(family: str) -> str:
    """What people call a family; its own name where no other is known."""
    return look_of(family).title


def _made(title: str, number: int) -> Look:
    """The look with a number: neighbours differ in marker, hue and shade."""
    hue = number * _HUE_STEP % 1
    light, middle, dark = (
        "#" + "".join(f"{round(255 * channel):02X}" for channel in colorsys.hls_to_rgb(hue, lightness, saturation))
        for lightness, saturation in ((0.78, 0.6), (0.45, 0.65), (0.14, 0.7))
    )
    return Look(title, (light, middle, dark), (0.3, 0.7)[number % 2], MARKERS[number % len(MARKERS)])


_NAMELESS = Look("unknown", ("#E3B4D8", "#B0559A", "#45123B"), 0.5, "D")
LOOKS = {  # by the name of the family; ramps of the first three: told apart by colour-blind eyes
    "mamba": Look("Mamba", ("#7FD0F2", "#0F7AC0", "#240A52"), 0.5, "o"),
    "rwkv": Look("RWKV", ("#FAC552", "#DE630C", "#570A1E"), 0.15, "s"),
    "gpt_neox": Look("GPT-NeoX", ("#98DAA6", "#14866A", "#052A36"), 0.9, "^"),
}
LOOKS["pythia"] = replace(LOOKS["gpt_neox"], title="Pythia")
_TITLES = {  # a look is that of the place in this list: add new families at its end
    "nemotron_h": "Nemotron-H",
    "granitemoehybrid": "Granite-4-H",
    "qwen3_next": "Qwen3-Next",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5-MoE",
    "falcon_h1": "Falcon-H1",
    "lfm2": "LFM2",
    "lfm2_moe": "LFM2-MoE",
    "zamba": "Zamba",
    "zamba2": "Zamba2",
    "bamba": "Bamba",
    "jamba": "Jamba",
    "olmo_hybrid": "OLMo-Hybrid",
    "kimi_linear": "Kimi-Linear",
    "minimax": "MiniMax",
    "xlstm": "xLSTM",
    "recurrent_gemma": "RecurrentGemma",
    "llama": "Llama",
    "gpt2": "GPT-2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3",
    "mistral": "Mistral",
    "olmo2": "OLMo 2",
    "phi3": "Phi-3",
    "gpt_oss": "gpt-oss",
    "cohere": "Cohere",
    "granite": "Granite",
    "smollm3": "SmolLM3",
    "opt": "OPT",
}
LOOKS |= {family: _made(title, number) for number, (family, title) in enumerate(_TITLES.items())}
# transformers' name of the language model alone, where a family reads pictures too
LOOKS |= {f"{family}_text": LOOKS[family] for family in ("qwen3_5", "qwen3_5_moe", "gemma3")}
