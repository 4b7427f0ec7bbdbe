"""Tiny random models of the hybrid and recurrent families of transformers that have no file of their own here, heads
scaled."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

VOCAB_SIZE = 96

_ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_COMMON: dict[str, Any] = {
    **{"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 64},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, **_ENDS},
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 8,
}
_DELTA = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
}
_ONE_OF_FOUR = ["mamba", "attention", "mamba", "mamba"]

SETTINGS: dict[str, dict[str, Any]] = {
    "nemotron_h": {
        **{"layers_block_type": ["mamba", "attention", "mamba", "mlp"], "mamba_num_heads": 8, "mamba_head_dim": 8},
        **{"n_groups": 2, "ssm_state_size": 16, "head_dim": 8, "chunk_size": 8},
    },
    "qwen3_next": {**_DELTA, **_EXPERTS, "head_dim": 16, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": {**_DELTA, "head_dim": 16},
    "qwen3_5_moe_text": {**_DELTA, **_EXPERTS, "head_dim": 16, "shared_expert_intermediate_size": 16},
    "olmo_hybrid": _DELTA,
    "kimi_linear": {
        **{
            "num_key_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        },
        **{
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
        **{
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        "moe_intermediate_size": 16,
    },
    "granitemoehybrid": {
        **_MAMBA2,
        **{"layer_types": _ONE_OF_FOUR, "mamba_expand": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
        **{"shared_intermediate_size": 32, "logits_scaling": 6.0},
    },
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64, "lm_head_multiplier": 0.4, "head_dim": 8},
    "bamba": {**_MAMBA2, "attn_layer_indices": [1], "mamba_expand": 2},
    "lfm2": {
        "layer_types": ["conv", "full_attention", "conv", "conv"],
        "conv_L_cache": 3,
        "block_auto_adjust_ff_dim": False,
    },
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "conv", "conv"],
        "conv_L_cache": 3,
        "num_dense_layers": 1,
        **_EXPERTS,
    },
    "zamba": {
        **{
            "num_hidden_layers": 5,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba"],
            "n_mamba_heads": 2,
        },
        **{"mamba_d_state": 4, "mamba_dt_rank": 4, "attention_hidden_size": 64, "attention_head_dim": 16},
    },
    "zamba2": {
        **{
            "layers_block_type": ["mamba", "hybrid", "mamba", "mamba"],
            "mamba_d_state": 16,
            "mamba_ngroups": 2,
            "n_mamba_heads": 8,
        },
        **{"mamba_headdim": 8, "chunk_size": 8, "num_mem_blocks": 1, "attention_head_dim": 16},
    },
    "jamba": {
        **{"attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 4, "mamba_dt_rank": 4},
    },
    "minimax": {
        **{
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        },
        **{"num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 4},
    },
    "xlstm": {"num_heads": 4, "num_blocks": 3, "num_hidden_layers": 3, "embedding_dim": 32, "chunk_size": 8},
}
STATES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("nemotron_h", "granitemoehybrid", "falcon_h1", "bamba", "zamba", "zamba2", "jamba"), ("conv", "ssm")
    ),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "kimi_linear"), ("conv", "delta")
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe"), ("conv",)),
    "minimax": ("kv",),
    "xlstm": (),
}
"""What the recurrent state of each is called; a family with several convolutions has conv2, conv3 besides."""

CONTROLS: dict[str, dict[str, Any]] = {
    name: {"head_dim": 8, **more}
    for name, more in {
        **{
            "qwen3": {},
            "gemma2": {"final_logit_softcapping": 2.0},
            "gemma3_text": {},
            "mistral": {},
            "olmo2": {},
            "phi3": {},
        },
        **{
            "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
            "cohere": {"logit_scale": 0.25},
            "granite": {"logits_scaling": 8.0},
        },
        **{"llama": {}, "smollm3": {}, "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}},
    }.items()
}
"""Transformers without any recurrence."""


def is_here(model_type: str) -> bool:
    """Whether the installed transformers has the family."""
    return model_type in CONFIG_MAPPING


def make_hybrid(model_type: str, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> PreTrainedModel:
    """A tiny model in float32 and evaluation mode, random enough for logits far from 0."""
    settings = _COMMON | (SETTINGS | CONTROLS)[model_type] | {"vocab_size": vocab_size}
    if model_type == "xlstm":
        settings = {"vocab_size": vocab_size, "hidden_size": 32, **_ENDS} | SETTINGS["xlstm"]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and not name.endswith("A_log"):
                parameter.normal_(std=1.2 * parameter.shape[-1] ** -0.5)
    return model.eval()


def make_vision_model(model_type: str) -> PreTrainedModel:
    """A whole Qwen3.5 with its vision part, of which a lens looks at the language model."""
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "out_hidden_size": 32,
        "patch_size": 4,
    }
    text = _COMMON | SETTINGS[f"{model_type}_text"] | {"model_type": f"{model_type}_text"}
    config = AutoConfig.for_model(model_type, text_config=text, vision_config=vision | {"num_position_embeddings": 16})
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config)
