"""RWKV-4 (Peng et al. 2023, arXiv 2305.13048), with transformers' names of weights and settings.

x         normed input of a sub-layer                         (batch, seq, d_model)
x_prev    the same one token earlier: the token shift         (batch, seq, d_model)
r, k, v   receptance, key, value (eqs. 11 to 13)              (batch, seq, d_model)
w         decay, negative, = −exp(time_decay)                 (d_model)
u         bonus of the current token, = time_first            (d_model)
num, den  the weighted average's sums, relative to exp(max)   (batch, d_model)
"""

from typing import Any

from lens_rnn.models import fused, recurrences, scans
from lens_rnn.models.families.recurrent import BlockState, Passage, RecurrentAdapter
from lens_rnn.models.recurrence import Recurrence
from lens_rnn.models.registry import register

import torch
from torch import Tensor, nn

_SUMS = ("num", "den", "max")


@register("rwkv")
class RWKV4Adapter(RecurrentAdapter):
    """In evaluation mode transformers halves the residual stream after every `rescale_every` blocks and scales weights
    to match: hidden states are the halved ones.

    A block's state, all (batch, d_model): the last normed inputs `att_shift` and `ffn_shift`, and the weighted
    average's numerator `num` and denominator `den`, both relative to exp(`max`).
    """

    states_after_blocks = True
    state_names = ("ffn_shift", "att_shift", *_SUMS)
    attention_unit = "channel"
    lora_modules = ("key", "value", "receptance", "output")

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.rwkv.blocks

    @property
    def final_norm(self) -> nn.Module:
        return self.model.rwkv.ln_out

    @property
    def longest_sequence(self) -> int | None:
        """The CUDA kernel that transformers fetches has a limit; the recurrence itself has none."""
        return int(self.model.config.context_length) if self.device.type == "cuda" else None

    @torch.no_grad()
    def set_training(self, training: bool) -> None:
        super().set_training(training)
        # transformers scales the weights for evaluation, and back for training, in the first pass after a change of
        # mode
        self.model.base_model(torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)

    @property
    def _halved_every(self) -> int:
        """After how many blocks the residual stream is halved; 0 for never."""
        is_scaled = getattr(self.model.rwkv, "layers_are_rescaled", False)
        return int(self.model.config.rescale_every) if is_scaled else 0

    def run_block(
        self, index: int, x: Tensor, before: BlockState | None, passage: Passage
    ) -> tuple[Tensor, BlockState]:
        block: Any = self.blocks[index]
        x = _entered(block, x)
        normed = block.ln1(x)
        r, k, v = _receptance_key_value(block.attention, normed, before)
        y, sums = _weighted_average(block.attention, k, v, before, passage.keeps)
        x = x + block.attention.output(r * y.to(x.dtype))  # eq. 17
        again = block.ln2(x)
        x = x + _channel_mix(block.feed_forward, again, before)
        every = self._halved_every
        if every and (index + 1) % every == 0:
            x = x / 2
        if not passage.keeps:
            return x, {}
        return x, {
            "ffn_shift": again[:, -1].clone(),
            "att_shift": normed[:, -1].clone(),
            **dict(zip(_SUMS, sums, strict=True)),
        }

    @torch.no_grad()
    def forget(
        self,
        index: int,
        x: Tensor,
        before: BlockState,
        after: BlockState,
        passage: Passage,  # noqa: ARG002 - nothing is run
    ) -> BlockState:
        """The sums are relative to exp(max), and a token weakens what was before by the same factor whatever it says:
        decaying `max` alone is exact, where a difference of sums would not be."""
        attention: Any = self.blocks[index].attention
        decay = -torch.exp(scans.wide(attention.time_decay))
        return after | {"num": before["num"], "den": before["den"], "max": before["max"] + x.shape[1] * decay}

    def attention_units(self, index: int) -> int:
        attention: Any = self.blocks[index].attention
        return len(attention.time_decay)

    @torch.no_grad()
    def recurrence(self, index: int, x: Tensor) -> Recurrence:
        """A channel: y_i = Σ_j α_ij v_j, α_ij ∝ exp(w (i − 1 − j) + k_j), α_ii ∝ exp(u + k_i); rows sum to 1."""
        block: Any = self.blocks[index]
        normed = block.ln1(_entered(block, x))
        _, k, v = _receptance_key_value(block.attention, normed, None)
        y, _ = _weighted_average(block.attention, k, v, None, keeps=True)
        keys = k[0].float().T[:, None]  # (channels, 1, tokens)
        decay = -torch.exp(block.attention.time_decay.float())[:, None, None]
        bonus = block.attention.time_first.float()[:, None, None]
        i = torch.arange(keys.shape[-1], device=keys.device)
        age = (i[:, None] - i - 1).float()  # (tokens, tokens); −1 for the token itself, below that for what is to come

        def weights(units: Tensor) -> Tensor:
            exponents = keys[units] + torch.where(age >= 0, decay[units] * age, bonus[units])
            return exponents.masked_fill(age < -1, -torch.inf).softmax(-1)

        return Recurrence(weights, v[0][..., None], y[0][..., None])


def _entered(block: Any, x: Tensor) -> Tensor:
    """The residual stream as the sub-layers see it: the first block norms the embeddings."""
    return block.pre_ln(x) if hasattr(block, "pre_ln") else x


def _mixed(x: Tensor, last: Tensor | None, *shares: Tensor) -> tuple[Tensor, ...]:
    """x mixed with the input one token earlier, `last` before the first, by each share (1, 1, d_model) of x."""
    if fused.can_fuse(x):
        return fused.mixed(x, last, torch.cat([share.flatten(0, 1) for share in shares]))
    previous = scans.token_shift(x, last)
    return tuple(x * share + previous * (1 - share) for share in shares)


def _receptance_key_value(attention: Any, x: Tensor, before: BlockState | None) -> tuple[Tensor, Tensor, Tensor]:
    shares = (attention.time_mix_key, attention.time_mix_value, attention.time_mix_receptance)
    into_k, into_v, into_r = _mixed(x, before["att_shift"] if before else None, *shares)
    return fused.sigmoid(attention.receptance(into_r)), attention.key(into_k), attention.value(into_v)


def _weighted_average(
    attention: Any, k: Tensor, v: Tensor, before: BlockState | None, keeps: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """eq. 16: the average (batch, seq, d_model), and its sums after the last token where the passage keeps them."""
    decay = -torch.exp(scans.wide(attention.time_decay))
    bonus = scans.wide(
        attention.time_first
    ).clone()  # a kernel's view of a tensor pins its storage, and a sharded parameter's must be freed
    compiled = k.device.type == "cpu" and k.dtype != torch.float64
    sums = None if before is None else (before["num"], before["den"], before["max"])
    if compiled and sums is None and not keeps:
        return recurrences.wkv4(decay, bonus, k, v), ()
    if compiled and not torch.is_grad_enabled():
        return recurrences.wkv4_from_state(decay, bonus, k, v, sums)
    return scans.wkv4(decay, bonus, k, v, sums)


def _channel_mix(feed: Any, x: Tensor, before: BlockState | None) -> Tensor:
    """eqs. 18 to 20: the feed-forward part."""
    shares = (feed.time_mix_key, feed.time_mix_receptance)
    into_k, into_r = _mixed(x, before["ffn_shift"] if before else None, *shares)
    value = feed.value(fused.squared_relu(feed.key(into_k)))
    return fused.sigmoid(feed.receptance(into_r)) * value
