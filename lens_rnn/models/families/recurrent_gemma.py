"""RecurrentGemma: RG-LRU blocks with local attention between them (De et al. 2024, arXiv 2402.19427), with
transformers' names.

x_t    input of the recurrence, after convolution                                        (batch, seq, width)
r, i   recurrence and input gate                                        eqs. 1 and 2     (batch, seq, width)
a      decay, exp(−8 softplus(Λ) r)                                     eqs. 3 and 6     (batch, seq, width)
h      state, h_t = a h_{t−1} + √(1 − a²) (i ⊙ x_t)                     eq. 4            (batch, width)
"""

from typing import Any

from lens_rnn.models import scans
from lens_rnn.models.families.recurrent import BlockState, Passage, RecurrentAdapter
from lens_rnn.models.registry import register

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN


@register("recurrent_gemma")
class RecurrentGemmaAdapter(RecurrentAdapter):
    """Hidden states are the blocks' inputs. A recurrent block's state: the last inputs of its convolution `conv`
    (batch, channels, kernel − 1) and `lru` (batch, channels), float32; an attention block has the `keys` and `values`
    of the tokens in its window, (batch, heads, tokens, head size). Logits are capped."""

    states_after_blocks = False
    state_names = ("conv", "lru")

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.model.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.model.model.final_norm

    def embed(self, input_ids: Tensor) -> Tensor:
        x = super().embed(input_ids)
        scale = torch.tensor(
            self.model.config.hidden_size**0.5, dtype=torch.bfloat16, device=x.device
        )  # in bfloat16 at all times
        return x * scale.to(x.dtype)

    def run_block(
        self, index: int, x: Tensor, before: BlockState | None, passage: Passage
    ) -> tuple[Tensor, BlockState]:
        block: Any = self.blocks[index]
        temporal = block.temporal_block
        mix = self._recur if hasattr(temporal, "rg_lru") else self._attend
        y, after = mix(temporal, block.temporal_pre_norm(x), before, passage)
        x = x + y
        return x + self._feed_forward(block.mlp_block, block.channel_pre_norm(x)), after

    def _act(self, x: Tensor) -> Tensor:
        return ACT2FN[self.model.config.hidden_activation](x)

    def _feed_forward(self, mlp: Any, x: Tensor) -> Tensor:
        return mlp.down_proj(self._act(mlp.gate_proj(x)) * mlp.up_proj(x))

    def _recur(
        self, temporal: Any, x: Tensor, before: BlockState | None, passage: Passage
    ) -> tuple[Tensor, BlockState]:
        conv, start = (before["conv"], before["lru"]) if before else (None, None)
        into = temporal.linear_x(x).transpose(1, 2)
        convolved = scans.causal_conv(temporal.conv_1d, into, conv).transpose(1, 2)
        decay, drive = _gates(temporal.rg_lru, convolved, at_start=passage.seen == 0)
        h, last = scans.lru(decay, drive, start)
        out = temporal.linear_out(h.to(x.dtype) * self._act(temporal.linear_y(x)))
        return out, {
            "conv": scans.last_inputs(into, conv, temporal.conv_1d.kernel_size[0] - 1),
            "lru": last,
        } if passage.keeps else {}

    def _attend(
        self, temporal: Any, x: Tensor, before: BlockState | None, passage: Passage
    ) -> tuple[Tensor, BlockState]:
        """Each token attends to itself and to the tokens before it that are in the window."""
        config = self.model.config
        q, k, v = (projection(x).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
                   for projection in (temporal.q_proj, temporal.k_proj, temporal.v_proj))  # fmt: skip
        positions = torch.arange(passage.seen, passage.seen + x.shape[1], device=x.device)
        q, k = _rotated(q, positions, config), _rotated(k, positions, config)
        if before:
            k, v = torch.cat([before["keys"], k], 2), torch.cat([before["values"], v], 2)
        kept = k.shape[2] - x.shape[1]  # tokens of the window that were read before
        age = torch.arange(x.shape[1], device=x.device)[:, None] + kept - torch.arange(k.shape[2], device=x.device)
        window = config.attention_window_size
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(age >= 0) & (age < window), enable_gqa=True)
        out = temporal.o_proj(y.transpose(1, 2).flatten(2))
        # the next token sees one token less of what was before
        return out, {
            name: t[:, :, -(window - 1) :].clone() for name, t in (("keys", k), ("values", v))
        } if passage.keeps else {}


def _gates(lru: Any, x: Tensor, at_start: bool) -> tuple[Tensor, Tensor]:
    """Decay and drive of the recurrence (batch, seq, width). The first token of a text is taken in whole and meets an
    empty state."""

    def gate(weight: Tensor, bias: Tensor) -> Tensor:  # of each head by itself
        return torch.sigmoid((torch.einsum("bthi,hij->bthj", x.unflatten(-1, bias.shape), weight) + bias).flatten(2))

    taken_in = gate(lru.input_gate_weight, lru.input_gate_bias)
    log_decay = -8.0 * gate(lru.recurrent_gate_weight, lru.recurrent_gate_bias) * F.softplus(lru.recurrent_param)
    share = torch.sqrt(
        (1 - torch.exp(2 * log_decay)).clamp_min(1e-20)
    )  # its gradient has to stay finite where nothing is forgotten
    if at_start:
        share = torch.cat([torch.ones_like(share[:, :1]), share[:, 1:]], 1)
    return torch.exp(log_decay), x * taken_in * share.to(x.dtype)


def _rotated(x: Tensor, positions: Tensor, config: Any) -> Tensor:
    """x (batch, heads, seq, head size) with the first part of each head turned by its position (Su et al. 2021, arXiv
    2104.09864)."""
    settings = getattr(config, "rope_parameters", None) or {}
    base = settings.get("rope_theta", getattr(config, "rope_theta", 10000.0))
    share = settings.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 0.5))
    size = int(x.shape[-1] * share)
    frequencies = base ** -(torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size)
    angles = (positions[:, None] * frequencies).repeat(1, 2)  # (seq, size)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    turned, rest = x[..., :size], x[..., size:]
    halves = torch.cat([-turned[..., size // 2 :], turned[..., : size // 2]], -1)
    return torch.cat([turned * cos + halves * sin, rest], -1)
