"""Mamba-1, Falcon-Mamba and Mamba-2 (transformers)."""

from functools import partial
from typing import Any

from lens_rnn.models.adapter import Forward, ModelAdapter, register
from lens_rnn.models.recurrences import selective_scan
from lens_rnn.models.state import RecurrentState

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel


class MambaFamilyAdapter(ModelAdapter):
    """Hidden states are the blocks' outputs. A block's state: the last inputs of its convolution `conv` (batch, channels, kernel), and
    `ssm`, for Mamba-1 (batch, channels, n), for Mamba-2 (batch, heads, head size, n), float32."""

    states_after_blocks = True
    state_names = ("conv", "ssm")

    @property
    def family(self) -> str:
        return "mamba"

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.backbone.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.model.backbone.norm_f

    def continues(self, tokens: int) -> bool:
        """Whether the mixers can read so many tokens at once from a state that is not empty."""
        return tokens == 1

    def _advance(self, input_ids: Tensor, state: RecurrentState | None) -> tuple[Forward, RecurrentState]:
        if state is not None and not self.continues(input_ids.shape[1]):
            return self._token_by_token(input_ids, state)
        cache: Any = DynamicCache(config=self.model.config)
        if state is not None:
            for i, (conv, ssm) in enumerate(zip(state.of("conv"), state.of("ssm"), strict=True)):  # the cache copies them
                cache.update_conv_state(conv, i)
                cache.update_recurrent_state(ssm, i)
        forward, _ = self._run(input_ids, cache_params=cache, use_cache=True)
        tensors = {"conv": [layer.conv_states[0] for layer in cache.layers], "ssm": [layer.recurrent_states[0] for layer in cache.layers]}
        return forward, RecurrentState(tensors, input_ids.shape[1] + (state.tokens if state else 0))


@register("mamba", "falcon_mamba")
class MambaAdapter(MambaFamilyAdapter):
    """Mamba-1, and Falcon-Mamba, which norms dt, B and C."""

    def __init__(self, model: PreTrainedModel, *args: Any):
        super().__init__(model, *args)
        use_fused_scan(model)

    def continues(self, tokens: int) -> bool:
        return tokens == 1 or _is_fused(self.blocks[0].mixer, self.device)


@register("mamba2")
class Mamba2Adapter(MambaFamilyAdapter):
    """Mamba-2, whose chunked scan is fast on a CPU as transformers has it, and starts from any state."""

    def continues(self, tokens: int) -> bool:
        return tokens > 0


def use_fused_scan(model: Any) -> None:
    """Make every mixer of a transformers Mamba-1 or Falcon-Mamba use the fused scan where it applies: float32, on the CPU."""
    for block in model.backbone.layers:
        mixer = block.mixer
        mixer.forward = partial(_mixer_forward, mixer, mixer.forward)


def _is_fused(mixer: Any, device: torch.device) -> bool:
    return device.type == "cpu" and mixer.A_log.dtype == torch.float32


def _mixer_forward(mixer: Any, plain: Any, hidden: Tensor, cache_params: Any = None, attention_mask: Any = None, **kwargs: Any) -> Tensor:
    """The mixer's forward with the loop over time fused; `plain` is transformers' own, for what the fused scan does not cover.

    Unlike it, this reads any number of tokens from a state that is not empty.
    """
    if attention_mask is not None or not _is_fused(mixer, hidden.device):
        return plain(hidden, cache_params=cache_params, attention_mask=attention_mask, **kwargs)
    seq, layer = hidden.shape[1], mixer.layer_idx
    n, rank = mixer.ssm_state_size, mixer.time_step_rank
    start = None if cache_params is None else cache_params.get_recurrent_state(layer)
    x, gate = mixer.in_proj(hidden).transpose(1, 2).chunk(2, dim=1)  # (batch, channels, seq) each
    if cache_params is not None:  # what came before is put in front of x
        x = cache_params.update_conv_state(x, layer, conv_kernel_size=mixer.conv_kernel_size)
    x = mixer.act(mixer.conv1d(x)[..., : x.shape[-1]][..., -seq:])
    dt, B, C = mixer.x_proj(x.transpose(1, 2)).split([rank, n, n], dim=-1)  # (batch, seq, rank), (batch, seq, n) twice
    if hasattr(mixer, "dt_layernorm"):
        dt, B, C = mixer.dt_layernorm(dt), mixer.b_layernorm(B), mixer.c_layernorm(C)
    dt = F.softplus(mixer.dt_proj(dt)).transpose(1, 2)  # (batch, channels, seq)
    y, last = selective_scan(x, dt, -torch.exp(mixer.A_log), B, C, start)
    if cache_params is not None:
        cache_params.update_recurrent_state(last, layer)
    y = (y + x * mixer.D[:, None]) * F.silu(gate)
    return mixer.out_proj(y.transpose(1, 2))
