"""The passes over rows of logits on the CPU, compiled by numba: a row stays in the cache from its first pass to its
last.

Symbols, per row: l logits of q, t logits of p, n their normalizers log Σ exp. Parallel over rows, so results do not
depend on the number of threads. Σ exp is made of sums over blocks, so that a sample is found in two short walks. The
naive twin is `PlainRows` in float64.
"""

from lens_rnn.compiled import FASTMATH, exp, read, write
from lens_rnn.rows import Aim, Target

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

_BLOCK = 128  # entries of a row that are summed on their own
_LN2 = np.float32(np.log(2.0))
_PARTS = 16  # sums over tokens that are made side by side: always so many, so that no sum depends on the threads


class CompiledRows:
    """For contiguous float32 and bfloat16 logits."""

    def normalizers(self, logits: Tensor) -> Tensor:
        normalizers = torch.empty(len(logits))
        _normalizers(_array(logits), normalizers.numpy())
        return normalizers

    def sample_(self, logits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        normalizers, labels = torch.empty(len(logits)), torch.empty(len(logits), dtype=torch.int64)
        _sampled(_array(logits), draws.numpy(), normalizers.numpy(), labels.numpy())
        return normalizers, labels

    def difference_(self, logits: Tensor, target: Target) -> Tensor:
        loss = torch.empty(len(logits))
        if target.labels is not None:
            _from_labels(_array(logits), target.labels.numpy(), loss.numpy())
        else:
            _from_logits(_array(logits), _array(target.logits), target.normalizers.numpy(), loss.numpy())
        return loss

    def figures(self, logits: Tensor, aim: Aim, labels: Tensor) -> Tensor:
        figures = torch.empty(len(logits), 3)
        _figures(_array(logits), aim.log_p.numpy(), aim.p.numpy(), labels.numpy(), figures.numpy())
        return figures

    def add_probabilities(self, logits: Tensor, total: Tensor) -> None:
        parts = torch.zeros(min(_PARTS, len(logits)), logits.shape[1], dtype=torch.float64)
        _add_probabilities(_array(logits), parts.numpy())
        total += parts.sum(0)

    def js(self, logits: Tensor, others: Tensor) -> Tensor:
        divergence = torch.empty(len(logits))
        _js(_array(logits), _array(others), divergence.numpy())
        return divergence


def _array(rows: Tensor) -> np.ndarray:
    return (rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows).numpy()


@njit(inline="always")
def _ordered(bits):
    """A float32's bits as an integer of the same order, and back: the maximum of integers is vectorised, that of floats
    is not."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(fastmath=FASTMATH)
def _highest(row):
    """max l."""
    highest = np.int32(-(2**31))
    for v in range(len(row)):
        highest = max(highest, _ordered(np.float32(read(row[v])).view(np.int32)))
    return np.int32(_ordered(highest)).view(np.float32)


@njit(fastmath=FASTMATH)
def _normalize(row, sums):
    """log Σ exp(l). Leaves Σ exp(l − top) of every block in sums, and returns top and their total, too."""
    top = _highest(row)
    total = np.float32(0.0)
    for b in range(len(sums)):
        part = np.float32(0.0)
        for v in range(b * _BLOCK, min(len(row), (b + 1) * _BLOCK)):
            part += exp(read(row[v]) - top)
        sums[b] = part
        total += part
    return top + np.log(total), top, total


@njit(fastmath=FASTMATH)
def _sample(row, sums, top, rest):
    """The first label whose cumulated exp(l − top) exceeds `rest`."""
    b = 0
    while b < len(sums) - 1 and rest >= sums[b]:
        rest -= sums[b]
        b += 1
    v, last = b * _BLOCK, min(len(row), (b + 1) * _BLOCK) - 1
    while v < last:
        rest -= exp(read(row[v]) - top)
        if rest < np.float32(0.0):
            break
        v += 1
    return v


@njit
def _blocks(vocab):
    return np.empty((vocab + _BLOCK - 1) // _BLOCK, dtype=np.float32)


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _normalizers(logits, normalizers):
    tokens, vocab = logits.shape
    for t in prange(tokens):
        normalizers[t], _, _ = _normalize(logits[t], _blocks(vocab))


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _sampled(logits, draws, normalizers, labels):
    tokens, vocab = logits.shape
    for t in prange(tokens):
        row, sums = logits[t], _blocks(vocab)
        n, top, total = _normalize(row, sums)
        label = _sample(row, sums, top, draws[t] * total)
        of_label = exp(read(row[label]) - n)
        for v in range(vocab):
            write(row, v, exp(read(row[v]) - n))
        write(row, label, of_label - np.float32(1.0))
        normalizers[t], labels[t] = n, label


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _from_logits(logits, teacher, normalizers, loss):
    tokens, vocab = logits.shape
    for t in prange(tokens):
        row, other, m = logits[t], teacher[t], normalizers[t]
        n, _, _ = _normalize(row, _blocks(vocab))
        kl = np.float32(0.0)
        for v in range(vocab):
            log_q, log_p = read(row[v]) - n, read(other[v]) - m
            p = exp(log_p)
            kl += p * (log_p - log_q)
            write(row, v, exp(log_q) - p)
        loss[t] = kl


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _from_labels(logits, labels, loss):
    tokens, vocab = logits.shape
    for t in prange(tokens):
        row, label = logits[t], labels[t]
        n, _, _ = _normalize(row, _blocks(vocab))
        log_q = read(row[label]) - n
        loss[t] = -log_q
        for v in range(vocab):
            write(row, v, exp(read(row[v]) - n))
        write(row, label, exp(log_q) - np.float32(1.0))


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _figures(logits, log_ps, ps, labels, figures):
    """With e = exp(l − top): the entropy of q is log Σ e − Σ e (l − top) ÷ Σ e, so that each entry costs one exp."""
    tokens, vocab = logits.shape
    for t in prange(tokens):
        row, log_p, p, label = logits[t], log_ps[t], ps[t], labels[t]
        top = _highest(row)
        total = moment = np.float32(0.0)
        for v in range(vocab):
            below = max(read(row[v]) - top, np.float32(-88.0))  # e is 0 from there on, and 0 × −∞ would not be
            e = exp(below)
            total += e
            moment += e * below
        log_total = np.log(total)
        n = top + log_total
        kl = np.float32(0.0)
        for v in range(vocab):
            kl += p[v] * (log_p[v] - (read(row[v]) - n))
        figures[t, 0] = n - read(row[label]) if label >= 0 else np.float32(0.0)
        figures[t, 1], figures[t, 2] = kl, log_total - moment / total


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _add_probabilities(logits, parts):
    """Σ q over tokens in float64, one part of the tokens to a row of `parts`. Where exp is 0 in float32 it is taken in
    float64."""
    tokens, vocab = logits.shape
    for part in prange(len(parts)):
        total = parts[part]
        for t in range(part * tokens // len(parts), (part + 1) * tokens // len(parts)):
            row = logits[t]
            n, _, _ = _normalize(row, _blocks(vocab))
            for v in range(vocab):
                log_q = read(row[v]) - n
                if log_q > np.float32(-80.0):
                    total[v] += exp(log_q)
                else:
                    total[v] += np.exp(np.float64(log_q))


@njit(parallel=True, fastmath=FASTMATH, cache=True)
def _js(logits, others, divergence):
    tokens, vocab = logits.shape
    for t in prange(tokens):
        row, other = logits[t], others[t]
        n, _, _ = _normalize(row, _blocks(vocab))
        m, _, _ = _normalize(other, _blocks(vocab))
        total = np.float32(0.0)
        for v in range(vocab):
            log_p, log_q = read(row[v]) - n, read(other[v]) - m
            # log(p ÷ mean) = ln 2 − log(1 + q ÷ p)
            ahead = log_q - log_p
            beyond = np.log1p(exp(-abs(ahead)))
            of_p, of_q = _LN2 - max(ahead, np.float32(0.0)) - beyond, _LN2 - max(-ahead, np.float32(0.0)) - beyond
            total += exp(log_p) * of_p + exp(log_q) * of_q
        divergence[t] = total * np.float32(0.5)
