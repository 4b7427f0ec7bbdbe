"""The equations of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060), with transformers' names of weights, which all models
with such blocks share.

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
from lens_rnn.models.matrices import decayed_products
from lens_rnn.models.recurrence import Recurrence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class Inputs(NamedTuple):
    """What the recurrence of a block works on."""

    x: Float[Tensor, "batch seq heads p"]
    z: Float[Tensor, "batch seq inner"]
    dt: Float[Tensor, "batch seq heads"]
    A: Float[Tensor, " heads"]
    B: Float[Tensor, "batch seq groups n"]
    C: Float[Tensor, "batch seq groups n"]
    into_conv: Float[Tensor, "batch channels seq"]
    """The convolution's input, of which the state keeps the last ones."""


def split(
    mixer: Any,
    projected: Float[Tensor, "batch seq projected"],
    conv: Float[Tensor, "batch channels kernel"] | None,
    groups: int,
    limit: tuple[float, float],
) -> Inputs:
    """What the recurrence works on, from what in_proj returns and the convolution's earlier inputs."""
    heads, inner = len(mixer.A_log), mixer.out_proj.in_features
    z, into_conv, dt = projected.split([inner, mixer.conv1d.in_channels, heads], dim=-1)
    into_conv = into_conv.transpose(1, 2)
    mixed = F.silu(scans.causal_conv(mixer.conv1d, into_conv, conv)).transpose(1, 2)
    x, B, C = mixed.split([inner, *[(mixed.shape[-1] - inner) // 2] * 2], dim=-1)
    dt = F.softplus(scans.wide(dt) + scans.wide(mixer.dt_bias)).clamp(*limit)
    B, C = B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1))
    return Inputs(x.unflatten(-1, (heads, -1)), z, dt, -torch.exp(scans.wide(mixer.A_log)), B, C, into_conv)


def recurrence(inputs: Inputs) -> Recurrence:
    """A head: y_i = Σ_j α_ij x_j, α_ij = C_i · B_j exp(Σ_{k=j+1..i} Δ_k A) Δ_j; gate, norm and D x are not in it."""
    y, _ = scans.ssd(inputs.x, inputs.dt, inputs.A, inputs.B, inputs.C)
    B, C = (t[0].float().transpose(0, 1) for t in (inputs.B, inputs.C))  # (groups, tokens, n)
    steps, rates = (
        inputs.dt[0].T[..., None].float(),
        inputs.A[:, None, None].float(),
    )  # (heads, tokens, 1), (heads, 1, 1)
    group = torch.arange(len(rates), device=B.device) // (len(rates) // len(B))

    def weights(units: Tensor) -> Tensor:
        return decayed_products(C[group[units]], steps[units] * B[group[units]], steps[units] * rates[units])

    return Recurrence(weights, inputs.x[0], y[0])


# --- inside hybrids, which transformers runs --------------------------------------------------------------------------


def is_mamba2(module: Any) -> bool:
    """Whether a module is a Mamba-2 mixer, by the names and shapes of its weights."""
    own = dict(module.named_parameters(recurse=False))
    return (
        {"A_log", "D", "dt_bias"} <= own.keys()
        and own["A_log"].ndim == 1
        and hasattr(module, "in_proj")
        and hasattr(module, "conv1d")
    )


def read(
    mixer: Any, projected: Float[Tensor, "1 tokens projected"]
) -> tuple[Recurrence, Float[Tensor, "tokens heads p"], Float[Tensor, "tokens inner"]]:
    """The recurrence of a mixer of a hybrid over one text, D x, and the gate z, from what its in_proj returned."""
    projected = projected * getattr(mixer, "mup_vector", 1)  # of Falcon-H1
    limit = getattr(mixer, "time_step_limit", (0.0, float("inf")))
    inputs = split(mixer, projected, None, int(mixer.n_groups), (float(limit[0]), float(limit[1])))
    return recurrence(inputs), (mixer.D[:, None] * inputs.x)[0].float(), inputs.z[0]
