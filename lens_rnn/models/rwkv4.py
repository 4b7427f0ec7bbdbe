"""RWKV-4 (transformers)."""

from functools import partial
from typing import Any

from lens_rnn.models.adapter import Forward, ModelAdapter, register
from lens_rnn.models.recurrences import wkv4, wkv4_from_state
from lens_rnn.models.state import RecurrentState

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention


@register("rwkv")
class RWKV4Adapter(ModelAdapter):
    """In evaluation mode transformers halves the residual stream after every `rescale_every` blocks and scales weights to match,
    so hidden states are read from the model's own output, never from hooks on blocks.

    A block's state, all (batch, d_model): the last normed inputs `att_shift` and `ffn_shift`, and the weighted average's numerator
    `num` and denominator `den`, both relative to exp(`max`).
    """

    states_after_blocks = True
    state_names = ("ffn_shift", "att_shift", "num", "den", "max")  # in transformers' order

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

    def _advance(self, input_ids: Tensor, state: RecurrentState | None) -> tuple[Forward, RecurrentState]:
        # transformers has five tensors (batch, d_model, layers) and changes them in place; torch.stack makes new ones
        theirs = None if state is None else [torch.stack(state.of(name), dim=-1) for name in self.state_names]
        forward, output = self._run(input_ids, state=theirs, use_cache=True)
        tensors: dict[str, list[Tensor | None]] = {name: [*t.unbind(-1)] for name, t in zip(self.state_names, output.state, strict=True)}
        return forward, RecurrentState(tensors, input_ids.shape[1] + (state.tokens if state else 0))


def use_fused_wkv(model: Any) -> None:
    """Make every block of a transformers RWKV-4 use the fused recurrence where it applies, in float32 on the CPU, and continue from a
    state for any batch: transformers' own token shift is wrong for one token a sequence and several sequences."""
    for block in model.rwkv.blocks:
        block.attention.forward = partial(_attention_forward, block.attention)
        block.feed_forward.forward = partial(_feed_forward, block.feed_forward)


def _shifted(hidden: Tensor, last: Tensor | None) -> Tensor:
    """hidden (batch, seq, d_model) one token earlier, with `last` (batch, d_model), or zeros, before the first."""
    first = torch.zeros_like(hidden[:, :1]) if last is None else last[:, None].to(hidden.dtype)
    return torch.cat([first, hidden[:, :-1]], 1)


def _mix(hidden: Tensor, shifted: Tensor, share: Tensor) -> Tensor:
    return hidden * share + shifted * (1 - share)


def _attention_forward(attention: Any, hidden: Tensor, state: Any = None, use_cache: bool = False) -> tuple[Tensor, Any]:
    """RwkvSelfAttention.forward; `state` is transformers' list of five tensors, changed in place as it does."""
    layer = attention.layer_id
    shifted = _shifted(hidden, None if state is None else state[1][..., layer])
    key = attention.key(_mix(hidden, shifted, attention.time_mix_key))  # (batch, seq, channels)
    value = attention.value(_mix(hidden, shifted, attention.time_mix_value))
    receptance = torch.sigmoid(attention.receptance(_mix(hidden, shifted, attention.time_mix_receptance)))
    sums = None if state is None else tuple(s[..., layer] for s in state[2:])
    if hidden.device.type == "cpu" and hidden.dtype == torch.float32:
        bonus = attention.time_first.clone()  # a kernel's view of a tensor pins its storage, and a sharded parameter's must be freed
        decay = -torch.exp(attention.time_decay)
        y, after = (wkv4(decay, bonus, key, value), ()) if sums is None else wkv4_from_state(decay, bonus, key, value, sums)
    else:
        y, after = rwkv_linear_attention(attention.time_decay, attention.time_first, key, value, state=sums, return_state=use_cache)
    if state is not None:
        state[1][..., layer] = hidden[:, -1]
        for tensor, new in zip(state[2:], after, strict=True):
            tensor[..., layer] = new
    return attention.output(receptance * y), state


def _feed_forward(feed: Any, hidden: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """RwkvFeedForward.forward, with the same state."""
    shifted = _shifted(hidden, None if state is None else state[0][..., feed.layer_id])
    value = feed.value(torch.square(torch.relu(feed.key(_mix(hidden, shifted, feed.time_mix_key)))))
    receptance = torch.sigmoid(feed.receptance(_mix(hidden, shifted, feed.time_mix_receptance)))
    if state is not None:
        state[0][..., feed.layer_id] = hidden[:, -1]
    return receptance * value, state
