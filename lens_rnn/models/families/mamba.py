"""Mamba-1 (Gu & Dao 2023, arXiv 2312.00752) and Falcon-Mamba, with transformers' names of weights and settings.

z     gate                                    (batch, channels, seq)
u     input of the scan, after convolution    (batch, channels, seq)
dt    step size, after softplus               (batch, channels, seq)
A     transition, negative                    (channels, n)               n = SSM state size
B, C  input and output matrix                 (batch, seq, n)
D     skip                                    (channels)
S     SSM state                               (batch, channels, n)
"""

from abc import abstractmethod
from typing import Any, NamedTuple

from lens_rnn.models import fused, recurrences, scans
from lens_rnn.models.families.recurrent import PLAIN, BlockState, Passage, RecurrentAdapter, Rules
from lens_rnn.models.matrices import decayed_products
from lens_rnn.models.recurrence import Recurrence
from lens_rnn.models.registry import register

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Inputs(NamedTuple):
    """What the recurrence of a block works on."""

    u: Tensor
    z: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    into_conv: Tensor
    """The convolution's input (batch, channels, seq), of which the state keeps the last ones."""


class BackboneAdapter(RecurrentAdapter):
    """What Mamba-1, Falcon-Mamba and Mamba-2 have in common: hidden states are the blocks' outputs, and a block is x +
    mixer(norm(x)).

    A block's state: the last inputs of its convolution, `conv` (batch, channels, kernel), and `ssm`, float32.
    """

    states_after_blocks = True
    state_names = ("conv", "ssm")
    lora_modules = ("in_proj",)
    """Its other maps have no gradient on some path: kernels take their weights past the module."""

    @property
    def family(self) -> str:
        return "mamba"

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.backbone.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.model.backbone.norm_f

    def run_block(
        self, index: int, x: Tensor, before: BlockState | None, passage: Passage
    ) -> tuple[Tensor, BlockState]:
        block: Any = self.blocks[index]
        residual = x.float() if self.model.config.residual_in_fp32 else x
        entering = x.to(block.norm.weight.dtype)
        if passage.rules is PLAIN and fused.can_fuse(entering):
            normed = fused.rms_norm(entering, block.norm.weight, self.model.config.layer_norm_epsilon)
        else:
            normed = passage.rules.norm(block.norm, entering)
        conv, start = (before["conv"], before["ssm"]) if before else (None, None)
        y, into_conv, last = self._mix(block.mixer, normed, conv, start, passage.rules)
        if not passage.keeps:
            return residual + y, {}
        kernel = block.mixer.conv1d.kernel_size[0]
        return residual + y, {"conv": scans.last_inputs(into_conv, conv, kernel), "ssm": last}

    @abstractmethod
    def _mix(
        self, mixer: Any, normed: Tensor, conv: Tensor | None, start: Tensor | None, rules: Rules
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mixer's output for its input (batch, seq, d_model), from a state on; what enters its convolution (batch,
        channels, seq); and the last S."""

    def attention_units(self, index: int) -> int:
        mixer: Any = self.blocks[index].mixer
        return len(mixer.D)

    def _normed(self, index: int, x: Tensor) -> tuple[Any, Tensor]:
        """The mixer of a block, and what enters it for the block's input x."""
        block: Any = self.blocks[index]
        return block.mixer, block.norm(x.to(block.norm.weight.dtype))


@register("mamba")
class MambaAdapter(BackboneAdapter):
    """Mamba-1. `ssm` is S (batch, channels, n)."""

    attention_unit = "channel"
    takes_rules = True

    def _mix(
        self, mixer: Any, normed: Tensor, conv: Tensor | None, start: Tensor | None, rules: Rules
    ) -> tuple[Tensor, Tensor, Tensor]:
        if rules is PLAIN and fused.can_fuse(normed):
            return self._mix_fused(mixer, normed, conv, start)
        u, z, dt, A, B, C, into_conv = self._inputs(mixer, normed, conv, rules)
        y, last = _scan(u, dt, A, B, C, start)
        y = rules.gated(y + u * mixer.D[:, None], rules.silu(z))
        return mixer.out_proj(y.transpose(1, 2).to(normed.dtype)), into_conv, last

    def _mix_fused(
        self, mixer: Any, normed: Tensor, conv: Tensor | None, start: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same in the layout that the products have, between which there are two passes over memory."""
        rank, n = mixer.dt_proj.weight.shape[1], mixer.A_log.shape[1]
        x_and_z = mixer.in_proj(normed)
        u = fused.conv_silu(x_and_z, mixer.conv1d, conv)
        dt, B, C = self._selection(*mixer.x_proj(u).split([rank, n, n], dim=-1))
        y, last = fused.gated_scan(u, mixer.dt_proj(dt), -torch.exp(mixer.A_log), B, C, mixer.D, x_and_z, start)
        return mixer.out_proj(y), x_and_z[..., : u.shape[2]].transpose(1, 2), last

    def _inputs(self, mixer: Any, normed: Tensor, conv: Tensor | None, rules: Rules = PLAIN) -> _Inputs:
        rank, n = mixer.dt_proj.weight.shape[1], mixer.A_log.shape[1]
        x, z = mixer.in_proj(normed).transpose(1, 2).chunk(2, dim=1)
        u = rules.silu(scans.causal_conv(mixer.conv1d, x, conv))
        # (batch, seq, rank), (batch, seq, n) twice
        dt, B, C = mixer.x_proj(u.transpose(1, 2)).split([rank, n, n], dim=-1)
        dt, B, C = self._selection(dt, B, C)
        dt = F.softplus(scans.wide(mixer.dt_proj(dt))).transpose(1, 2)
        dt, A, B, C = (rules.held(t) for t in (dt, -torch.exp(scans.wide(mixer.A_log)), B, C))
        return _Inputs(u, z, dt, A, B, C, x)

    def _selection(self, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt, before its projection, B and C as the family has them."""
        return dt, B, C

    @torch.no_grad()
    def recurrence(self, index: int, x: Tensor) -> Recurrence:
        """A channel: y_i = Σ_j α_ij u_j, α_ij = Σ_n C_i[n] exp(Σ_{k=j+1..i} Δ_k A[n]) Δ_j B_j[n]; gate and D u are not
        in it."""
        u, _, dt, A, B, C, _ = self._inputs(*self._normed(index, x), None)
        y, _ = _scan(u, dt, A, B, C, None)
        steps, rates = dt[0, :, :, None].float(), A[:, None].float()  # (channels, tokens, 1), (channels, 1, n)

        def weights(units: Tensor) -> Tensor:
            return decayed_products(C.float(), steps[units] * B.float(), steps[units] * rates[units])

        return Recurrence(weights, u[0].T[..., None], y[0].T[..., None])


@register("falcon_mamba")
class FalconMambaAdapter(MambaAdapter):
    """Falcon-Mamba, which norms dt, B and C."""

    def _selection(self, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eps = self.model.config.mixer_rms_eps
        dt, B, C = (F.rms_norm(scans.wide(t), t.shape[-1:], eps=eps).to(t.dtype) for t in (dt, B, C))
        return dt, B, C


def _scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """The fused scan on the CPU, which is float32; the one in plain torch elsewhere, and in float64."""
    compiled = u.device.type == "cpu" and u.dtype != torch.float64
    return (recurrences if compiled else scans).selective_scan(u, dt, A, B, C, start)
