"""Mamba-2 (transformers). models/mamba2_mixer.py has its equations, which hybrids share."""

from typing import Any

from lens_rnn import versions
from lens_rnn.errors import ModelError
from lens_rnn.models import scans
from lens_rnn.models.families.mamba import BackboneAdapter
from lens_rnn.models.families.recurrent import Rules
from lens_rnn.models.mamba2_mixer import Inputs, recurrence, split
from lens_rnn.models.recurrence import Recurrence
from lens_rnn.models.registry import register

import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedModel

_NORMS_GROUPS = "5.23.0"


def norms_groups() -> bool:
    """Whether the installed transformers norms each group of a Mamba-2's heads by itself, as mamba_ssm does."""
    return Version(versions.installed("transformers") or "0") >= Version(_NORMS_GROUPS)


@register("mamba2")
class Mamba2Adapter(BackboneAdapter):
    """Mamba-2. `ssm` is S (batch, heads, p, n)."""

    attention_unit = "head"

    def __init__(self, model: PreTrainedModel, *args: Any):
        super().__init__(model, *args)
        if model.config.n_groups > 1 and not norms_groups():
            raise ModelError(
                f"model type {self.model_type!r} with {model.config.n_groups} groups of heads: "
                f"{versions.describe('transformers')} "
                f"norms them as one, which is wrong; install {_NORMS_GROUPS} or newer"
            )

    def _mix(
        self, mixer: Any, normed: Tensor, conv: Tensor | None, start: Tensor | None, _: Rules
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, z, dt, A, B, C, into_conv = self._inputs(mixer, normed, conv)
        y, last = scans.ssd(x, dt, A, B, C, start)
        y = self._gated_norm(mixer, (y + mixer.D[:, None] * x).flatten(2), z)
        return mixer.out_proj(y.to(normed.dtype)), into_conv, last

    def _inputs(self, mixer: Any, normed: Tensor, conv: Tensor | None) -> Inputs:
        return split(mixer, mixer.in_proj(normed), conv, self.model.config.n_groups, self.model.config.time_step_limit)

    def _gated_norm(self, mixer: Any, y: Tensor, z: Tensor) -> Tensor:
        """The norm of y · silu(z) (batch, seq, heads × p), each group of heads by itself."""
        gated = (y * F.silu(scans.wide(z))).unflatten(-1, (self.model.config.n_groups, -1))
        normed = F.rms_norm(gated, gated.shape[-1:], eps=self.model.config.layer_norm_epsilon)
        return mixer.norm.weight * normed.flatten(2).to(mixer.norm.weight.dtype)

    @torch.no_grad()
    def recurrence(self, index: int, x: Tensor) -> Recurrence:
        """A head: y_i = Σ_j α_ij x_j, α_ij = C_i · B_j exp(Σ_{k=j+1..i} Δ_k A) Δ_j; gate, norm and D x are not in
        it."""
        return recurrence(self._inputs(*self._normed(index, x), None))
