"""Mamba-1 (transformers)."""

from functools import partial
from typing import Any

from lens_rnn.models.adapter import ModelAdapter, register
from lens_rnn.models.recurrences import selective_scan

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


@register("mamba")
class MambaAdapter(ModelAdapter):
    """Mamba-1: hidden states are the blocks' outputs, and the embeddings are tied to the head."""

    states_after_blocks = True

    def __init__(self, model: PreTrainedModel, *args: Any):
        super().__init__(model, *args)
        use_fused_scan(model)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.backbone.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.model.backbone.norm_f


def use_fused_scan(model: Any) -> None:
    """Make every mixer of a transformers Mamba use the fused scan where it applies: float32, on the CPU, without a cache."""
    for block in model.backbone.layers:
        mixer = block.mixer
        mixer.forward = partial(_mixer_forward, mixer, mixer.forward)


def _mixer_forward(mixer: Any, plain: Any, hidden: Tensor, cache_params: Any = None, attention_mask: Any = None, **kwargs: Any) -> Tensor:
    """MambaMixer.forward with the loop over time fused; `plain` is transformers' own, for what the fused scan does not cover."""
    if cache_params is not None or attention_mask is not None or hidden.device.type != "cpu" or mixer.A_log.dtype != torch.float32:
        return plain(hidden, cache_params=cache_params, attention_mask=attention_mask, **kwargs)
    seq = hidden.shape[1]
    n, rank = mixer.ssm_state_size, mixer.time_step_rank
    x, gate = mixer.in_proj(hidden).transpose(1, 2).chunk(2, dim=1)  # (batch, channels, seq) each
    x = mixer.act(mixer.conv1d(x)[..., :seq])
    dt, B, C = mixer.x_proj(x.transpose(1, 2)).split([rank, n, n], dim=-1)  # (batch, seq, rank), (batch, seq, n) twice
    dt = F.softplus(mixer.dt_proj(dt)).transpose(1, 2)  # (batch, channels, seq)
    y, _ = selective_scan(x, dt, -torch.exp(mixer.A_log), B, C)
    y = (y + x * mixer.D[:, None]) * F.silu(gate)
    return mixer.out_proj(y.transpose(1, 2))
