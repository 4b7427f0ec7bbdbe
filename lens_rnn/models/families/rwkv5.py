"""The time mixing of RWKV-5 and 6, which have one recurrence (EF: Peng et al. 2024, arXiv 2404.05892). Symbols as in
families/rwkv_time_mix.py.

Version 5.0 has no gate, and like 5.1 one decay and one bonus a head; 5.2 has one a channel.
"""

from lens_rnn.models.families.rwkv_config import RWKVConfig
from lens_rnn.models.families.rwkv_time_mix import Inputs, Mixed, TimeMix, vectors
from lens_rnn.models.wkv import plain_wkv6, wkv6

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeMix5(TimeMix):
    """RWKV-5 (EF section 4.1): a decay that does not depend on the token."""

    def __init__(self, config: RWKVConfig):
        super().__init__(config)
        per_head = (config.heads, config.head_size if config.version == "5.2" else 1)
        self.time_decay, self.time_faaaa = (nn.Parameter(torch.empty(per_head)) for _ in range(2))
        self.time_mix_k, self.time_mix_v, self.time_mix_r = vectors(3, config.hidden_size)
        if config.version != "5.0":
            (self.time_mix_g,) = vectors(1, config.hidden_size)
            self.gate = nn.Linear(config.hidden_size, config.attention_size, bias=False)

    def mix(self, x: Tensor, previous: Tensor, first: Tensor | None) -> Mixed:
        r, k, v = (
            self.split(projection(torch.lerp(previous, x, mix)))  # EF eqs. 3 and 4
            for projection, mix in (
                (self.receptance, self.time_mix_r),
                (self.key, self.time_mix_k),
                (self.value, self.time_mix_v),
            )
        )
        log_w = -torch.exp(self.time_decay.float()).expand(-1, self.head_size).expand(r.shape)  # EF eq. 5
        gate = (
            F.silu(self.gate(torch.lerp(previous, x, self.time_mix_g))) if hasattr(self, "gate") else None
        )  # EF eq. 7
        return Mixed((r, k, v, log_w), gate, first)

    @property
    def bonus(self) -> Tensor:
        """u (heads, n)."""
        return self.time_faaaa.expand(-1, self.head_size)

    def recur(self, inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
        r, k, v, log_w = inputs
        return wkv6(r, k, v, log_w, self.bonus, state)  # EF eqs. 8 and 9, 21 and 22

    def respond(self, inputs: Inputs, units: Tensor, state: Tensor) -> Tensor:
        r, k, v, log_w = inputs
        return plain_wkv6(r, k, v, log_w, self.bonus[units], state)[0]


class TimeMix6(TimeMix5):
    """RWKV-6 (EF section 4.2): mixing and decay depend on the token."""

    def __init__(self, config: RWKVConfig):
        TimeMix.__init__(self, config)
        d, mix, decay = config.hidden_size, config.lora["time_maa"], config.lora["time_decay"]
        self.time_maa_x, self.time_maa_w, self.time_maa_k, self.time_maa_v, self.time_maa_r, self.time_maa_g = vectors(
            6, d
        )
        self.time_maa_w1, self.time_maa_w2 = nn.Parameter(torch.empty(d, 5 * mix)), nn.Parameter(torch.empty(5, mix, d))
        self.time_decay = nn.Parameter(torch.empty(config.attention_size))
        self.time_decay_w1, self.time_decay_w2 = (
            nn.Parameter(torch.empty(d, decay)),
            nn.Parameter(torch.empty(decay, config.attention_size)),
        )
        self.time_faaaa = nn.Parameter(torch.empty(config.heads, config.head_size))
        self.gate = nn.Linear(d, config.attention_size, bias=False)

    def mix(self, x: Tensor, previous: Tensor, first: Tensor | None) -> Mixed:
        delta = previous - x
        lora = torch.tanh((x + delta * self.time_maa_x) @ self.time_maa_w1).unflatten(
            -1, (5, -1)
        )  # (batch, seq, 5, LoRA)
        offsets = torch.einsum("btim,imd->ibtd", lora, self.time_maa_w2)  # EF eq. 14
        static = (self.time_maa_w, self.time_maa_k, self.time_maa_v, self.time_maa_r, self.time_maa_g)
        xw, xk, xv, xr, xg = (
            x + delta * (mu + offset) for mu, offset in zip(static, offsets, strict=True)
        )  # EF eq. 15
        decay = self.time_decay.float() + (torch.tanh(xw @ self.time_decay_w1) @ self.time_decay_w2).float()
        log_w = -torch.exp(self.split(decay))  # EF eqs. 17 and 18
        r, k, v = self.split(self.receptance(xr)), self.split(self.key(xk)), self.split(self.value(xv))
        return Mixed((r, k, v, log_w), F.silu(self.gate(xg)), first)
