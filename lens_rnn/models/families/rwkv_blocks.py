"""RWKV-5 (Eagle), RWKV-6 (Finch) and RWKV-7 (Goose) as plain modules with the official tensor names.

Papers: Peng et al. 2024, arXiv 2404.05892 (RWKV-5 and 6, "EF" below); Peng et al. 2025, arXiv 2503.14456 (RWKV-7, "G"
below).

    x          normed input of a sub-layer                              (batch, seq, d_model)
    x_prev     the same one token earlier: the token shift              (batch, seq, d_model)
    μ          how much of x_prev is mixed in, per channel              EF eq. 3 (lerp), 14 and 15 (ddlerp); G section
    4.1 LoRA       two thin matrices with tanh, sigmoid or nothing between  EF eq. 14; G section 4.1 (loramlp)
    r, k, v    receptance, key, value; g the gate                       EF eqs. 4 and 16; G section 4.1
    w          decay of the state, exp(−exp(·)) in RWKV-5 and 6, exp(−e^{−½} σ(·)) in RWKV-7         EF eqs. 5, 17 and
    18; G section 4.1 u          bonus of the current token (time_first, time_faaaa)      EF eqs. 6 and 19
    κ          removal key, normed per head; a in-context learning rate; k̃ replacement key           G section 4.1
    v_first    the first block's values, into which later blocks mix theirs                           G section 4.1
    S          state of one head, see models/wkv.py                     EF eqs. 8, 9, 21 and 22; G eq. 17
    ρ          bonus of the current token (r_k)                         G section 4.1

Where an equation is computed it is named beside the code. Versions: 5.0 has no gate, and like 5.1 one decay and one
bonus a head; 5.2 one a channel.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lens_rnn.errors import ConfigError
from lens_rnn.models.state import BlockState
from lens_rnn.models.wkv import plain_wkv6, plain_wkv7, wkv6, wkv7

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

MODEL_TYPE = "rwkv_official"
VERSIONS = ("5.0", "5.1", "5.2", "6", "7")


class RWKVConfig(PreTrainedConfig):
    """Sizes of an RWKV-5, 6 or 7. `lora` has the inner width of each LoRA, by the name of its matrices."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        version: str = "7",
        vocab_size: int = 65536,
        hidden_size: int = 768,
        attention_size: int = 768,
        head_size: int = 64,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        lora: dict[str, int] | None = None,
        group_norm_eps: float = 64e-5,
        layer_norm_eps: float = 1e-5,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ):
        if version not in VERSIONS:
            raise ConfigError(f"RWKV version {version!r} is unknown; choose from {', '.join(VERSIONS)}")
        self.version = version
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.attention_size = attention_size
        self.head_size = head_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.lora = lora or {}
        self.group_norm_eps = group_norm_eps
        self.layer_norm_eps = layer_norm_eps
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)

    @property
    def heads(self) -> int:
        return int(self.attention_size // self.head_size)


Inputs = tuple[Tensor, ...]
"""What a recurrence works on: r, k, v, log w and, of RWKV-7, −κ and κ ⊙ a; each (batch, seq, heads, n)."""


class Mixed(NamedTuple):
    """What a time mixing makes of its input before it recurs."""

    inputs: Inputs
    gate: Tensor | None
    """Of the recurrence's output (batch, seq, inner); RWKV-5.0 has none."""
    first: Tensor | None
    """v_first (batch, seq, inner)."""


class TimeMix(nn.Module):
    """What the time mixing of every version has: four projections, and a norm of each head's output."""

    def __init__(self, config: RWKVConfig):
        super().__init__()
        self.heads, self.head_size, self.eps = config.heads, config.head_size, config.group_norm_eps
        d, inner = config.hidden_size, config.attention_size
        self.receptance, self.key, self.value = (nn.Linear(d, inner, bias=False) for _ in range(3))
        self.output = nn.Linear(inner, d, bias=False)
        self.ln_x = nn.GroupNorm(config.heads, inner)

    def mix(self, x: Tensor, previous: Tensor, first: Tensor | None) -> Mixed:
        """x and the same one token earlier, (batch, seq, d_model) each, and v_first where there is one already."""
        raise NotImplementedError

    def recur(self, inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
        """y (batch, seq, heads, n) from S on, and S after the last token."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, previous: Tensor, state: Tensor, first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        mixed = self.mix(x, previous, first)
        y, state = self.recur(mixed.inputs, state)
        y = self.normed(y, mixed.inputs, x)
        return self.output(y if mixed.gate is None else y * mixed.gate), state, mixed.first

    def normed(self, y: Tensor, _inputs: Inputs, like: Tensor) -> Tensor:
        """The recurrence's output y (batch, seq, heads, n) as the gate takes it (batch, seq, inner)."""
        return self.norm_heads(y, like)

    def weights(self, inputs: Inputs) -> Callable[[Tensor], Tensor]:
        """The recurrence over one text as a causal matrix a head: a head that is given the value "1 at token j" answers
        with column j."""
        tokens, n = inputs[0].shape[1], self.head_size
        eye = torch.eye(tokens, device=inputs[0].device)[None, :, None]

        def of(units: Tensor) -> Tensor:
            r, k, _, *others = (t[:, :, units] for t in inputs)
            ones = eye.expand(-1, -1, len(units), -1)
            y = self.respond((r, k, ones, *others), units, torch.zeros(1, len(units), n, tokens, device=units.device))
            return y[0].transpose(0, 1)

        return of

    def respond(self, inputs: Inputs, units: Tensor, state: Tensor) -> Tensor:
        """`recur` of some heads in plain torch, for values of any width; state (1, units, n, width) is empty. Returns
        y."""
        raise NotImplementedError

    def split(self, x: Tensor) -> Tensor:
        """(batch, seq, heads × head size) to (batch, seq, heads, head size)."""
        return x.unflatten(-1, (self.heads, self.head_size))

    def norm_heads(self, y: Tensor, like: Tensor) -> Tensor:
        """GroupNorm of y (batch, seq, heads, head size), each head by itself, in float32; returns (batch, seq, inner)
        in like's dtype."""
        flat = y.float().flatten(2).flatten(0, 1)
        normed = F.group_norm(flat, self.heads, self.ln_x.weight.float(), self.ln_x.bias.float(), self.eps)
        return normed.view(*y.shape[:2], -1).to(like.dtype)


class TimeMix5(TimeMix):
    """RWKV-5 (EF section 4.1): a decay that does not depend on the token."""

    def __init__(self, config: RWKVConfig):
        super().__init__(config)
        per_head = (config.heads, config.head_size if config.version == "5.2" else 1)
        self.time_decay, self.time_faaaa = (nn.Parameter(torch.empty(per_head)) for _ in range(2))
        self.time_mix_k, self.time_mix_v, self.time_mix_r = _vectors(3, config.hidden_size)
        if config.version != "5.0":
            (self.time_mix_g,) = _vectors(1, config.hidden_size)
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
        self.time_maa_x, self.time_maa_w, self.time_maa_k, self.time_maa_v, self.time_maa_r, self.time_maa_g = _vectors(
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


class TimeMix7(TimeMix):
    """RWKV-7 (G section 4): the state takes out what it holds under a key before it puts the new value in."""

    def __init__(self, config: RWKVConfig, first: bool):
        super().__init__(config)
        d, inner = config.hidden_size, config.attention_size

        def lora(name: str) -> tuple[nn.Parameter, nn.Parameter]:
            width = config.lora[name]
            return nn.Parameter(torch.empty(d, width)), nn.Parameter(torch.empty(width, inner))

        self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g = _vectors(6, d)
        self.w0, self.a0 = _vectors(2, inner)
        self.w1, self.w2 = lora("w")
        self.a1, self.a2 = lora("a")
        self.g1, self.g2 = lora("g")
        if not first:  # the first block has the values that the others mix theirs with
            (self.v0,) = _vectors(1, inner)
            self.v1, self.v2 = lora("v")
        self.k_k, self.k_a = _vectors(2, inner)
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
        x = x + self.ffn(again, _shift(again, state["ffn_shift"] if state else None))
        # copies, for a view would keep the whole text
        return x, {"att_shift": normed[:, -1].clone(), "wkv": wkv, "ffn_shift": again[:, -1].clone()}, first

    def entered(self, x: Tensor) -> Tensor:
        """The residual stream as the sub-layers see it: the first block norms the embeddings."""
        return self.ln0(x) if hasattr(self, "ln0") else x

    def att_input(self, x: Tensor, state: BlockState | None) -> tuple[Tensor, Tensor]:
        """What the time mixing is given for the block's input x: normed, and the same one token earlier."""
        normed = self.ln1(self.entered(x))
        return normed, _shift(normed, state["att_shift"] if state else None)

    def empty_wkv(self, batch: int) -> Tensor:
        """S before the first token."""
        n = self.att.head_size
        return torch.zeros(batch, self.att.heads, n, n, device=self.ln1.weight.device)


def _shift(x: Tensor, last: Tensor | None) -> Tensor:
    """x one token earlier, with `last` (batch, d_model), or zeros, before the first."""
    first = torch.zeros_like(x[:, :1]) if last is None else last[:, None].to(x.dtype)
    return torch.cat([first, x[:, :-1]], 1)


def _vectors(count: int, size: int) -> Iterator[nn.Parameter]:
    """Parameters of one value a channel, to be loaded."""
    return (nn.Parameter(torch.empty(size)) for _ in range(count))
