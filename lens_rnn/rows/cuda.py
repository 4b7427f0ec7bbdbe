"""The passes over rows of logits on CUDA, as Triton kernels: one program a row, so that a row's second pass finds it in
the L2 cache.

Symbols, per row: l logits of q, t logits of p, m their normalizer log Σ exp(t); log q = l − top − log_total, log p = t
− m. Logits are read twice, all arithmetic is float32. Importing this module needs triton, which comes with CUDA builds
of torch. The naive twin is `PlainRows`.
"""

from math import gcd

from lens_rnn.rows import Aim, Target
from lens_rnn.rows.plain import PlainRows

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # stands for −∞ where a difference from it must not be NaN
_MOST_LANES = 4096  # entries of a row that a program holds at once
_LANES_A_WARP = (
    256  # 8 a thread: a load of 16 bytes of bfloat16, and few enough registers for several programs a multiprocessor
)


class TritonRows(PlainRows):
    """For contiguous float32 and bfloat16 logits. What no fit and no evaluation of lenses waits for is left to torch:
    sums of probabilities and Jensen–Shannon divergence."""

    def normalizers(self, logits: Tensor) -> Tensor:
        normalizers = torch.empty(len(logits), device=logits.device)
        with torch.cuda.device_of(logits):  # Triton launches on the current device
            _normalizers[(len(logits),)](logits, normalizers, **_shape(logits.shape[1]))
        return normalizers

    def sample_(self, logits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        normalizers = torch.empty(len(logits), device=logits.device)
        labels = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        with torch.cuda.device_of(logits):
            _sample[(len(logits),)](logits, draws, normalizers, labels, **_shape(logits.shape[1]))
        return normalizers, labels

    def difference_(self, logits: Tensor, target: Target) -> Tensor:
        loss = torch.empty(len(logits), device=logits.device)
        with torch.cuda.device_of(logits):
            _difference[(len(logits),)](logits, *target, loss, **_shape(logits.shape[1]))
        return loss

    def figures(self, logits: Tensor, aim: Aim, labels: Tensor) -> Tensor:
        figures = torch.empty(len(logits), 3, device=logits.device)
        with torch.cuda.device_of(logits):
            _figures[(len(logits),)](logits, *aim, labels, figures, **_shape(logits.shape[1]))
        return figures


def _shape(vocab: int) -> dict[str, int]:
    """How a kernel walks over rows of this length. The vocabulary comes as `groups` of `ALIGN`: accesses are as wide as
    ALIGN allows."""
    align = gcd(vocab, 16)
    lanes = min(_MOST_LANES, max(128, triton.next_power_of_2(vocab)))
    return {"groups": vocab // align, "ALIGN": align, "LANES": lanes, "num_warps": max(1, lanes // _LANES_A_WARP)}


@triton.jit
def _normalize(row, vocab, LANES: tl.constexpr):
    """Returns top = max l and log_total = log Σ exp(l − top). NaN if an l is NaN or +∞.

    Every lane has a maximum and a sum of its own: a block costs one exp an entry, and nothing is exchanged before the
    end.
    """
    tops = tl.full((LANES,), _LOWEST, tl.float32)
    totals = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocab, LANES):
        at = start + tl.arange(0, LANES)
        entries = tl.load(row + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        ahead = entries - tops
        scale = tl.exp(-tl.abs(ahead))  # of the old sum where the entry is the new maximum, else of the entry
        totals = tl.where(ahead > 0, totals * scale + 1, totals + scale)
        tops = tl.maximum(tops, entries)
    top = tl.max(tops, 0)
    return top, tl.log(tl.sum(totals * tl.exp(tops - top), 0))


@triton.jit
def _normalizers(logits, normalizers, groups, ALIGN: tl.constexpr, LANES: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)  # tokens × vocab can exceed 2^31
    vocab = groups * ALIGN
    top, log_total = _normalize(logits + token * vocab, vocab, LANES)
    tl.store(normalizers + token, top + log_total)


@triton.jit
def _sample(logits, draws, normalizers, labels, groups, ALIGN: tl.constexpr, LANES: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    vocab = groups * ALIGN
    row = logits + token * vocab
    top, log_total = _normalize(row, vocab, LANES)
    tl.store(normalizers + token, top + log_total)
    draw = tl.load(draws + token).to(tl.float32)
    below = 0.0  # Σ p over the blocks so far
    label = vocab  # none yet
    for start in range(0, vocab, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < vocab
        p = tl.exp(tl.load(row + at, mask=inside, other=float("-inf")).to(tl.float32) - top - log_total)
        reached = below + tl.sum(p, 0)
        if (label == vocab) & ((reached > draw) | (start + LANES >= vocab)):  # rounding can leave the last sum below
            last = tl.minimum(start + LANES, vocab) - 1
            label = tl.min(tl.where(below + tl.cumsum(p, 0) > draw, at, last), 0)
        below = reached
        tl.store(row + at, p - (at == label).to(tl.float32), mask=inside)
    tl.store(labels + token, label)


@triton.jit
def _difference(logits, teacher, normalizers, labels, loss, groups, ALIGN: tl.constexpr, LANES: tl.constexpr):
    """Without labels, p comes from teacher and normalizers."""
    token = tl.program_id(0).to(tl.int64)
    vocab = groups * ALIGN
    row = logits + token * vocab
    top, log_total = _normalize(row, vocab, LANES)
    losses = tl.zeros((LANES,), tl.float32)  # each lane's part
    for start in range(0, vocab, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < vocab
        log_q = tl.load(row + at, mask=inside, other=float("-inf")).to(tl.float32) - top - log_total
        q = tl.exp(log_q)
        if labels is None:
            # Read once by this row: it should not drive the row itself from the cache.
            t = tl.load(teacher + token * vocab + at, mask=inside, other=float("-inf"), eviction_policy="evict_first")
            log_p = t.to(tl.float32) - tl.load(normalizers + token)
            p = tl.exp(log_p)
            losses += tl.where(inside, p * (log_p - log_q), 0.0)
        else:
            hit = at == tl.load(labels + token)
            p = hit.to(tl.float32)
            losses -= tl.where(hit, log_q, 0.0)
        tl.store(row + at, q - p, mask=inside)
    tl.store(loss + token, tl.sum(losses, 0))


@triton.jit
def _figures(logits, log_ps, ps, labels, figures, groups, ALIGN: tl.constexpr, LANES: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    vocab = groups * ALIGN
    row = logits + token * vocab
    top, log_total = _normalize(row, vocab, LANES)
    label = tl.load(labels + token)
    ce = tl.zeros((LANES,), tl.float32)
    kl = tl.zeros((LANES,), tl.float32)
    entropy = tl.zeros((LANES,), tl.float32)
    for start in range(0, vocab, LANES):
        at = start + tl.arange(0, LANES)
        inside = at < vocab
        log_q = tl.load(row + at, mask=inside, other=float("-inf")).to(tl.float32) - top - log_total
        log_p = tl.load(log_ps + token * vocab + at, mask=inside, other=0.0, eviction_policy="evict_first")
        p = tl.load(ps + token * vocab + at, mask=inside, other=0.0, eviction_policy="evict_first")
        ce -= tl.where(at == label, log_q, 0.0)
        kl += tl.where(inside, p * (log_p - log_q), 0.0)
        entropy -= tl.where(inside, tl.exp(log_q) * log_q, 0.0)
    tl.store(figures + token * 3, tl.sum(ce, 0))
    tl.store(figures + token * 3 + 1, tl.sum(kl, 0))
    tl.store(figures + token * 3 + 2, tl.sum(entropy, 0))
