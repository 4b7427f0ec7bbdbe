"""Streamed ridge regression: the translators that best map each hidden state to the final norm's input, without a
gradient.

Symbols, per layer:

    x   hidden state                                   (d_model)
    y   what its translator should add, f − x, with f the final norm's input   (d_model)
    w   weight of the token, 1 if none is given
    λ   ridge, as a fraction of the mean diagonal of the covariance of x

Minimises mean w ‖y − W x − b‖² + λ s ‖W‖² with b free, s the mean diagonal: the penalty pulls towards W = 0, the logit
lens.

A residual stream's mean can be a hundred times its spread, so states are taken about an origin near their mean, and
sums are float64. The products of a batch then can be float32, as on GPUs, many of which multiply float64 at a sixtieth
of that speed.
"""

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RIDGES = tuple(10.0**k for k in range(-7, 2))
BLIND_RIDGE = 0.1  # where there is too little text to hold any out
HELD_OUT_ONE_IN = 8  # blocks of which one only helps to choose λ


class Solution(NamedTuple):
    """One layer's translator in closed form."""

    weight: Tensor
    """W (d_model, d_model), float64."""
    bias: Tensor
    """b (d_model), float64."""
    ridge: float
    """The λ that was chosen."""
    explained: float | None
    """Fraction of the variance of f that is explained on what was held out; None where nothing was."""


class Inputs(NamedTuple):
    """What an optimizer may want to know of one layer's hidden states, all tokens alike."""

    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]
    spread: float
    """E‖f − E f‖²."""


class Origins(NamedTuple):
    """What states are taken about: anything near their means."""

    hidden: Float[Tensor, "layers d_model"]
    f: Float[Tensor, " d_model"]

    @classmethod
    def of(cls, hidden: Sequence[Tensor], f: Tensor) -> "Origins":
        """The means of a batch: one (…, d_model) a layer, and the final norm's inputs (…, d_model)."""
        means = [h.flatten(0, -2).float().mean(0) for h in (*hidden, f)]
        return cls(torch.stack(means[:-1]), means[-1])


class Moments:
    """Weighted second moments of [x; 1] and y for some layers, in two halves: to fit on, and held out to choose λ on.
    Those of [x; 1] also without weights, for whom tokens are alike."""

    def __init__(
        self,
        layers: Sequence[int],
        d_model: int,
        device: torch.device,
        origins: Origins | None = None,
        products: torch.dtype | None = None,
    ):
        """origins: those of these layers, the same on every process whose moments are summed; by default the means of
        the first batch. products: dtype of the products of a batch, by default float64 on a CPU and float32 on a GPU.
        """
        self.layers = tuple(layers)
        self.d_model = d_model
        self.origins = origins
        where = device if device.type in ("cpu", "cuda") else torch.device("cpu")  # the others have no float64
        self.products = products or (torch.float64 if where.type == "cpu" else torch.float32)
        size = (2, len(layers), d_model + 1)
        self.xx = torch.zeros(*size, d_model + 1, dtype=torch.float64, device=where)
        self.xy = torch.zeros(*size, d_model, dtype=torch.float64, device=where)
        self.yy = torch.zeros(2, len(layers), dtype=torch.float64, device=where)
        self.ff = torch.zeros(2, dtype=torch.float64, device=where)  # Σ w ‖f‖²
        self.f = torch.zeros(2, d_model, dtype=torch.float64, device=where)  # Σ w f
        self.alike = torch.zeros(*size[1:], d_model + 1, dtype=torch.float64, device=where)  # Σ [x; 1] [x; 1]ᵀ
        self.f_alike = torch.zeros(d_model + 1, dtype=torch.float64, device=where)  # Σ f, and Σ ‖f‖²

    @staticmethod
    def bytes_needed(layers: int, d_model: int) -> int:
        return layers * (d_model + 1) * (5 * d_model + 3) * 8

    @torch.no_grad()
    def add(
        self,
        hidden: tuple[Float[Tensor, "... d_model"], ...],
        f: Float[Tensor, "... d_model"],
        held_out: bool,
        weights: Float[Tensor, " tokens"] | None = None,
    ) -> None:
        """Add a batch: every layer's hidden states (…, d_model), the final norm's inputs f (…, d_model), and the
        tokens' weights."""
        if self.origins is None:
            self.origins = Origins.of([hidden[layer] for layer in self.layers], f)
        half, origins = int(held_out), Origins(*(part.to(self.xx.device, self.products) for part in self.origins))
        f = self._about(f, origins.f)
        w = f.new_ones(len(f)) if weights is None else weights.to(f)
        squares = f.double().square().sum(1)
        self.ff[half] += w.double() @ squares
        self.f[half] += w.double() @ f.double()
        self.f_alike += torch.cat([f.double().sum(0), squares.sum()[None]])
        for k, layer in enumerate(self.layers):
            x = self._about(hidden[layer], origins.hidden[k])
            y = f - x
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)  # (tokens, d_model + 1)
            weighted = x if weights is None else x * w[:, None]
            self.xx[half, k] += weighted.T @ x
            self.xy[half, k] += weighted.T @ y
            self.yy[half, k] += w.double() @ y.double().square().sum(1)
            if weights is not None:
                self.alike[k] += x.T @ x
        if weights is None:
            self.alike.copy_(self.xx.sum(0))

    def _about(self, states: Tensor, origin: Tensor) -> Tensor:
        """States (tokens, d_model) about an origin, in the dtype of the products."""
        return states.reshape(-1, self.d_model).to(self.xx.device, self.products) - origin

    def inputs(self, k: int) -> Inputs:
        """Of the hidden states of layer number k, float64."""
        assert self.origins is not None, "no batch was added"
        xx, count = self.alike[k], self.alike[k, -1, -1]
        mean = xx[-1, :-1] / count
        spread = float((self.f_alike[-1] - self.f_alike[:-1].square().sum() / count) / count)
        covariance = xx[:-1, :-1] / count - torch.outer(mean, mean)
        return Inputs(mean + self.origins.hidden[k].to(mean), covariance, spread)

    def tensors(self) -> list[Tensor]:
        """What is summed over processes, a layer at a time, so that a sum's copy is small."""
        a_layer = [*self.xx.unbind(1), *self.xy.unbind(1), *self.alike.unbind(0)]
        return [*a_layer, self.yy, self.ff, self.f, self.f_alike]

    def ridge(self, k: int, halves: slice, ridge: float) -> Tensor:
        """[W b] (d_model, d_model + 1) of layer number k, fitted on the halves: the first is fitted on, the second held
        out. Infinite where the ridge is too small."""
        assert self.origins is not None, "no batch was added"
        map_ = ridge_map(self.xx[halves, k].sum(0), self.xy[halves, k].sum(0), ridge)
        x, f = self.origins.hidden[k].to(map_), self.origins.f.to(map_)
        map_[:, -1] += f - x - map_[:, :-1] @ x  # y was about f − x, and x about x
        return map_

    def solve(self, k: int) -> Solution:
        """The translator of layer number k: λ chosen on the held-out half, then fitted on both."""
        best, explained = BLIND_RIDGE, None
        if self.xx[1, k, -1, -1] > 0:
            errors = [self._held_out_error(ridge_map(self.xx[0, k], self.xy[0, k], ridge), k) for ridge in RIDGES]
            least = min(range(len(RIDGES)), key=errors.__getitem__)
            best, count = RIDGES[least], self.xx[1, k, -1, -1]
            spread = float((self.ff[1] - self.f[1].square().sum() / count) / count)
            explained = 1 - errors[least] / spread if isfinite(errors[least]) and spread > 0 else None
        map_ = self.ridge(k, slice(None), best)
        return Solution(map_[:, :-1].contiguous(), map_[:, -1].contiguous(), best, explained)

    def _held_out_error(self, map_: Tensor, k: int) -> float:
        """Mean ‖y − [W b][x; 1]‖² on the held-out half, from its moments."""
        xx, xy, yy = self.xx[1, k], self.xy[1, k], self.yy[1, k]
        error = (yy - 2 * (map_.T * xy).sum() + ((map_ @ xx) * map_).sum()) / xx[-1, -1]
        return float(error) if bool(error.isfinite()) else float("inf")


def ridge_map(xx: Tensor, xy: Tensor, ridge: float) -> Tensor:
    """[W b] (d_model, d_model + 1) from the moments of [x; 1] and y. Cholesky on the centred covariance."""
    count = xx[-1, -1]
    mean_x, mean_y = xx[-1, :-1] / count, xy[-1] / count
    covariance = xx[:-1, :-1] / count - torch.outer(mean_x, mean_x)
    cross = xy[:-1] / count - torch.outer(mean_x, mean_y)  # (d_model of x, d_model of y)
    penalty = ridge * covariance.diagonal().mean().clamp(min=1e-30)
    factor, failed = torch.linalg.cholesky_ex(
        covariance + penalty * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    )
    if failed:
        return torch.full_like(xx[:-1], float("inf"))  # too little ridge: the held-out error is then infinite
    weight = torch.cholesky_solve(cross, factor).T
    return torch.cat([weight, (mean_y - weight @ mean_x)[:, None]], dim=1)
