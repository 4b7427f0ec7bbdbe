"""RWKV-4 (transformers)."""

from functools import partial
from typing import Any

from lens_rnn.models.adapter import ModelAdapter, register
from lens_rnn.models.recurrences import wkv4

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@register("rwkv")
class RWKV4Adapter(ModelAdapter):
    """In evaluation mode transformers halves the residual stream after every `rescale_every` blocks and scales weights to match,
    so hidden states are read from the model's own output, never from hooks on blocks."""

    states_after_blocks = True

    def __init__(self, model: PreTrainedModel, *args: Any):
        super().__init__(model, *args)
        use_fused_wkv(model)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.rwkv.blocks

    @property
    def longest_sequence(self) -> int | None:
        """The CUDA kernel that transformers fetches has a limit; the recurrence itself has none."""
        return int(self.model.config.context_length) if self.device.type == "cuda" else None

    @property
    def final_norm(self) -> nn.Module:
        return self.model.rwkv.ln_out


def use_fused_wkv(model: Any) -> None:
    """Make every time-mixing layer of a transformers RWKV-4 use the fused recurrence where it applies: float32, CPU, no state."""
    for block in model.rwkv.blocks:
        attention = block.attention
        attention.forward = partial(_attention_forward, attention, attention.forward)


def _attention_forward(attention: Any, plain: Any, hidden: Tensor, state: Any = None, use_cache: bool = False) -> tuple[Tensor, Any]:
    """RwkvSelfAttention.forward with the loop over time fused; `plain` is transformers' own, for what wkv4 does not cover."""
    if state is not None or use_cache or hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return plain(hidden, state=state, use_cache=use_cache)
    receptance, key, value, _ = attention.extract_key_value(hidden)  # (batch, seq, channels) each
    bonus = attention.time_first.clone()  # a kernel's view of a tensor pins its storage, and a sharded parameter's must be freed
    y = wkv4(-torch.exp(attention.time_decay), bonus, key, value)
    return attention.output(receptance * y), None
