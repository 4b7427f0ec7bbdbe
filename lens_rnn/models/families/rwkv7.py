"""The time mixing of RWKV-7 (G: Peng et al. 2025, arXiv 2503.14456). Symbols as in families/rwkv_time_mix.py."""

from lens_rnn.models.families.rwkv_config import RWKVConfig
from lens_rnn.models.families.rwkv_time_mix import Inputs, Mixed, TimeMix, vectors
from lens_rnn.models.wkv import plain_wkv7, wkv7

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeMix7(TimeMix):
    """RWKV-7 (G section 4): the state takes out what it holds under a key before it puts the new value in."""

    def __init__(self, config: RWKVConfig, first: bool):
        super().__init__(config)
        d, inner = config.hidden_size, config.attention_size

        def lora(name: str) -> tuple[nn.Parameter, nn.Parameter]:
            width = config.lora[name]
            return nn.Parameter(torch.empty(d, width)), nn.Parameter(torch.empty(width, inner))

        self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g = vectors(6, d)
        self.w0, self.a0 = vectors(2, inner)
        self.w1, self.w2 = lora("w")
        self.a1, self.a2 = lora("a")
        self.g1, self.g2 = lora("g")
        if not first:  # the first block has the values that the others mix theirs with
            (self.v0,) = vectors(1, inner)
            self.v1, self.v2 = lora("v")
        self.k_k, self.k_a = vectors(2, inner)
        self.r_k = nn.Parameter(torch.empty(config.heads, config.head_size))

    def mix(self, x: Tensor, previous: Tensor, first: Tensor | None) -> Mixed:
        delta = previous - x
        names = (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)
        xr, xw, xk, xv, xa, xg = (x + delta * mu for mu in names)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        log_w = -0.606531 * torch.sigmoid((self.w0 + torch.tanh(xw @ self.w1) @ self.w2).float())  # 0.606531 = e^{−½}
        rate = torch.sigmoid(self.a0 + (xa @ self.a1) @ self.a2)  # a
        gate = torch.sigmoid(xg @ self.g1) @ self.g2
        removal = F.normalize(self.split(k * self.k_k), dim=-1)  # κ
        k = k * (1 + (rate - 1) * self.k_a)  # k̃
        if first is None:
            first = v
        else:
            v = v + (first - v) * torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2)
        r, k, v, log_w, rate = (self.split(t) for t in (r, k, v, log_w, rate))
        return Mixed((r, k, v, log_w, -removal, removal * rate), gate, first)

    def recur(self, inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
        r, k, v, log_w, remove, add = inputs
        return wkv7(r, k, v, log_w, remove, add, state)  # G eq. 17

    def respond(self, inputs: Inputs, _units: Tensor, state: Tensor) -> Tensor:
        r, k, v, log_w, remove, add = inputs
        return plain_wkv7(r, k, v, log_w, remove, add, state.transpose(2, 3))[0]

    def normed(self, y: Tensor, inputs: Inputs, like: Tensor) -> Tensor:
        r, k, v = inputs[:3]
        return self.norm_heads(y, like) + ((r * k * self.r_k).sum(-1, keepdim=True) * v).flatten(2)  # with the bonus
