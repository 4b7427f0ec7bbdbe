"""Mamba-2 (Dao & Gu 2024, arXiv 2405.21060), with transformers' names of weights and settings.

z     gate                                     (batch, seq, heads × p)
x     input of the scan, after convolution     (batch, seq, heads, p)           p = head size
dt    step size, after softplus                (batch, seq, heads)
A     transition, negative                     (heads)
B, C  input and output matrix                  (batch, seq, groups, n)          n = SSM state size
D     skip                                     (heads)
S     SSM state                                (batch, heads, p, n)
"""

from typing import Any, NamedTuple

from lens_rnn.models import scans
from lens_rnn.models.adapter import register
from lens_rnn.models.families.mamba import BackboneAdapter
from lens_rnn.models.families.recurrent import BlockState, Passage, Recurrence
from lens_rnn.models.matrices import decayed_products

import torch
import torch.nn.functional as F
from torch import Tensor


class _Inputs(NamedTuple):
    """What the recurrence of a block works on."""

    x: Tensor
    z: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    into_conv: Tensor
    """The convolution's input (batch, channels, seq), of which the state keeps the last ones."""


@register("mamba2")
class Mamba2Adapter(BackboneAdapter):
    """Mamba-2. `ssm` is S (batch, heads, p, n)."""

    attention_unit = "head"

    def _mix(self, mixer: Any, normed: Tensor, before: BlockState | None, passage: Passage) -> tuple[Tensor, BlockState]:
        conv, start = (before["conv"], before["ssm"]) if before else (None, None)
        x, z, dt, A, B, C, into_conv = self._inputs(mixer, normed, conv)
        y, last = scans.ssd(x, dt, A, B, C, start)
        y = self._gated_norm(mixer, (y + mixer.D[:, None] * x).flatten(2), z)
        out = mixer.out_proj(y.to(normed.dtype))
        return out, {"conv": scans.last_inputs(into_conv, conv, mixer.conv1d.kernel_size[0]), "ssm": last} if passage.keeps else {}

    def _inputs(self, mixer: Any, normed: Tensor, conv: Tensor | None) -> _Inputs:
        config = self.model.config
        heads, inner = len(mixer.D), mixer.out_proj.in_features
        groups = (config.n_groups, config.state_size)
        z, xBC, dt = mixer.in_proj(normed).split([inner, mixer.conv1d.in_channels, heads], dim=-1)
        xBC = xBC.transpose(1, 2)
        mixed = F.silu(scans.causal_conv(mixer.conv1d, xBC, conv)).transpose(1, 2)
        x, B, C = mixed.split([inner, groups[0] * groups[1], groups[0] * groups[1]], dim=-1)
        dt = F.softplus(scans.wide(dt) + scans.wide(mixer.dt_bias)).clamp(*config.time_step_limit)
        B, C = B.unflatten(-1, groups), C.unflatten(-1, groups)
        return _Inputs(x.unflatten(-1, (heads, -1)), z, dt, -torch.exp(scans.wide(mixer.A_log)), B, C, xBC)

    def _gated_norm(self, mixer: Any, y: Tensor, z: Tensor) -> Tensor:
        """The norm of y · silu(z) (batch, seq, heads × p), each group of heads by itself."""
        gated = (y * F.silu(scans.wide(z))).unflatten(-1, (self.model.config.n_groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], eps=self.model.config.layer_norm_epsilon)
        return mixer.norm.weight * normed.flatten(2).to(mixer.norm.weight.dtype)

    def attention_units(self, index: int) -> int:
        mixer: Any = self.blocks[index].mixer
        return len(mixer.D)

    @torch.no_grad()
    def recurrence(self, index: int, x: Tensor) -> Recurrence:
        """A head: y_i = Σ_j α_ij x_j, α_ij = C_i · B_j exp(Σ_{k=j+1..i} Δ_k A) Δ_j; gate, norm and D x are not in it."""
        inputs = self._inputs(*self._normed(index, x), None)
        y, _ = scans.ssd(inputs.x, inputs.dt, inputs.A, inputs.B, inputs.C)
        B, C = (t[0].float().transpose(0, 1) for t in (inputs.B, inputs.C))  # (groups, tokens, n)
        steps, rates = inputs.dt[0].T[..., None], inputs.A[:, None, None]  # (heads, tokens, 1), (heads, 1, 1)
        group = torch.arange(len(rates), device=x.device) // (len(rates) // len(B))

        def weights(units: Tensor) -> Tensor:
            return decayed_products(C[group[units]], steps[units] * B[group[units]], steps[units] * rates[units])

        return Recurrence(weights, inputs.x[0], y[0])
