"""The passes over rows of logits on CUDA, as Triton kernels: one program a row, so that a row's second pass finds it in
the L2 cache.

Symbols, per row: l logits of q, t logits of p, m their normalizer log Σ exp(t); log q = l − top − log_total, log p = t
− m. Logits are read twice, all arithmetic is float32. Importing this module needs triton, which comes with CUDA builds
of torch. The naive twin is `PlainRows`.
"""

from math import gcd

from lens_rnn.fitting.rows import Target

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # stands for −∞ where a difference from it must not be NaN
_MOST_LANES = 4096  # entries of a row that a program holds at once
_LANES_A_WARP = (
    256  # 8 a thread: a load of 16 bytes of bfloat16, and few enough registers for several programs a multiprocessor
)


class TritonRows:
    """For contiguous float32 and bfloat16 logits."""

    def softmax_(self, logits: Tensor) -> Tensor:
        normalizers = torch.empty(len(logits), device=logits.device)
        with torch.cuda.device_of(logits):  # Triton launches on the current device
            _softmax[(len(logits),)](logits, normalizers, **_shape(logits.shape[1]))
        return normalizers

    def difference_(self, logits: Tensor, target: Target, draws: Tensor | None) -> tuple[Tensor, Tensor | None]:
        loss = torch.empty(len(logits), device=logits.device)
        samples = None if draws is None else torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        with torch.cuda.device_of(logits):
            _difference[(len(logits),)](logits, *target, draws, loss, samples, **_shape(logits.shape[1]))
        return loss, samples


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
def _softmax(logits, normalizers, groups, ALIGN: tl.constexpr, LANES: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)  # tokens × vocab can exceed 2^31
    vocab = groups * ALIGN
    row = logits + token * vocab
    top, log_total = _normalize(row, vocab, LANES)
    tl.store(normalizers + token, top + log_total)
    for start in range(0, vocab, LANES):
        at = start + tl.arange(0, LANES)
        entries = tl.load(row + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        tl.store(row + at, tl.exp(entries - top - log_total), mask=at < vocab)


@triton.jit
def _difference(
    logits, teacher, normalizers, labels, draws, loss, samples, groups, ALIGN: tl.constexpr, LANES: tl.constexpr
):
    """Without labels, p comes from teacher and normalizers. Without draws there are no samples."""
    token = tl.program_id(0).to(tl.int64)
    vocab = groups * ALIGN
    row = logits + token * vocab
    top, log_total = _normalize(row, vocab, LANES)
    losses = tl.zeros((LANES,), tl.float32)  # each lane's part
    if draws is not None:
        draw = tl.load(draws + token).to(tl.float32)
        below = 0.0  # Σ q over the blocks so far
        sample = vocab - 1  # rounding can leave the last sum below the draw
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
        if draws is not None:
            reached = below + tl.sum(q, 0)
            if (below <= draw) & (reached > draw):
                last = tl.minimum(start + LANES, vocab) - 1  # if the two kinds of sum differ in rounding
                sample = tl.min(tl.where(below + tl.cumsum(q, 0) > draw, at, last), 0)
            below = reached
    tl.store(loss + token, tl.sum(losses, 0))
    if draws is not None:
        tl.store(samples + token, sample)
