"""A block of RWKV-5, 6 or 7: time mixing, which each version has in its file, then channel mixing. Symbols as in
families/rwkv_time_mix.py."""

from lens_rnn.models.families.rwkv5 import TimeMix5, TimeMix6
from lens_rnn.models.families.rwkv7 import TimeMix7
from lens_rnn.models.families.rwkv_config import RWKVConfig
from lens_rnn.models.scans import token_shift
from lens_rnn.models.state import BlockState

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelMix(nn.Module):
    """The feed-forward part: squared ReLU, in RWKV-5 and 6 behind a receptance gate (EF section 4.1.3, G section
    4.2)."""

    def __init__(self, config: RWKVConfig):
        super().__init__()
        d, self.version = config.hidden_size, config.version
        self.mixes = {"7": ("x_k",), "6": ("time_maa_k", "time_maa_r")}.get(
            config.version, ("time_mix_k", "time_mix_r")
        )
        for name in self.mixes:
            setattr(self, name, nn.Parameter(torch.empty(d)))
        self.key, self.value = (
            nn.Linear(d, config.intermediate_size, bias=False),
            nn.Linear(config.intermediate_size, d, bias=False),
        )
        if config.version != "7":
            self.receptance = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        # RWKV-5's μ is the share of x, that of its successors the share of x_prev
        ends = (previous, x) if self.version.startswith("5") else (x, previous)
        mixed = [torch.lerp(*ends, getattr(self, name)) for name in self.mixes]
        y = self.value(F.relu(self.key(mixed[0])) ** 2)
        return y if self.version == "7" else torch.sigmoid(self.receptance(mixed[1])) * y


class RWKVBlock(nn.Module):
    """Time mixing, then channel mixing, each on a normed residual stream."""

    def __init__(self, config: RWKVConfig, index: int):
        super().__init__()
        norms = [nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) for _ in range(3)]
        self.ln1, self.ln2 = norms[:2]
        if index == 0:
            self.ln0 = norms[2]  # of the embeddings
        self.att = (
            TimeMix7(config, index == 0)
            if config.version == "7"
            else (TimeMix6 if config.version == "6" else TimeMix5)(config)
        )
        self.ffn = ChannelMix(config)

    def forward(
        self, x: Tensor, state: BlockState | None, first: Tensor | None = None
    ) -> tuple[Tensor, BlockState, Tensor | None]:
        """x (batch, seq, d_model) and the state before it, None for that of no token, to the block's output, the state
        after it, v_first.

        A state: the last normed inputs `att_shift` and `ffn_shift` (batch, d_model), and `wkv`, S (batch, heads, n, n),
        float32.
        """
        normed, previous = self.att_input(x, state)
        wkv = self.empty_wkv(len(x)) if state is None else state["wkv"]
        y, wkv, first = self.att(normed, previous, wkv, first)
        x = self.entered(x) + y
        again = self.ln2(x)
        x = x + self.ffn(again, token_shift(again, state["ffn_shift"] if state else None))
        # copies, for a view would keep the whole text
        return x, {"att_shift": normed[:, -1].clone(), "wkv": wkv, "ffn_shift": again[:, -1].clone()}, first

    def entered(self, x: Tensor) -> Tensor:
        """The residual stream as the sub-layers see it: the first block norms the embeddings."""
        return self.ln0(x) if hasattr(self, "ln0") else x

    def att_input(self, x: Tensor, state: BlockState | None) -> tuple[Tensor, Tensor]:
        """What the time mixing is given for the block's input x: normed, and the same one token earlier."""
        normed = self.ln1(self.entered(x))
        return normed, token_shift(normed, state["att_shift"] if state else None)

    def empty_wkv(self, batch: int) -> Tensor:
        """S before the first token."""
        n = self.att.head_size
        return torch.zeros(batch, self.att.heads, n, n, device=self.ln1.weight.device)
